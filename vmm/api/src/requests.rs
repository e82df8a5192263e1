//! Requests other than the configuration, and answers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{ImageType, VmConfig};
use crate::workers::WorkerInfo;

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

/// What `vm.usage` answers: all that is counted, for whoever looks again and again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmUsage {
    /// Numbers of devices, as `vm.counters` has them.
    pub devices: VmCounters,
    /// How often each CPU left its guest: all of them (`exits`), and by kind, as this host's KVM names them. Without
    /// KVM's statistics there are none.
    pub cpus: Vec<BTreeMap<String, u64>>,
    /// Workers and their queues, as `vm.workers` has them.
    pub workers: Vec<WorkerInfo>,
}

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

/// What `vm.resize-disk` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmResizeDisk {
    /// The disk's name.
    pub id: String,
    /// Bytes that it is to have.
    pub desired_size: u64,
}

/// What `vm.disk-snapshot` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDiskSnapshot {
    /// The disk's name.
    pub id: String,
    /// The new layer's file, which must not exist yet.
    pub path: PathBuf,
}

/// What `vm.disk-snapshot` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiskSnapshotInfo {
    /// The disk's layers now, the top first.
    pub layers: Vec<DiskLayerInfo>,
    /// How long requests waited, in microseconds.
    pub pause_us: u64,
}

/// What `vm.disk-commit` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDiskCommit {
    /// The disk's name.
    pub id: String,
    /// The layer that is merged into the one below it, counted from the top, which is 0.
    #[serde(default)]
    pub layer: usize,
}

/// What `vm.disk-stream` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDiskStream {
    /// The disk's name.
    pub id: String,
    /// The uppermost layer that stays below the top, counted from it; if absent, none stays.
    #[serde(default)]
    pub base: Option<usize>,
}

/// What `vm.disk-backup` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDiskBackup {
    /// The disk's name.
    pub id: String,
    /// The backup's file, a qcow2 image, which must not exist yet. It has this name when it is
    /// complete.
    pub path: PathBuf,
    /// Copy only what this bitmap says was written, and clear it.
    #[serde(default)]
    pub bitmap: Option<String>,
    /// The backup before this one, on which this one lies: written into its header.
    #[serde(default)]
    pub backing: Option<PathBuf>,
}

/// What the calls about a disk's bitmaps take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDiskBitmap {
    /// The disk's name.
    pub id: String,
    /// The bitmap's name.
    pub name: String,
    /// Bytes that one bit stands for, a power of two; 64 KiB if absent. For a new bitmap.
    #[serde(default)]
    pub granularity: Option<u64>,
}

/// What `vm.disk-cancel` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDiskCancel {
    /// The job's number.
    pub job: u64,
}

/// Where a disk's job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DiskJobState {
    /// Under way.
    Running,
    /// Done.
    Done,
    /// Ended by `vm.disk-cancel`.
    Cancelled,
    /// Failed.
    Failed,
}

/// Long work on a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiskJobInfo {
    /// Its number.
    pub job: u64,
    /// The disk's name.
    pub id: String,
    /// `commit`, `stream` or `backup`.
    pub kind: String,
    /// Where it stands.
    pub state: DiskJobState,
    /// Bytes that were looked at or copied.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Why it failed: the error and its causes.
    pub error: Vec<String>,
}

/// A layer of a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiskLayerInfo {
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub image_type: ImageType,
    /// Bytes of the guest's disk in it.
    pub size: u64,
}

/// A bitmap of a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiskBitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// Bytes that were written since it was made or cleared, by whole bits.
    pub dirty: u64,
}

/// A disk of a running machine, as `vm.disks` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiskInfo {
    /// Its name.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Its layers, the top first.
    pub layers: Vec<DiskLayerInfo>,
    /// Its bitmaps.
    pub bitmaps: Vec<DiskBitmapInfo>,
}

/// What every refused request answers: the error, then each of its causes.
pub type ErrorBody = Vec<String>;
