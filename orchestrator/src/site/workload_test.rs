//! A workload's task beside others who change its object.

use std::collections::BTreeSet;
use std::path::PathBuf;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::model::{Container, Kind, Namespace};
use crate::site::wanted::status_of;
use crate::store::Embedded;

/// What runs nothing, but says what it was asked: those of this kind take a while to start.
#[derive(Default)]
struct Slow {
    runs: Mutex<BTreeSet<String>>,
    said: Mutex<Vec<String>>,
    starting: Notify,
    go_on: Notify,
}

#[async_trait]
impl Runtime for Slow {
    async fn start(&self, object: &Object) -> Result<Vec<String>, RuntimeError> {
        let name = &object.meta.name;
        self.said.lock().push(format!("start {name}"));
        if name == "low" {
            self.starting.notify_one();
            self.go_on.notified().await;
        }
        self.runs.lock().insert(object.meta.uid.clone());
        Ok(Vec::new())
    }
    async fn life(&self, uid: &str) -> Life {
        match self.runs.lock().contains(uid) {
            true => Life::Running,
            false => Life::Absent,
        }
    }
    async fn ended(&self, _: &str) {
        std::future::pending().await
    }
    async fn stop(&self, uid: &str, _: Duration) -> Result<(), RuntimeError> {
        if self.runs.lock().remove(uid) {
            self.said.lock().push("stop".to_owned());
        }
        Ok(())
    }
    async fn remove(&self, _: &str) -> Result<(), RuntimeError> {
        Ok(())
    }
    fn log(&self, _: &str) -> Option<PathBuf> {
        None
    }
    async fn found(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
}

async fn make(
    objects: &Objects,
    kind: &'static Kind,
    name: &str,
    mut body: serde_json::Value,
) -> Object {
    body["metadata"] = json!({"name": name});
    if kind.namespaced {
        body["metadata"]["namespace"] = "default".into();
    }
    let object = Object::from_value(kind, body).expect("an object");
    objects.create(object, false).await.expect("made")
}

fn container(priority: i32) -> serde_json::Value {
    json!({"spec": {
        "image": "/image",
        "memory": "3Gi",
        "placement": {"priority": priority},
    }})
}

/// What it says of its start must not give it back what it has lost meanwhile.
#[test]
fn what_loses_its_place_while_it_starts_leaves_before_the_other_one_starts() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Embedded::open(&folder.path().join("store")).expect("a store");
        let objects = Objects::new(Arc::new(store));
        make(&objects, kind_of::<Namespace>(), "default", json!({})).await;
        let status = json!({"cpus": 8, "memory": "4Gi", "disk": "1Ti", "hugepages": 0,
            "kernel": "", "agent": "", "kvm": "", "phase": "Ready"});
        make(
            &objects,
            kind_of::<Host>(),
            "here",
            json!({"spec": {}, "status": status}),
        )
        .await;
        let (slow, placer) = (
            Arc::new(Slow::default()),
            Arc::new(Placer::new(objects.clone())),
        );
        let task = |object: &Object| {
            let desk = Desk {
                objects: objects.clone(),
                events: Events::new(objects.clone(), "here"),
                host: "here".to_owned(),
                runtime: slow.clone(),
                placer: placer.clone(),
            };
            let bell = Arc::new(Notify::new());
            tokio::spawn(run(desk, object.clone(), bell.clone()));
            bell
        };
        let kind = kind_of::<Container>();
        let low = make(&objects, kind, "low", container(0)).await;
        let bell = task(&low);
        slow.starting.notified().await;
        let high = make(&objects, kind, "high", container(1)).await;
        let _high = task(&high);
        let status = async |name: &str| {
            let object = objects
                .get(kind, "default", name)
                .await
                .expect("it is there");
            status_of(&object)
        };
        // As the agent does when an object changes.
        let until = async |name: &str, is: &dyn Fn(&WorkloadStatus) -> bool| {
            for _ in 0..2000 {
                if is(&status(name).await) {
                    return;
                }
                bell.notify_one();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("{name}: {:?}", status(name).await);
        };
        until("low", &|status| status.leaving_host == "here").await;
        slow.go_on.notify_one();
        until("high", &|status| status.phase == Phase::Running).await;
        until("low", &|status| status.phase == Phase::Pending).await;
        let low = status("low").await;
        assert_eq!((low.host.as_str(), low.leaving_host.as_str()), ("", ""));
        assert!(!low.is("Scheduled") && !low.is("Ready"));
        assert_eq!(*slow.said.lock(), ["start low", "stop", "start high"]);
    });
}
