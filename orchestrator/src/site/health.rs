//! A running workload's health: its probes are asked in tasks of their own, and what they come to rings the
//! workload's bell. The tasks end with this.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::probe::Aim;
use crate::model::{Probe, Timestamp};

/// What a workload is probed by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probes {
    /// Whether it lives.
    pub liveness: Option<Probe>,
    /// Whether it is ready.
    pub readiness: Option<Probe>,
}

impl Probes {
    /// Whether nothing is probed.
    pub fn are_none(&self) -> bool {
        self.liveness.is_none() && self.readiness.is_none()
    }
}

/// What the probes have come to.
#[derive(Debug, Clone)]
struct Verdict {
    /// Why it is not ready, if it is not.
    unready: Option<String>,
    /// Why it is to be ended, if it is.
    dead: Option<String>,
}

/// The health of a workload that runs.
pub struct Health {
    probes: Probes,
    verdict: Arc<Mutex<Verdict>>,
    /// They are ended when this is dropped.
    _tasks: JoinSet<()>,
}

/// Counts answers in a row.
#[derive(Debug)]
struct Tally {
    well: bool,
    /// Answers in a row that say otherwise.
    against: u32,
}

impl Tally {
    /// Counts an answer; whether it changes what is thought.
    fn count(&mut self, good: bool, probe: &Probe) -> bool {
        if good == self.well {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = match good {
            true => probe.success_threshold,
            false => probe.failure_threshold,
        };
        let changes = self.against >= needed;
        if changes {
            (self.well, self.against) = (good, 0);
        }
        changes
    }
}

impl Health {
    /// Begins to probe what runs since a moment. `ready` is what was known of it before. The bell is rung when
    /// there is something to look at.
    pub fn begin(
        aim: &Aim,
        probes: Probes,
        since: Option<Timestamp>,
        ready: bool,
        bell: &Arc<Notify>,
    ) -> Health {
        let ran = since.map_or(0, Timestamp::seconds_ago);
        let asked = probes.readiness.is_some();
        let unready =
            (asked && !ready).then(|| "its readiness probe was not answered yet".to_owned());
        let verdict = Arc::new(Mutex::new(Verdict {
            unready,
            dead: None,
        }));
        let mut tasks = JoinSet::new();
        if let Some(probe) = probes.liveness.clone() {
            let (aim, bell, verdict) = (aim.clone(), bell.clone(), verdict.clone());
            let say = move |why: Option<&String>, changes: bool| {
                if let (Some(why), true) = (why, changes) {
                    verdict.lock().dead = Some(why.clone());
                    bell.notify_one();
                }
            };
            tasks.spawn(probing(aim, probe, ran, true, say));
        }
        if let Some(probe) = probes.readiness.clone() {
            let (aim, bell, verdict) = (aim.clone(), bell.clone(), verdict.clone());
            let say = move |why: Option<&String>, changes: bool| {
                let mut verdict = verdict.lock();
                let unready = match (why, changes) {
                    (None, true) => None,
                    // As long as it is not ready, the reason is the last one.
                    (Some(why), changes) if changes || verdict.unready.is_some() => {
                        Some(why.clone())
                    }
                    _ => return,
                };
                if verdict.unready != unready {
                    verdict.unready = unready;
                    bell.notify_one();
                }
            };
            tasks.spawn(probing(aim, probe, ran, ready, say));
        }
        Health {
            probes,
            verdict,
            _tasks: tasks,
        }
    }

    /// Whether these are what it is probed by.
    pub fn is_by(&self, probes: &Probes) -> bool {
        self.probes == *probes
    }

    /// Why it is not ready, if it is not.
    pub fn unready(&self) -> Option<String> {
        self.verdict.lock().unready.clone()
    }

    /// Why it is to be ended, if it is.
    pub fn dead(&self) -> Option<String> {
        self.verdict.lock().dead.clone()
    }
}

/// Asks a probe for ever, one at a time, of what has run so many seconds. Each answer is said, with whether it
/// changes what is thought.
async fn probing(
    aim: Aim,
    probe: Probe,
    ran: u64,
    well: bool,
    say: impl Fn(Option<&String>, bool) + Send,
) {
    let delay = u64::from(probe.initial_delay_seconds).saturating_sub(ran);
    sleep(Duration::from_secs(delay)).await;
    let mut tally = Tally { well, against: 0 };
    let mut ticks = interval(Duration::from_secs(probe.period_seconds.max(1).into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = aim.ask(&probe).await;
        let changes = tally.count(answer.is_ok(), &probe);
        say(answer.as_ref().err(), changes);
    }
}

#[cfg(test)]
#[path = "health_test.rs"]
mod tests;
