//! I/O workers: how they are configured, moved between, and looked at.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The worker that every machine has, for devices that name none.
pub const DEFAULT_WORKER: &str = "io";

/// How long a worker looks for work by itself before it waits to be told: nanoseconds, or `inf`. With
/// 0 it always waits to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollMax(pub u64);

impl PollMax {
    /// It never waits.
    pub const INFINITE: PollMax = PollMax(u64::MAX);
}

impl Default for PollMax {
    fn default() -> Self {
        PollMax(32_000)
    }
}

impl Serialize for PollMax {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            PollMax::INFINITE => serializer.serialize_str("inf"),
            PollMax(ns) => serializer.serialize_u64(ns),
        }
    }
}

impl<'de> Deserialize<'de> for PollMax {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PollMax, D::Error> {
        deserializer.deserialize_any(PollMaxVisitor)
    }
}

struct PollMaxVisitor;

impl Visitor<'_> for PollMaxVisitor {
    type Value = PollMax;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nanoseconds, or inf")
    }

    fn visit_u64<E: Error>(self, ns: u64) -> Result<PollMax, E> {
        Ok(PollMax(ns))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PollMax, E> {
        if text == "inf" {
            return Ok(PollMax::INFINITE);
        }
        let ns = text.parse();
        ns.map(PollMax)
            .map_err(|_| E::custom(format!("`{text}` is neither nanoseconds nor inf")))
    }
}

impl JsonSchema for PollMax {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PollMax".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Nanoseconds, or \"inf\".",
            "oneOf": [{ "type": "integer", "minimum": 0 }, { "const": "inf" }]
        })
    }
}

/// An I/O worker: a thread that serves queues of any devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// Its name, by which devices are given to it; also its thread's. `io` is the one that every
    /// machine has.
    pub name: String,
    /// How long it looks for work by itself at most: each queue has a time of its own, which follows
    /// how soon work usually comes.
    #[serde(default, alias = "poll-max-ns")]
    pub poll_max_ns: PollMax,
    /// The host CPUs that it may run on; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<usize>,
}

/// What `vm.move-queues` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmMoveQueues {
    /// The device's name.
    pub id: String,
    /// Its queues' numbers; all of them if absent.
    #[serde(default)]
    pub queues: Option<Vec<u16>>,
    /// The worker that is to serve them.
    pub worker: String,
}

/// What `vm.set-worker` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSetWorker {
    /// The worker's name.
    pub name: String,
    /// How long it looks for work by itself from now on.
    #[serde(alias = "poll-max-ns")]
    pub poll_max_ns: PollMax,
}

/// A worker of a running machine, as `vm.workers` tells of it. Times are since the worker started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerInfo {
    /// Its name.
    pub name: String,
    /// How long it looks for work by itself at most.
    pub poll_max_ns: PollMax,
    /// The host CPUs that it may run on; any if empty.
    pub affinity: Vec<usize>,
    /// False if it broke down; it is started anew with the next queue.
    pub alive: bool,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Nanoseconds that it looked for work and found none.
    pub polled_ns: u64,
    /// Times that the cap on polling sent it to sleep.
    pub capped: u64,
    /// What it serves.
    pub queues: Vec<WorkerQueueInfo>,
}

/// A queue that a worker serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerQueueInfo {
    /// The device and the queue's number: `_disk0/1`.
    pub name: String,
    /// The worker looks into it by itself now.
    pub polled: bool,
    /// For how long it would, without work.
    pub budget_ns: u64,
}

/// Limits of a device: both must allow a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes.
    pub bandwidth: Option<TokenBucketConfig>,
    /// Requests of a disk, frames of a network device.
    pub ops: Option<TokenBucketConfig>,
}

/// `size` units in every `refill_time`, spread evenly; after a pause up to `size` at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// Units.
    pub size: u64,
    /// Units more, once.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// Milliseconds.
    pub refill_time: u64,
}
