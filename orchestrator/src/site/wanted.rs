//! What is wanted of a workload, whichever kind it is.

use super::health::Probes;
use crate::api::{ApiError, rest};
use crate::model::{
    BareMetal, Container, MicroVM, Object, Phase, RestartPolicy, WorkloadStatus, kind_of,
};

/// What is wanted, and how it is doing.
pub struct Wanted {
    /// Whether it is to run.
    pub running: bool,
    /// What happens when it ends.
    pub policy: RestartPolicy,
    /// What it is probed by.
    pub probes: Probes,
    /// How it is doing.
    pub status: WorkloadStatus,
}

impl Wanted {
    /// That of an object.
    pub fn of(object: &Object) -> Result<Wanted, ApiError> {
        if object.kind == kind_of::<BareMetal>() {
            let claim: BareMetal = rest(object)?;
            return Ok(Wanted {
                running: true,
                policy: RestartPolicy::Always,
                probes: Probes::default(),
                status: claim.status.unwrap_or_default(),
            });
        }
        if object.kind == kind_of::<Container>() {
            let container: Container = rest(object)?;
            let (spec, status) = (container.spec, container.status.unwrap_or_default());
            return Ok(Wanted {
                running: spec.running,
                policy: spec.restart_policy,
                probes: Probes {
                    liveness: spec.liveness_probe,
                    readiness: spec.readiness_probe,
                },
                status,
            });
        }
        let vm: MicroVM = rest(object)?;
        let (spec, status) = (vm.spec, vm.status.unwrap_or_default());
        Ok(Wanted {
            running: spec.running,
            policy: spec.restart_policy,
            probes: Probes {
                liveness: spec.liveness_probe,
                readiness: spec.readiness_probe,
            },
            status,
        })
    }

    /// Whether it has ended for good.
    pub fn is_over(&self, generation: u64) -> bool {
        is_over(&self.status, generation)
    }

    /// Whether what it was before had ended for good: only its disks have a place.
    pub fn begins_again(&self, generation: u64) -> bool {
        !self.is_over(generation) && self.is_over(self.status.observed_generation)
    }
}

/// Whether something with this status has ended for good, if this is still its generation.
pub fn is_over(status: &WorkloadStatus, generation: u64) -> bool {
    matches!(status.phase, Phase::Succeeded | Phase::Failed)
        && status.observed_generation == generation
}

/// How a workload is doing, as far as it is said.
pub fn status_of(object: &Object) -> WorkloadStatus {
    let status = object.body.get("status").cloned().unwrap_or_default();
    serde_json::from_value(status).unwrap_or_default()
}

/// An object with another status, to be written whatever else has changed of it.
pub fn with_status(object: &Object, status: &WorkloadStatus) -> Object {
    let mut new = object.clone();
    new.meta.resource_version.clear();
    let status = serde_json::to_value(status).unwrap_or_default();
    new.body.insert("status".to_owned(), status);
    new
}
