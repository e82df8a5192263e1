//! Places are given once, to the right ones, whoever changes what meanwhile.

use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::api::{Explains, rest};
use crate::model::{Container, Host, Kind, MicroVM, Namespace, Phase};
use crate::store::Embedded;

/// A store with hosts in it, and who gives places there.
struct Desk {
    _folder: TempDir,
    objects: Objects,
    placer: Placer,
}

impl Desk {
    async fn new(hosts: &[(&str, u64)]) -> Desk {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Embedded::open(&folder.path().join("store")).expect("a store");
        let objects = Objects::new(Arc::new(store));
        let desk = Desk {
            _folder: folder,
            placer: Placer::new(objects.clone()),
            objects,
        };
        desk.make(kind_of::<Namespace>(), "default", json!({}))
            .await;
        for (name, gib) in hosts {
            let status = json!({"cpus": 64, "memory": format!("{gib}Gi"), "disk": "1Ti",
                "hugepages": 0, "kernel": "", "agent": "", "kvm": "", "phase": "Ready"});
            desk.make(
                kind_of::<Host>(),
                name,
                json!({"spec": {}, "status": status}),
            )
            .await;
        }
        desk
    }

    async fn make(&self, kind: &'static Kind, name: &str, body: Value) -> Object {
        let mut value = body;
        value["metadata"] = json!({"name": name});
        if kind.namespaced {
            value["metadata"]["namespace"] = "default".into();
        }
        let object = Object::from_value(kind, value).expect("an object");
        self.objects.create(object, false).await.expect("made")
    }

    /// A VM of so many GiB, and how important it is.
    async fn vm(&self, name: &str, gib: u64, priority: i32) -> Object {
        let spec = json!({
            "memory": format!("{gib}Gi"),
            "boot": {"kernel": "/kernel"},
            "placement": {"priority": priority},
        });
        self.make(kind_of::<MicroVM>(), name, json!({"spec": spec}))
            .await
    }

    async fn get(&self, name: &str) -> Object {
        let kind = kind_of::<MicroVM>();
        self.objects
            .get(kind, "default", name)
            .await
            .expect("it is there")
    }

    async fn status(&self, name: &str) -> WorkloadStatus {
        let vm: MicroVM = rest(&self.get(name).await).expect("a VM");
        vm.status.unwrap_or_default()
    }

    /// The host and the victims; none if there is no place.
    async fn place(&self, object: &Object) -> Option<(String, Vec<String>)> {
        match self.placer.place(object).await.expect("the store answers") {
            Found::None(_) => None,
            Found::Place { status, victims } => {
                let names = victims.iter().map(|victim| victim.meta.name.clone());
                Some((status.host, names.collect()))
            }
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(test);
}

fn at(host: &str, victims: &[&str]) -> Option<(String, Vec<String>)> {
    let victims = victims.iter().map(|name| (*name).to_owned());
    Some((host.to_owned(), victims.collect()))
}

#[test]
fn the_more_important_takes_the_place_of_as_few_and_unimportant_as_can_be() {
    run(async {
        let desk = Desk::new(&[("a", 10)]).await;
        for (name, gib, priority) in [("low", 2, 1), ("mid", 4, 2), ("high", 4, 9)] {
            let vm = desk.vm(name, gib, priority).await;
            assert_eq!(desk.place(&vm).await, at("a", &[]));
        }
        // Not the place of its equals.
        let equal = desk.vm("equal", 2, 1).await;
        assert_eq!(desk.place(&equal).await, None);
        let large = desk.vm("large", 4, 5).await;
        assert_eq!(desk.place(&large).await, at("a", &["mid"]));
        let evicted = desk.status("mid").await;
        assert_eq!(
            (evicted.host.as_str(), evicted.leaving_host.as_str()),
            ("", "a")
        );
        let why = &evicted.conditions[0];
        assert_eq!(
            (why.kind.as_str(), why.reason.as_str()),
            ("Scheduled", "Preempted")
        );
        assert!(
            why.message.contains("microvm default/large"),
            "{}",
            why.message
        );
        assert_eq!(desk.status("large").await.host, "a");
        // Those who have it wait, and nobody else gets it.
        assert_eq!(
            desk.placer.leaving("a").await.expect("books"),
            ["microvm default/mid"]
        );
        let late = desk.vm("late", 1, 1).await;
        assert_eq!(desk.place(&late).await, None);
        assert_eq!(desk.place(&desk.get("mid").await).await, None);
        // It has left.
        let left = json!(WorkloadStatus {
            leaving_host: String::new(),
            ..evicted
        });
        let mid = desk.get("mid").await;
        desk.objects.set_status(&mid, left).await.expect("written");
        assert!(desk.placer.leaving("a").await.expect("books").is_empty());
        // There is room again.
        let high = desk.get("high").await;
        desk.objects
            .finalized(&high, crate::model::AGENT)
            .await
            .expect("written");
        let (kind, meta) = (high.kind, &high.meta);
        let gone = desk
            .objects
            .delete(kind, &meta.namespace, &meta.name, "", None, false);
        gone.await.expect("deleted");
        assert_eq!(desk.place(&desk.get("mid").await).await, at("a", &[]));
        // A new agent sees the same.
        let books = Books::open(&desk.objects).await.expect("books");
        let placed = ["large", "low", "mid", "late", "high"]
            .map(|name| books.cluster.find(&kind.key("default", name)).is_some());
        assert_eq!(placed, [true, true, true, false, false]);
    });
}

#[test]
fn kept_books_follow_what_others_change() {
    run(async {
        let desk = Desk::new(&[("a", 4), ("b", 4)]).await;
        let hosts = kind_of::<Host>();
        let change = async |name: &str, field: &str, value: Value| {
            let changed = desk
                .objects
                .change(hosts, "", name, Part::Spec, false, |old| {
                    let mut new = old.clone();
                    new.body["spec"][field] = value.clone();
                    new.meta.resource_version.clear();
                    Ok(new)
                });
            changed.await.expect("changed");
        };
        let one = desk.vm("one", 3, 0).await;
        assert_eq!(desk.place(&one).await, at("a", &[]));
        change("b", "unschedulable", true.into()).await;
        let two = desk.vm("two", 3, 0).await;
        assert_eq!(desk.place(&two).await, None);
        change("b", "unschedulable", false.into()).await;
        change("b", "taints", json!([{"key": "x"}])).await;
        assert_eq!(desk.place(&two).await, None);
        change("b", "taints", json!([])).await;
        assert_eq!(desk.place(&two).await, at("b", &[]));
        // A workload that grew, as far as its host lets it.
        let grown = desk
            .objects
            .change(one.kind, "default", "one", Part::Spec, false, |old| {
                let mut new = old.clone();
                new.body["spec"]["memory"] = "4Gi".into();
                new.meta.resource_version.clear();
                Ok(new)
            });
        grown.await.expect("changed");
        let small = desk.vm("small", 1, 0).await;
        assert_eq!(desk.place(&small).await, at("b", &[]));
        // A host that comes, and one that is claimed.
        let status = json!({"cpus": 8, "memory": "8Gi", "disk": "1Ti", "hugepages": 0,
            "kernel": "", "agent": "", "kvm": "", "phase": "Ready"});
        desk.make(hosts, "c", json!({"spec": {}, "status": status}))
            .await;
        let large = desk.vm("large", 7, 0).await;
        assert_eq!(desk.place(&large).await, at("c", &[]));
        let claim = desk
            .make(kind_of::<BareMetal>(), "all", json!({"spec": {}}))
            .await;
        assert_eq!(desk.place(&claim).await, at("a", &[]));
        let next = desk.make(
            kind_of::<Container>(),
            "next",
            json!({"spec": {"image": "/i"}}),
        );
        assert_eq!(desk.place(&next.await).await, at("c", &[]));
        // What has a place is given none.
        assert!(desk.placer.place(&one).await.is_err());
    });
}

#[test]
fn a_claim_leaves_alone_what_is_more_important() {
    run(async {
        let desk = Desk::new(&[("a", 4), ("b", 4)]).await;
        for (name, gib, priority) in [("one", 4, 5), ("two", 4, 3)] {
            let vm = desk.vm(name, gib, priority).await;
            assert!(desk.place(&vm).await.is_some());
        }
        let claim = async |name: &str, priority: i32| {
            let body = json!({"spec": {"placement": {"priority": priority}}});
            let claim = desk.make(kind_of::<BareMetal>(), name, body).await;
            desk.place(&claim).await
        };
        assert_eq!(claim("humble", 1).await, None);
        assert_eq!(claim("usual", 3).await, at("b", &[]));
        assert_eq!(claim("proud", 5).await, at("a", &[]));
    });
}

#[test]
fn nobody_goes_for_what_is_not_to_run() {
    run(async {
        let desk = Desk::new(&[("a", 4)]).await;
        let low = desk.vm("low", 4, 0).await;
        desk.place(&low).await;
        let spec = json!({
            "running": false,
            "memory": "4Gi",
            "boot": {"kernel": "/kernel"},
            "placement": {"priority": 7},
        });
        let high = desk.make(kind_of::<MicroVM>(), "high", json!({"spec": spec}));
        let high = high.await;
        assert_eq!(desk.place(&high).await, None);
        let explained = desk.placer.explain(&high).await.expect("the store answers");
        assert_eq!((explained.victims.len(), explained.hosts.len()), (0, 1));
        let asked = desk
            .objects
            .change(high.kind, "default", "high", Part::Spec, false, |old| {
                let mut new = old.clone();
                new.body["spec"]["running"] = true.into();
                new.meta.resource_version.clear();
                Ok(new)
            });
        let high = asked.await.expect("changed");
        // It is known before whom it would push away.
        let explained = desk.placer.explain(&high).await.expect("the store answers");
        assert_eq!(explained.victims, ["microvm default/low"]);
        assert!(explained.hosts[0].why.contains("of memory free"));
        assert_eq!(desk.status("low").await.host, "a");
        assert_eq!(desk.place(&high).await, at("a", &["low"]));
    });
}

#[test]
fn what_has_ended_keeps_its_phase_when_it_loses_its_place() {
    run(async {
        let desk = Desk::new(&[("a", 4)]).await;
        let done = desk.vm("done", 4, 0).await;
        desk.place(&done).await;
        let ended = WorkloadStatus {
            phase: Phase::Succeeded,
            ..desk.status("done").await
        };
        let done = desk.get("done").await;
        desk.objects
            .set_status(&done, json!(ended))
            .await
            .expect("written");
        let vm = desk.vm("new", 4, 1).await;
        assert_eq!(desk.place(&vm).await, at("a", &["done"]));
        assert_eq!(desk.status("done").await.phase, Phase::Succeeded);
    });
}
