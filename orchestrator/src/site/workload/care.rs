//! A workload that runs is probed, and ended if it does not do what it is for.

use super::{GRACE, Next, Task};
use crate::api::ApiError;
use crate::runtime::End;
use crate::site::events::Tone;
use crate::site::health::Health;
use crate::site::probe::Aim;
use crate::site::wanted::Wanted;

impl Task {
    /// Begins to probe it, if it is to be and is not yet.
    pub(super) fn look_after(&mut self, wanted: &Wanted) {
        let (probes, status) = (&wanted.probes, &wanted.status);
        if probes.are_none() {
            self.health = None;
        } else if !self
            .health
            .as_ref()
            .is_some_and(|health| health.is_by(probes))
        {
            let aim = Aim {
                runtime: self.desk.runtime.clone(),
                uid: self.uid.clone(),
                address: status.addresses.first().and_then(|text| text.parse().ok()),
            };
            let (since, ready) = (status.started_at, status.is("Ready"));
            let health = Health::begin(&aim, probes.clone(), since, ready, &self.bell);
            self.health = Some(health);
        }
    }

    /// It runs, and does not do what it is for: it is ended, and started again as its policy says.
    pub(super) async fn unwell(&mut self, wanted: Wanted, why: &str) -> Result<Next, ApiError> {
        let how = format!("its liveness probe failed: {why}");
        self.tell(Tone::Warning, "Unhealthy", &how).await;
        self.health = None;
        if let Err(e) = self.desk.runtime.stop(&self.uid, GRACE).await {
            return self.fails(wanted.status, "NotStopped", &e).await;
        }
        self.ended(wanted, End { well: false, how }).await
    }
}
