//! What workloads use: numbers that only grow, and what they have now. Rates are for whoever looks twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one workload uses. What a host cannot tell is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// CPU time, in seconds: of a VM that of its monitor with all threads, of a container that of all its processes.
    pub cpu_seconds: f64,
    /// Bytes of memory that it has now.
    pub memory_bytes: u64,
    /// Bytes that it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads of a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// What a container read and wrote of block devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<Transfers>,
    /// A VM's CPUs, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vcpus: Vec<Vcpu>,
    /// What a VM's devices counted: by device, then by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, BTreeMap<String, u64>>,
    /// A VM's I/O workers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<Worker>,
}

/// What went from and to devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transfers {
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Writes.
    pub writes: u64,
}

/// A VM's CPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Vcpu {
    /// Seconds that its thread ran, in the guest or for it.
    pub cpu_seconds: f64,
    /// How often it left the guest: `all`, and by kind as this host's KVM names them (`io`, `mmio`, `halt` …).
    pub exits: BTreeMap<String, u64>,
}

/// A VM's I/O worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Seconds that it looked for work and found none.
    pub polled_seconds: f64,
    /// Times that the cap on polling sent it to sleep.
    pub capped: u64,
    /// What it serves.
    pub queues: Vec<Queue>,
}

/// A queue of a device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Queue {
    /// The device and the queue's number: `_disk0/1`.
    pub name: String,
    /// Its worker looks into it by itself now.
    pub polled: bool,
    /// For how long it would without work, in nanoseconds.
    pub budget_ns: u64,
}
