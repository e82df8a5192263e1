//! Requests other than the configuration, and answers.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// What `vmm.ping` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmmPingResponse {
    /// The version with its build.
    pub build_version: String,
    /// The version.
    pub version: String,
    /// The monitor's process.
    pub pid: i64,
    /// Optional abilities.
    pub features: Vec<String>,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VmState {
    /// Configured, never booted.
    Created,
    /// Its CPUs run.
    Running,
    /// It was shut down, or shut itself down.
    Shutdown,
    /// Its CPUs and queues stand still.
    Paused,
}

/// What `vm.info` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmInfo {
    /// The configuration, with the names of what was given none.
    pub config: VmConfig,
    /// Where it is in its life.
    pub state: VmState,
    /// Bytes of memory that the guest has.
    pub memory_actual_size: u64,
    /// Devices by name.
    pub device_tree: BTreeMap<String, DeviceNode>,
}

/// A device of a running machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceNode {
    /// Its name.
    pub id: String,
    /// Its PCI address.
    pub pci_bdf: Option<String>,
    /// Devices below it.
    pub children: Vec<String>,
}

/// What `vm.counters` answers: numbers by device, then by name.
pub type VmCounters = BTreeMap<String, BTreeMap<String, u64>>;

/// What `vm.add-disk` and `vm.add-net` answer when the machine runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PciDeviceInfo {
    /// The device's name.
    pub id: String,
    /// Its PCI address.
    pub bdf: String,
}

/// What `vm.remove-device` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRemoveDevice {
    /// The device's name.
    pub id: String,
}

/// What every refused request answers: the error, then each of its causes.
pub type ErrorBody = Vec<String>;
