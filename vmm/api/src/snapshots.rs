//! Snapshots: what is asked, and what is answered.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{ConsoleConfig, CpusConfig, MemoryConfig, NetConfig};

/// What a snapshot's URL begins with.
const SCHEME: &str = "file://";

/// The directory of a snapshot's URL: `file:///var/lib/…`.
pub fn directory(url: &str) -> Option<&Path> {
    let path = Path::new(url.strip_prefix(SCHEME)?);
    (!path.as_os_str().is_empty()).then_some(path)
}

/// How much of memory a snapshot has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// All of it.
    #[default]
    Full,
    /// What was written since the last snapshot, which this one builds on.
    Diff,
}

/// What becomes of the VM after its snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AfterSnapshot {
    /// It is as it was: it goes on if it ran, and stays paused if it was paused.
    #[default]
    Continue,
    /// It is shut down, and its disks stay as they were frozen.
    Stop,
}

/// `vm.snapshot`: freezes memory, devices and disks at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSnapshot {
    /// Where to: `file://` and a directory that does not exist yet; or whoever keeps it, at `unix:PATH` or
    /// `tcp:HOST:PORT`.
    pub destination_url: String,
    /// How much of memory.
    #[serde(default, rename = "type")]
    pub kind: SnapshotKind,
    /// What becomes of the VM.
    #[serde(default)]
    pub after: AfterSnapshot,
    /// Keep note of what the guest writes from now on, for a `diff` later. Each page's first write then
    /// takes a little longer.
    #[serde(default)]
    pub track_dirty: bool,
    /// Copy memory while the guest still runs, and in the pause only what it wrote meanwhile. With
    /// `false` the pause is as long as it takes to copy all of it.
    #[serde(default = "yes")]
    pub live: bool,
    /// The disks' new top layers, which are written from now on. Those not named here get
    /// `<file name>-<snapshot name>.qcow2` beside the layer that is frozen; one that goes elsewhere is called
    /// after its id.
    #[serde(default)]
    pub overlays: Vec<DiskOverlay>,
    /// Over TCP: a directory with this host's `cert.pem` and `key.pem`, and the `ca.pem` of both hosts' authority.
    #[serde(default)]
    pub tls_dir: Option<PathBuf>,
    /// Over TCP, carry the guest's memory without TLS.
    #[serde(default)]
    pub insecure: bool,
}

fn yes() -> bool {
    true
}

/// A disk's new top layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskOverlay {
    /// The disk.
    pub id: String,
    /// A file that does not exist yet.
    pub path: PathBuf,
}

/// What became of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSnapshotInfo {
    /// Its name among all snapshots.
    pub id: String,
    /// How long the guest stood still, in microseconds.
    pub pause_us: u64,
    /// How long all of it took, in microseconds.
    pub total_us: u64,
    /// Bytes of memory that were written.
    pub memory_bytes: u64,
    /// Bytes of memory that were written in the pause.
    pub paused_bytes: u64,
}

/// How memory comes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RestoreMode {
    /// All of it is read, and its checksums compared, before the guest goes on.
    Copy,
    /// It is mapped: a page is read when the guest touches it, and shared with other clones until it
    /// is written.
    #[default]
    Lazy,
    /// A page is fetched when it is touched, into memory that can be shared with other processes or be of
    /// huge pages.
    Userfault,
}

/// `vm.restore`: makes a VM of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRestore {
    /// Where from: `file://` and a snapshot's directory.
    pub source_url: String,
    /// How memory comes back.
    #[serde(default, alias = "memory_restore_mode")]
    pub mode: RestoreMode,
    /// Let the guest go on at once.
    #[serde(default)]
    pub resume: bool,
    /// Only find out what would stand in the way.
    #[serde(default)]
    pub dry_run: bool,
    /// Read the whole memory first and compare its checksums, also where the mode does not need it.
    #[serde(default)]
    pub verify: bool,
    /// Fetch all of memory in the background, at so many bytes a second.
    #[serde(default)]
    pub prefault_bandwidth: Option<u64>,
    /// Keep note of what the guest writes from now on, for a `diff` later.
    #[serde(default)]
    pub track_dirty: bool,
    /// Go on although this host's CPU lacks what the guest was told that it has. A guest that uses it fails,
    /// at any time and in any way: it may crash, and it may go on and be wrong.
    #[serde(default)]
    pub ignore_cpu: bool,
    /// A directory for new top layers of the disks, `<disk>.qcow2` each. The snapshot's own layers are
    /// then only read, so any number of VMs can be made of it.
    #[serde(default)]
    pub overlay_dir: Option<PathBuf>,
    /// The same, for disks by name.
    #[serde(default)]
    pub overlays: Vec<DiskOverlay>,
    /// Go on with the snapshot's own disks. That can be done once: afterwards they are not what the
    /// snapshot was taken with.
    #[serde(default)]
    pub in_place: bool,
    /// What networks are now: `tap`, `mac` and so on, by `id`. Those not named here are as they were.
    #[serde(default)]
    pub net: Vec<NetIdentity>,
    /// Where disks that other processes serve are served now, by `id`.
    #[serde(default)]
    pub disks: Vec<DiskIdentity>,
    /// Where shared directories are served now, by `id`.
    #[serde(default)]
    pub fs: Vec<FsIdentity>,
    /// What the sockets are now.
    #[serde(default)]
    pub vsock: Option<VsockIdentity>,
    /// Where the serial port goes now.
    #[serde(default)]
    pub serial: Option<ConsoleConfig>,
    /// Where the console goes now.
    #[serde(default)]
    pub console: Option<ConsoleConfig>,
}

/// What is another in a clone's network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetIdentity {
    /// The device.
    pub id: String,
    /// Its tap.
    #[serde(default)]
    pub tap: Option<String>,
    /// Its address.
    #[serde(default)]
    pub mac: Option<String>,
    /// The socket of the process that serves it.
    #[serde(default, alias = "socket")]
    pub vhost_socket: Option<PathBuf>,
}

impl NetIdentity {
    /// Changes a network's configuration.
    pub fn apply(&self, net: &mut NetConfig) {
        if let Some(tap) = &self.tap {
            net.tap.clone_from(tap);
        }
        if self.mac.is_some() {
            net.mac.clone_from(&self.mac);
        }
        if self.vhost_socket.is_some() {
            net.vhost_socket.clone_from(&self.vhost_socket);
        }
    }
}

/// What is another with a clone's disk that another process serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskIdentity {
    /// The device.
    pub id: String,
    /// The socket of the process that serves it.
    #[serde(alias = "socket")]
    pub vhost_socket: PathBuf,
}

/// What is another with a clone's shared directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FsIdentity {
    /// The device.
    pub id: String,
    /// The socket of the process that serves it.
    pub socket: PathBuf,
}

/// What is another in a clone's sockets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockIdentity {
    /// Its address.
    #[serde(default)]
    pub cid: Option<u64>,
    /// Its socket on the host.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

/// What a dry run found, and what a restore did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRestoreInfo {
    /// What stands in the way; empty if nothing does.
    pub problems: Vec<String>,
    /// How long it took, in microseconds.
    pub total_us: u64,
}

/// `vm.prepare`: makes a VM ready before it is known what will run in it, so that a restore or a boot of
/// the same size starts sooner.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmPrepare {
    /// Its CPUs.
    #[serde(default)]
    pub cpus: CpusConfig,
    /// Its memory.
    #[serde(default)]
    pub memory: MemoryConfig,
}

impl VmRestore {
    /// A restore of this snapshot as it was, lazily, without new layers.
    pub fn of(source_url: &str) -> VmRestore {
        VmRestore {
            source_url: source_url.to_owned(),
            mode: RestoreMode::default(),
            resume: false,
            dry_run: false,
            verify: false,
            prefault_bandwidth: None,
            track_dirty: false,
            ignore_cpu: false,
            overlay_dir: None,
            overlays: Vec::new(),
            in_place: false,
            net: Vec::new(),
            disks: Vec::new(),
            fs: Vec::new(),
            vsock: None,
            serial: None,
            console: None,
        }
    }
}

/// What becomes of the disks of a VM that goes to another monitor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MigratedDisks {
    /// Both reach them.
    #[default]
    Shared,
    /// Their layers go with the VM.
    Stream,
}

/// `vm.send-migration`: lets the VM go on in another monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSendMigration {
    /// Where the other one waits: `unix:PATH` or `tcp:HOST:PORT`.
    pub destination_url: String,
    /// How long the guest may stand still, in milliseconds; as far as the link allows it.
    #[serde(default = "downtime")]
    pub downtime_ms: u64,
    /// What becomes of the disks.
    #[serde(default)]
    pub disks: MigratedDisks,
    /// Over TCP: a directory with this host's `cert.pem` and `key.pem`, and the `ca.pem` of both hosts' authority.
    #[serde(default)]
    pub tls_dir: Option<PathBuf>,
    /// Over TCP, carry the guest's memory without TLS.
    #[serde(default)]
    pub insecure: bool,
}

impl VmSendMigration {
    /// To `destination_url`, with what is usual.
    pub fn to(destination_url: &str) -> VmSendMigration {
        VmSendMigration {
            destination_url: destination_url.to_owned(),
            downtime_ms: downtime(),
            disks: MigratedDisks::default(),
            tls_dir: None,
            insecure: false,
        }
    }
}

impl VmReceiveMigration {
    /// At `receiver_url`, with everything as it was at the source.
    pub fn at(receiver_url: &str) -> VmReceiveMigration {
        VmReceiveMigration {
            receiver_url: receiver_url.to_owned(),
            disk_dir: None,
            net: Vec::new(),
            vsock: None,
            serial: None,
            console: None,
            tls_dir: None,
            insecure: false,
        }
    }
}

fn downtime() -> u64 {
    300
}

/// `vm.receive-migration`: waits for a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmReceiveMigration {
    /// Where to wait: `unix:PATH` or `tcp:HOST:PORT`.
    pub receiver_url: String,
    /// A directory for the disks, if they come with the VM: `<disk>.<layer>`, the topmost layer is 0.
    #[serde(default)]
    pub disk_dir: Option<PathBuf>,
    /// What networks are here, by `id`.
    #[serde(default)]
    pub net: Vec<NetIdentity>,
    /// What the sockets are here.
    #[serde(default)]
    pub vsock: Option<VsockIdentity>,
    /// Where the serial port goes here.
    #[serde(default)]
    pub serial: Option<ConsoleConfig>,
    /// Where the console goes here.
    #[serde(default)]
    pub console: Option<ConsoleConfig>,
    /// Over TCP: a directory with this host's `cert.pem` and `key.pem`, and the `ca.pem` of both hosts' authority.
    #[serde(default)]
    pub tls_dir: Option<PathBuf>,
    /// Over TCP, take a guest's memory without TLS.
    #[serde(default)]
    pub insecure: bool,
}

/// What became of a migration, as its source saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmMigrationInfo {
    /// How long the guest stood still, in microseconds.
    pub downtime_us: u64,
    /// How long all of it took, in microseconds.
    pub total_us: u64,
    /// Rounds of copying while it ran.
    pub rounds: u32,
    /// Bytes of memory that were sent.
    pub memory_bytes: u64,
    /// How much the guest was slowed down at last, so that the rounds came to an end.
    pub throttled_percent: u32,
}

/// What was recorded of a guest's working set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmWorkingSetInfo {
    /// Bytes of memory that the guest has touched since it was restored.
    pub bytes: u64,
}
