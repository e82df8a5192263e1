//! A workload's task: looks at what is declared and at what is, does the next step, and says so.

mod care;
mod eviction;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Notify;

use super::backoff::Backoff;
use super::counts::one_more;
use super::events::{Events, Tone};
use super::health::Health;
use super::place::{Found, Placer};
use super::wanted::Wanted;
use crate::api::{ApiError, Objects, rest};
use crate::model::{
    AGENT, BareMetal, Host, Object, Phase, RestartPolicy, Timestamp, WorkloadStatus, kind_of,
};
use crate::runtime::{End, Life, Runtime, RuntimeError};

/// How long a workload may take to end if nothing else is said.
const GRACE: Duration = Duration::from_secs(10);
/// And at most, whatever is said: nobody else's place waits longer.
const MOST_GRACE: Duration = Duration::from_secs(3600);
/// Between looks for a place.
const AGAIN: Duration = Duration::from_secs(5);
/// Between looks whether others have left.
const LEFT: Duration = Duration::from_millis(200);
/// Between looks whether what it waits for has happened.
const WAITING: Duration = Duration::from_secs(1);
/// Between attempts when the store does not answer.
const REST: Duration = Duration::from_secs(1);

/// What a task works with.
pub struct Desk {
    pub objects: Objects,
    pub events: Events,
    pub host: String,
    pub runtime: Arc<dyn Runtime>,
    pub placer: Arc<Placer>,
}

/// What comes after a look.
enum Next {
    /// Nothing, until it is declared otherwise.
    Wait,
    /// Nothing, as long as it runs.
    WhileItRuns,
    /// Another look, after so long.
    After(Duration),
    /// The workload is gone.
    Over,
}

/// Looks after a workload until it is gone.
pub async fn run(desk: Desk, object: Object, bell: Arc<Notify>) {
    let mut task = Task {
        uid: object.meta.uid.clone(),
        object,
        desk,
        backoff: Backoff::default(),
        tried: 0,
        end_told: false,
        health: None,
        bell,
    };
    loop {
        let turn = task.turn().await;
        let counts = task.desk.placer.counts();
        one_more(match turn {
            Ok(_) => &counts.turns,
            Err(_) => &counts.failed_turns,
        });
        let (wait, runs) = match turn {
            Ok(Next::Over) => return,
            Ok(Next::Wait) => (Duration::MAX, false),
            Ok(Next::WhileItRuns) => (Duration::MAX, true),
            Ok(Next::After(wait)) => (wait, false),
            Err(e) => {
                log::warn!("{}: {e}", task.object.shown());
                (REST, false)
            }
        };
        tokio::select! {
            () = task.bell.notified() => {}
            () = tokio::time::sleep(wait) => {}
            () = task.desk.runtime.ended(&task.uid), if runs => {}
        }
    }
}

struct Task {
    uid: String,
    object: Object,
    desk: Desk,
    backoff: Backoff,
    /// The generation that was tried last.
    tried: u64,
    /// That it ended is told, and what comes then is known.
    end_told: bool,
    /// Its health, as long as it runs and is probed.
    health: Option<Health>,
    /// What lets it look again.
    bell: Arc<Notify>,
}

impl Task {
    async fn turn(&mut self) -> Result<Next, ApiError> {
        let meta = &self.object.meta;
        let found = self
            .desk
            .objects
            .get(self.object.kind, &meta.namespace, &meta.name);
        match found.await {
            Ok(object) => self.object = object,
            Err(ApiError::NotFound { .. }) => {
                return Ok(match self.clean(Duration::ZERO).await {
                    true => Next::Over,
                    false => Next::After(REST),
                });
            }
            Err(e) => return Err(e),
        }
        if self.object.meta.uid != self.uid {
            // Another one of the same name.
            self.health = None;
            if !self.clean(Duration::ZERO).await {
                return Ok(Next::After(REST));
            }
            self.uid.clone_from(&self.object.meta.uid);
            self.end_told = false;
            self.backoff.forget();
        }
        if self.object.meta.generation != self.tried {
            self.tried = self.object.meta.generation;
            self.end_told = false;
            self.backoff.forget();
        }
        let mut wanted = Wanted::of(&self.object)?;
        if self.object.meta.deletion_timestamp.is_some() {
            self.health = None;
            return self.go(&wanted).await;
        }
        if !wanted.status.leaving_host.is_empty() {
            return self.leave(wanted).await;
        }
        if wanted.begins_again(self.tried) && wanted.status.host == self.desk.host {
            self.give_up_place().await?;
            wanted = Wanted::of(&self.object)?;
        }
        if !self.is_here(&mut wanted).await? {
            return Ok(match wanted.status.host.is_empty() {
                // Others may make room.
                true => Next::After(AGAIN),
                false => Next::Wait,
            });
        }
        let drained = self.is_drained().await?;
        let life = self.desk.runtime.life(&self.uid).await;
        if life != Life::Running {
            self.health = None;
        }
        let over = wanted.is_over(self.tried);
        match life {
            Life::Running if drained || !wanted.running => self.stop(wanted.status, drained).await,
            Life::Running => self.runs(wanted).await,
            Life::Ended(_) | Life::Absent if over => Ok(Next::Wait),
            Life::Ended(_) | Life::Absent if drained || !wanted.running => {
                self.stop(wanted.status, drained).await
            }
            Life::Ended(end) if !self.end_told => {
                if let Err(e) = self.desk.runtime.stop(&self.uid, Duration::ZERO).await {
                    log::warn!("{}: {}", self.object.shown(), chain(&e));
                }
                self.ended(wanted, end).await
            }
            Life::Ended(_) | Life::Absent => self.start(wanted).await,
        }
    }

    /// It has ended: says so, and whether it is started again.
    async fn ended(&mut self, mut wanted: Wanted, end: End) -> Result<Next, ApiError> {
        self.end_told = true;
        let tone = match end.well {
            true => Tone::Normal,
            false => Tone::Warning,
        };
        self.tell(tone, "Ended", &end.how).await;
        let again = match wanted.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !end.well,
            RestartPolicy::Never => false,
        };
        let status = &mut wanted.status;
        let reason = match (again, end.well) {
            (true, _) => {
                status.restarts += 1;
                self.backoff.failed(Instant::now());
                status.phase = Phase::Failing;
                "Restarting"
            }
            (false, true) => {
                status.phase = Phase::Succeeded;
                "Ended"
            }
            (false, false) => {
                status.phase = Phase::Failed;
                "Ended"
            }
        };
        status.condition("Ready", false, reason, &end.how, self.tried);
        status.last_end = end.how;
        self.say(wanted.status).await?;
        Ok(Next::After(Duration::ZERO))
    }

    /// Whether it is to run on this host. What has no place is given one, if there is one.
    async fn is_here(&mut self, wanted: &mut Wanted) -> Result<bool, ApiError> {
        if wanted.status.host.is_empty() {
            match self.desk.placer.place(&self.object).await? {
                Found::Place { status, victims } => {
                    let why = format!("{} has its place", self.object.shown());
                    for victim in &victims {
                        let events = &self.desk.events;
                        events.tell(victim, Tone::Warning, "Preempted", &why).await;
                    }
                    wanted.status = *status;
                }
                Found::None(why) => {
                    let mut status = wanted.status.clone();
                    if !status.conditions.iter().any(|c| c.message == why) {
                        self.tell(Tone::Warning, "NotScheduled", &why).await;
                    }
                    status.condition("Scheduled", false, "NotScheduled", &why, self.tried);
                    self.say(status).await?;
                    return Ok(false);
                }
            }
        }
        Ok(wanted.status.host == self.desk.host)
    }

    /// Whether its host is to run nothing, or nothing but a claim.
    async fn is_drained(&self) -> Result<bool, ApiError> {
        if self.object.kind == kind_of::<BareMetal>() {
            return Ok(false);
        }
        let (claims, _) = self.desk.objects.all::<BareMetal>().await?;
        let claimed = |claim: &Object| {
            let status = claim.body.get("status").unwrap_or(&Value::Null);
            claim.meta.deletion_timestamp.is_none() && status["host"] == *self.desk.host
        };
        if claims.iter().any(claimed) {
            return Ok(true);
        }
        match self
            .desk
            .objects
            .get(kind_of::<Host>(), "", &self.desk.host)
            .await
        {
            Ok(host) => Ok(rest::<Host>(&host)?.spec.drain),
            Err(ApiError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// It is to go: ends it, removes all of it, and lets its object go.
    async fn go(&mut self, wanted: &Wanted) -> Result<Next, ApiError> {
        let status = &wanted.status;
        let host = match status.leaving_host.is_empty() {
            true => &status.host,
            false => &status.leaving_host,
        };
        if !host.is_empty() && *host != self.desk.host {
            return Ok(Next::Wait);
        }
        let grace = self.object.meta.deletion_grace_period_seconds;
        let grace = grace.map_or(GRACE, |seconds| {
            Duration::from_secs(seconds).min(MOST_GRACE)
        });
        if !self.clean(grace).await {
            return Ok(Next::After(REST));
        }
        let others = |finalizer: &String| finalizer != AGENT;
        if !host.is_empty() && self.object.meta.finalizers.iter().any(others) {
            // Its object stays for somebody else, and its place does not.
            self.give_up_place().await?;
        }
        match self.desk.objects.finalized(&self.object, AGENT).await {
            Ok(()) | Err(ApiError::NotFound { .. }) => Ok(Next::Wait),
            Err(e) => Err(e),
        }
    }

    /// Ends and removes it; false if that has to be tried again.
    async fn clean(&self, grace: Duration) -> bool {
        let runtime = &self.desk.runtime;
        let mut cleaned = runtime.stop(&self.uid, grace).await;
        if cleaned.is_ok() {
            cleaned = runtime.remove(&self.uid).await;
        }
        if let Err(e) = &cleaned {
            let message = chain(e);
            self.tell(Tone::Warning, "NotRemoved", &message).await;
        }
        cleaned.is_ok()
    }

    async fn stop(&mut self, mut status: WorkloadStatus, drained: bool) -> Result<Next, ApiError> {
        let (phase, reason, message) = match drained {
            true => (
                Phase::Pending,
                "HostDrained",
                "the host is being drained, or claimed as a whole",
            ),
            false => (Phase::Stopped, "Stopped", "it is not to run"),
        };
        if status.phase == phase && status.observed_generation == self.tried {
            return Ok(Next::Wait);
        }
        self.health = None;
        if let Err(e) = self.desk.runtime.stop(&self.uid, GRACE).await {
            return self.fails(status, "NotStopped", &e).await;
        }
        self.tell(Tone::Normal, reason, message).await;
        status.phase = phase;
        status.started_at = None;
        status.condition("Ready", false, reason, message, self.tried);
        self.say(status).await?;
        Ok(Next::Wait)
    }

    async fn start(&mut self, mut wanted: Wanted) -> Result<Next, ApiError> {
        let left = self.backoff.left(Instant::now());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        if wanted.status.started_at.is_none() && self.waits_for_others(&mut wanted).await? {
            return Ok(Next::After(LEFT));
        }
        let status = &mut wanted.status;
        match self.desk.runtime.start(&self.object).await {
            Ok(addresses) => status.addresses = addresses,
            Err(RuntimeError::Waits(why)) => return self.waits(wanted.status, &why).await,
            Err(e) => return self.fails(wanted.status, "NotStarted", &e).await,
        }
        self.end_told = false;
        self.backoff.works(Instant::now());
        let message = format!("it runs on {}", self.desk.host);
        self.tell(Tone::Normal, "Started", &message).await;
        status.started_at = Some(Timestamp::now());
        // What was known of the run before is not known of this one.
        status.condition("Ready", false, "Starting", "", self.tried);
        self.runs(wanted).await
    }

    /// It cannot start before something else has happened.
    async fn waits(&mut self, mut status: WorkloadStatus, why: &str) -> Result<Next, ApiError> {
        if !status.conditions.iter().any(|c| c.message == why) {
            self.tell(Tone::Warning, "Waiting", why).await;
        }
        status.phase = Phase::Pending;
        status.condition("Ready", false, "Waiting", why, self.tried);
        self.say(status).await?;
        Ok(Next::After(WAITING))
    }

    /// It runs, as it should.
    async fn runs(&mut self, mut wanted: Wanted) -> Result<Next, ApiError> {
        self.look_after(&wanted);
        if let Some(why) = self.health.as_ref().and_then(Health::dead) {
            return self.unwell(wanted, &why).await;
        }
        self.backoff.works(Instant::now());
        let status = &mut wanted.status;
        status.phase = Phase::Running;
        if status.started_at.is_none() {
            status.started_at = Some(Timestamp::now());
        }
        match self.health.as_ref().and_then(Health::unready) {
            None => status.condition("Ready", true, "Running", "", self.tried),
            Some(why) => {
                if status.is("Ready") {
                    let message = format!("its readiness probe failed: {why}");
                    self.tell(Tone::Warning, "Unhealthy", &message).await;
                }
                status.condition("Ready", false, "NotReady", &why, self.tried);
            }
        }
        self.say(wanted.status).await?;
        Ok(Next::WhileItRuns)
    }

    /// Something does not work: it is said, and tried again later.
    async fn fails(
        &mut self,
        mut status: WorkloadStatus,
        reason: &str,
        error: &RuntimeError,
    ) -> Result<Next, ApiError> {
        let message = chain(error);
        self.backoff.failed(Instant::now());
        self.tell(Tone::Warning, reason, &message).await;
        status.phase = Phase::Failing;
        status.condition("Ready", false, reason, &message, self.tried);
        self.say(status).await?;
        Ok(Next::After(self.backoff.left(Instant::now())))
    }

    async fn tell(&self, tone: Tone, reason: &str, message: &str) {
        self.desk
            .events
            .tell(&self.object, tone, reason, message)
            .await;
    }

    /// Writes the status, if it is another.
    async fn say(&mut self, mut status: WorkloadStatus) -> Result<(), ApiError> {
        status.observed_generation = self.object.meta.generation;
        let value = serde_json::to_value(&status).unwrap_or_default();
        if self.object.body.get("status").unwrap_or(&Value::Null) != &value {
            self.object = self.write(status).await?;
        }
        Ok(())
    }
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
#[path = "workload_test.rs"]
mod tests;
