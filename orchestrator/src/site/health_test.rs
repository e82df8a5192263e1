//! Probes as they come and go: when a workload is ready, when it is ended for its health.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::*;
use crate::model::{ExecAction, Object};
use crate::runtime::{Life, Runtime, RuntimeError};

fn probe(success: u32, failure: u32) -> Probe {
    Probe {
        exec: Some(ExecAction {
            command: vec!["look".to_owned()],
        }),
        period_seconds: 1,
        success_threshold: success,
        failure_threshold: failure,
        ..Probe::default()
    }
}

#[test]
fn only_answers_in_a_row_change_what_is_thought() {
    let probe = probe(2, 3);
    let mut tally = Tally {
        well: false,
        against: 0,
    };
    // Good, with a bad one between.
    for (good, changes) in [(true, false), (false, false), (true, false), (true, true)] {
        assert_eq!(tally.count(good, &probe), changes);
    }
    assert!(tally.well);
    for (good, changes) in [
        (false, false),
        (false, false),
        (true, false),
        (false, false),
        (false, false),
        (false, true),
        (false, false),
    ] {
        assert_eq!(tally.count(good, &probe), changes);
    }
    assert!(!tally.well);
}

/// A workload that answers as it is told, and then well.
struct Told(Mutex<Vec<Result<(), String>>>);

#[async_trait]
impl Runtime for Told {
    async fn start(&self, _: &Object) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
    async fn life(&self, _: &str) -> Life {
        Life::Running
    }
    async fn ended(&self, _: &str) {
        std::future::pending().await
    }
    async fn stop(&self, _: &str, _: Duration) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn remove(&self, _: &str) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn attempt(&self, _: &str, command: &[String], _: Duration) -> Result<(), String> {
        assert_eq!(command, ["look"]);
        self.0.lock().pop().unwrap_or(Ok(()))
    }
    fn log(&self, _: &str) -> Option<PathBuf> {
        None
    }
    async fn found(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
}

fn aim(mut answers: Vec<Result<(), String>>) -> Aim {
    answers.reverse();
    Aim {
        runtime: Arc::new(Told(Mutex::new(answers))),
        uid: "one".to_owned(),
        address: None,
    }
}

/// Waits for the bell until it is so.
async fn rung(bell: &Notify, health: &Health, is: impl Fn(&Health) -> bool) {
    let wait = async {
        while !is(health) {
            bell.notified().await;
        }
    };
    let done = timeout(Duration::from_secs(20), wait).await;
    assert!(done.is_ok(), "{:?}", health.verdict.lock());
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(test);
}

#[test]
fn it_is_ready_when_its_probe_says_so_and_tells_the_last_reason_before() {
    run(async {
        let bell = Arc::new(Notify::new());
        let probes = Probes {
            readiness: Some(probe(1, 1)),
            ..Probes::default()
        };
        let answers = vec![Err("not yet".to_owned()), Ok(())];
        let health = Health::begin(&aim(answers), probes.clone(), None, false, &bell);
        let first = health.unready().expect("nothing is known");
        assert!(first.contains("not answered"), "{first}");
        rung(&bell, &health, |h| {
            h.unready().as_deref() == Some("not yet")
        })
        .await;
        rung(&bell, &health, |h| h.unready().is_none()).await;
        assert!(health.is_by(&probes) && !health.is_by(&Probes::default()));
    });
}

#[test]
fn what_was_ready_before_stays_so_until_its_probe_fails_often_enough() {
    run(async {
        let bell = Arc::new(Notify::new());
        let probes = Probes {
            readiness: Some(probe(1, 2)),
            ..Probes::default()
        };
        let answers = vec![Err("one".to_owned()), Err("two".to_owned())];
        let health = Health::begin(&aim(answers), probes, None, true, &bell);
        assert_eq!(health.unready(), None);
        rung(&bell, &health, |h| h.unready().is_some()).await;
        assert_eq!(health.unready().as_deref(), Some("two"));
        assert_eq!(health.dead(), None);
    });
}

#[test]
fn it_is_to_be_ended_when_its_liveness_probe_has_failed_often_enough() {
    run(async {
        let bell = Arc::new(Notify::new());
        let probes = Probes {
            liveness: Some(probe(1, 2)),
            ..Probes::default()
        };
        let answers = vec![
            Err("one".to_owned()),
            Ok(()),
            Err("a".into()),
            Err("b".into()),
        ];
        let health = Health::begin(&aim(answers), probes, None, false, &bell);
        assert_eq!((health.unready(), health.dead()), (None, None));
        rung(&bell, &health, |h| h.dead().is_some()).await;
        assert_eq!(health.dead().as_deref(), Some("b"));
    });
}
