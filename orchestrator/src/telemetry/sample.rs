//! What host and workloads use at a moment. However many ask, the host is looked at once a second at most, and
//! less often where looking takes long.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::host::{self, HostUsage};
use crate::api::{ApiError, Objects, Selector};
use crate::model::{Kind, Object, Phase, WorkloadStatus};
use crate::runtime::Usage;
use crate::site::Runtimes;

/// For how long a look does at least, and at most.
const FRESH: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// It does for so many times as long as it took: looking takes a small part of the time, however many there are.
const PART: u32 = 50;

/// What is used at a moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sample {
    /// When it was looked at, in seconds since 1970.
    pub at: f64,
    /// The host; not told to those who may ask for one tenant alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostUsage>,
    /// All that is declared to run, by kind, namespace and name.
    pub workloads: Vec<WorkloadUsage>,
}

/// A workload, and what it uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadUsage {
    /// Its kind, in the singular: `microvm`.
    pub kind: String,
    /// Its tenant.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its name among all of all times.
    pub uid: String,
    /// How far it has come.
    pub phase: Phase,
    /// Its condition `Ready`.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// Since when it runs, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<f64>,
    /// Where it has its place.
    pub host: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// What it uses, if it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl Sample {
    /// What those may see who may ask for one tenant alone, and all of it for others.
    pub fn seen_by(&self, tenant: Option<&str>) -> Sample {
        let Some(tenant) = tenant else {
            return self.clone();
        };
        let own = self.workloads.iter().filter(|one| one.namespace == tenant);
        Sample {
            at: self.at,
            host: None,
            workloads: own.cloned().collect(),
        }
    }
}

/// Looks when somebody asks.
pub struct Sampler {
    objects: Objects,
    runtimes: Runtimes,
    host: String,
    state: PathBuf,
    /// The last look, and until when it does.
    last: Mutex<Option<(Instant, Arc<Sample>)>>,
}

impl Sampler {
    /// For a host, whose workloads' files lie in `state`.
    pub fn new(objects: Objects, runtimes: Runtimes, host: &str, state: PathBuf) -> Sampler {
        Sampler {
            objects,
            runtimes,
            host: host.to_owned(),
            state,
            last: Mutex::new(None),
        }
    }

    /// What is used, as of a second ago or, where looking takes long, a few.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn sample(&self) -> Result<Arc<Sample>, ApiError> {
        // Whoever comes meanwhile waits for this look.
        let mut last = self.last.lock().await;
        let begun = Instant::now();
        if let Some((until, sample)) = &*last
            && begun < *until
        {
            return Ok(sample.clone());
        }
        let sample = Arc::new(self.look().await?);
        let does = (begun.elapsed() * PART).clamp(FRESH[0], FRESH[1]);
        *last = Some((begun + does, sample.clone()));
        Ok(sample)
    }

    async fn look(&self) -> Result<Sample, ApiError> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let (name, state) = (self.host.clone(), self.state.clone());
        let host = tokio::task::spawn_blocking(move || host::look(&name, &state));
        let mut workloads = Vec::new();
        for kind in self.runtimes.kinds() {
            let all = Selector::default();
            let list = self.objects.list(kind, "", &all, usize::MAX, "").await?;
            let uids = list.objects.iter().map(|object| object.meta.uid.clone());
            let mut used = self.runtimes.usage(kind, uids.collect()).await;
            let seen = list.objects.iter();
            workloads.extend(seen.map(|object| workload(kind, object, &mut used)));
        }
        Ok(Sample {
            at: at.unwrap_or_default().as_secs_f64(),
            host: host.await.ok(),
            workloads,
        })
    }
}

fn workload(kind: &Kind, object: &Object, used: &mut HashMap<String, Usage>) -> WorkloadUsage {
    let status = object.body.get("status").cloned().unwrap_or_default();
    let status: WorkloadStatus = serde_json::from_value(status).unwrap_or_default();
    WorkloadUsage {
        kind: kind.singular.to_owned(),
        namespace: object.meta.namespace.clone(),
        name: object.meta.name.clone(),
        uid: object.meta.uid.clone(),
        phase: status.phase,
        ready: status.is("Ready"),
        restarts: status.restarts,
        started_at: status.started_at.map(|at| at.unix_seconds()),
        host: status.host,
        addresses: status.addresses,
        usage: used.remove(&object.meta.uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_sees_its_own_and_nothing_of_the_host() {
        let one = |namespace: &str| WorkloadUsage {
            namespace: namespace.to_owned(),
            ..WorkloadUsage::default()
        };
        let all = Sample {
            at: 1.0,
            host: Some(HostUsage::default()),
            workloads: vec![one("a"), one("b")],
        };
        let seen = all.seen_by(Some("a"));
        assert_eq!((seen.host, seen.workloads.len()), (None, 1));
        assert_eq!(all.seen_by(None), all);
    }
}
