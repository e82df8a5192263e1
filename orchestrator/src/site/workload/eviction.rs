//! A workload that has lost its place leaves, and those who have its place wait for that.

use std::time::Duration;

use super::{GRACE, Next, Task};
use crate::api::{ApiError, Part};
use crate::model::{Object, Phase, WorkloadStatus};
use crate::site::wanted::{Wanted, status_of, with_status};

impl Task {
    /// Another one has its place: ends it, so that it looks for a new one.
    pub(super) async fn leave(&mut self, mut wanted: Wanted) -> Result<Next, ApiError> {
        if wanted.status.leaving_host != self.desk.host {
            return Ok(Next::Wait);
        }
        self.health = None;
        if let Err(e) = self.desk.runtime.stop(&self.uid, GRACE).await {
            return self.fails(wanted.status, "NotStopped", &e).await;
        }
        // That it ended is nothing of its own.
        self.end_told = true;
        self.backoff.forget();
        let over = wanted.is_over(self.tried);
        let status = &mut wanted.status;
        status.leaving_host.clear();
        status.started_at = None;
        let scheduled = status.conditions.iter().find(|c| c.kind == "Scheduled");
        let why = scheduled.map_or(String::new(), |c| c.message.clone());
        status.condition("Ready", false, "Preempted", &why, self.tried);
        if !over {
            status.phase = Phase::Pending;
        }
        self.say(wanted.status).await?;
        Ok(Next::After(Duration::ZERO))
    }

    /// Whether what has lost its place on this host is still there: its place may be this one's.
    pub(super) async fn waits_for_others(&mut self, wanted: &mut Wanted) -> Result<bool, ApiError> {
        let others = self.desk.placer.leaving(&self.desk.host).await?;
        if !others.is_empty() {
            let message = format!("{} has not left the host yet", others.join(", "));
            let status = &mut wanted.status;
            status.condition("Ready", false, "WaitsForRoom", &message, self.tried);
            self.say(status.clone()).await?;
        }
        Ok(!others.is_empty())
    }

    /// It is gone, though its object is not: it has no place any more.
    pub(super) async fn give_up_place(&mut self) -> Result<(), ApiError> {
        let begins_again = self.object.meta.deletion_timestamp.is_none();
        let change = |old: &Object| {
            let mut status = status_of(old);
            if begins_again {
                status.phase = Phase::Pending;
            }
            status.host.clear();
            status.leaving_host.clear();
            let mut new = with_status(old, &status);
            new.meta.uid.clone_from(&self.object.meta.uid);
            Ok(new)
        };
        let (kind, meta) = (self.object.kind, &self.object.meta);
        let (objects, part) = (&self.desk.objects, Part::Status);
        let written = objects.change(kind, &meta.namespace, &meta.name, part, false, change);
        self.object = written.await?;
        Ok(())
    }

    /// Writes the status. Its place is not its own to say: if it was given or taken meanwhile, that stays.
    pub(super) async fn write(&self, status: WorkloadStatus) -> Result<Object, ApiError> {
        let before = status_of(&self.object);
        let change = |old: &Object| {
            let (mut status, now) = (status.clone(), status_of(old));
            if (&now.host, &now.leaving_host) != (&before.host, &before.leaving_host) {
                (status.host, status.leaving_host) = (now.host, now.leaving_host);
                status.conditions.retain(|c| c.kind != "Scheduled");
                let placed = now.conditions.into_iter().filter(|c| c.kind == "Scheduled");
                status.conditions.splice(0..0, placed);
            }
            let mut new = with_status(old, &status);
            new.meta.uid.clone_from(&self.object.meta.uid);
            Ok(new)
        };
        let (kind, meta) = (self.object.kind, &self.object.meta);
        let objects = &self.desk.objects;
        objects
            .change(
                kind,
                &meta.namespace,
                &meta.name,
                Part::Status,
                false,
                change,
            )
            .await
    }
}
