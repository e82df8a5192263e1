//! What VMs, containers and whole-host claims have in common: where they may run, how important they are,
//! how they are doing.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, Timestamp};

/// Disks or volumes of a workload.
pub const MOST: usize = 64;

/// The finalizer of the agent that runs a workload.
pub const AGENT: &str = "skerry.io/agent";

/// How CPUs are shared (the exit policy of its tier).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// CPUs of its own.
    Dedicated,
    /// Shared CPUs.
    #[default]
    Burst,
    /// Shared with many.
    Dense,
}

/// What happens when it ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// It is started again.
    #[default]
    Always,
    /// It is started again if it failed.
    OnFailure,
    /// It stays ended.
    Never,
}

/// How important it is; more takes the place of less.
pub type Priority = i32;

/// Where it may run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Placement {
    /// The host, by name; chosen if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Labels that its host must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub host_selector: BTreeMap<String, String>,
    /// Taints of hosts that do not keep it away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// How important it is.
    pub priority: Priority,
}

/// A taint that does not keep a workload away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Toleration {
    /// The taint's key; all if empty.
    pub key: String,
    /// Its value; any if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
}

/// Workloads run unless it is said that they are not to.
pub(super) fn yes() -> bool {
    true
}

/// How far it has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It does not run yet.
    #[default]
    Pending,
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It is to run and does not; it is tried again.
    Failing,
    /// It is to be stopped, and is.
    Stopped,
    /// It has ended well.
    Succeeded,
    /// It has ended badly, for good.
    Failed,
}

/// How a workload is doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WorkloadStatus {
    /// How far it has come.
    pub phase: Phase,
    /// Where it runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The host that it has to leave, where it may still run: no other workload begins there before it has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub leaving_host: String,
    /// Its addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Since when it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_end: String,
    /// The generation that this is about.
    pub observed_generation: u64,
    /// What is so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl WorkloadStatus {
    /// Says that something is so, or is not, and why. Nothing moves if it was said before.
    pub fn condition(
        &mut self,
        kind: &str,
        status: bool,
        reason: &str,
        message: &str,
        generation: u64,
    ) {
        note(
            &mut self.conditions,
            kind,
            status,
            reason,
            message,
            generation,
        );
    }

    /// Whether something is known to be so.
    pub fn is(&self, kind: &str) -> bool {
        let found = self.conditions.iter().find(|c| c.kind == kind);
        found.is_some_and(|condition| condition.status == "True")
    }
}

/// Says in a list of conditions that something is so, or is not, and why. Nothing moves if it was said before.
pub fn note(
    conditions: &mut Vec<Condition>,
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    generation: u64,
) {
    let status = if status { "True" } else { "False" };
    let found = conditions.iter_mut().find(|c| c.kind == kind);
    match found {
        Some(condition) => {
            if condition.status != status {
                status.clone_into(&mut condition.status);
                condition.last_transition_time = Timestamp::now();
            }
            reason.clone_into(&mut condition.reason);
            message.clone_into(&mut condition.message);
            condition.observed_generation = generation;
        }
        None => conditions.push(Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: Timestamp::now(),
            observed_generation: generation,
        }),
    }
}

/// What `get` shows of a workload.
macro_rules! workload_columns {
    () => {
        [
            $crate::model::Column {
                name: "Phase",
                wide: false,
                cell: &["status", "phase"],
            },
            $crate::model::Column {
                name: "Host",
                wide: false,
                cell: &["status", "host"],
            },
            $crate::model::Column {
                name: "Address",
                wide: false,
                cell: &["status", "addresses"],
            },
            $crate::model::Column {
                name: "Restarts",
                wide: false,
                cell: &["status", "restarts"],
            },
            $crate::model::Column {
                name: "Last end",
                wide: true,
                cell: &["status", "lastEnd"],
            },
        ]
    };
}
pub(crate) use workload_columns;
