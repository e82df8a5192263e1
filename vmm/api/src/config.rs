//! A machine's configuration: one type for flags and for JSON.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::inert::{self, Ignored, Inert};
use crate::workers::{RateLimiterConfig, WorkerConfig};

/// A whole machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// Virtual CPUs.
    pub cpus: CpusConfig,
    /// Memory.
    pub memory: MemoryConfig,
    /// What is booted.
    #[serde(deserialize_with = "null_is_default")]
    pub payload: PayloadConfig,
    /// Block devices, in the order in which the guest finds them.
    #[serde(deserialize_with = "null_is_default")]
    pub disks: Vec<DiskConfig>,
    /// Network devices.
    #[serde(deserialize_with = "null_is_default")]
    pub net: Vec<NetConfig>,
    /// Entropy device; null leaves it out.
    pub rng: Option<RngConfig>,
    /// The 16550 serial port (ttyS0).
    pub serial: ConsoleConfig,
    /// The virtio console (hvc0).
    #[serde(default = "console_default")]
    pub console: ConsoleConfig,
    /// Sockets between host and guest.
    pub vsock: Option<VsockConfig>,
    /// A port through which the guest's kernel reports its panic.
    pub pvpanic: bool,
    /// I/O workers beside `io`, or other settings for that one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub workers: Vec<WorkerConfig>,
    /// What all workers together may spend on looking for work that does not come: percent of one
    /// CPU. No limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_cap: Option<u32>,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub balloon: Inert,
    /// Shared directories.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub fs: Vec<FsConfig>,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pmem: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub devices: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub user_devices: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub generic_vhost_user: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub vdpa: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub numa: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub iommu: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub watchdog: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing, deserialize_with = "inert::debug_console")]
    pub debug_console: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub rtc: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_segments: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing, deserialize_with = "inert::platform")]
    pub platform: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub tpm: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub rate_limit_groups: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub landlock_enable: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub landlock_rules: Inert,
}

impl Default for VmConfig {
    fn default() -> Self {
        VmConfig {
            cpus: CpusConfig::default(),
            memory: MemoryConfig::default(),
            payload: PayloadConfig::default(),
            disks: Vec::new(),
            net: Vec::new(),
            rng: Some(RngConfig::default()),
            serial: ConsoleConfig::default(),
            console: console_default(),
            vsock: None,
            pvpanic: false,
            workers: Vec::new(),
            poll_cap: None,
            balloon: Inert,
            fs: Vec::new(),
            pmem: Inert,
            devices: Inert,
            user_devices: Inert,
            generic_vhost_user: Inert,
            vdpa: Inert,
            numa: Inert,
            iommu: Inert,
            watchdog: Inert,
            debug_console: Inert,
            rtc: Inert,
            pci_segments: Inert,
            platform: Inert,
            tpm: Inert,
            rate_limit_groups: Inert,
            landlock_enable: Inert,
            landlock_rules: Inert,
        }
    }
}

fn null_is_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn console_default() -> ConsoleConfig {
    ConsoleConfig {
        mode: ConsoleMode::Tty,
        file: None,
        ..ConsoleConfig::default()
    }
}

/// Virtual CPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CpusConfig {
    /// How many the guest starts with.
    #[serde(alias = "boot")]
    pub boot_vcpus: u32,
    /// How many it may have at most; 0 means as many as it starts with.
    #[serde(alias = "max")]
    pub max_vcpus: u32,
    /// Which host CPUs each of them may run on.
    #[serde(deserialize_with = "null_is_default")]
    pub affinity: Vec<CpuAffinity>,
    /// Physical address bits shown to the guest at most.
    pub max_phys_bits: u8,
    /// Whether the guest sees the hardware's virtualisation.
    pub nested: bool,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub topology: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub kvm_hyperv: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub features: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing, deserialize_with = "inert::core_scheduling")]
    pub core_scheduling: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing, deserialize_with = "inert::profile")]
    pub profile: Inert,
}

impl Default for CpusConfig {
    fn default() -> Self {
        CpusConfig {
            boot_vcpus: 1,
            max_vcpus: 0,
            affinity: Vec::new(),
            max_phys_bits: 46,
            nested: true,
            topology: Inert,
            kvm_hyperv: Inert,
            features: Inert,
            core_scheduling: Inert,
            profile: Inert,
        }
    }
}

/// Where one virtual CPU may run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuAffinity {
    /// The virtual CPU.
    pub vcpu: u32,
    /// Host CPUs.
    pub host_cpus: Vec<usize>,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// Other processes may map it (it is a memfd either way).
    pub shared: bool,
    /// Backed by huge pages.
    pub hugepages: bool,
    /// Their size in bytes; the host's default if absent.
    pub hugepage_size: Option<u64>,
    /// Touch all of it before the guest starts.
    pub prefault: bool,
    /// Same pages may be merged (KSM).
    pub mergeable: bool,
    /// Transparent huge pages.
    pub thp: bool,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub hotplug_size: Ignored,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub hotplugged_size: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub hotplug_method: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub zones: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub reserve: Inert,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig {
            size: 512 << 20,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            mergeable: false,
            thp: true,
            hotplug_size: Ignored,
            hotplugged_size: Inert,
            hotplug_method: Inert,
            zones: Inert,
            reserve: Inert,
        }
    }
}

/// What is booted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PayloadConfig {
    /// A kernel: an ELF with a PVH entry, or a bzImage.
    pub kernel: Option<PathBuf>,
    /// Its command line.
    pub cmdline: Option<String>,
    /// Its initial file system.
    pub initramfs: Option<PathBuf>,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub firmware: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub igvm: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub host_data: Inert,
}

/// How an image is laid out. It is never guessed from the image's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImageType {
    /// The disk's bytes.
    #[default]
    #[serde(alias = "raw")]
    Raw,
    /// QEMU's copy-on-write format.
    #[serde(alias = "qcow2")]
    Qcow2,
}

/// A layer below a disk's image: `qcow2:PATH`, `raw:PATH` or a path, which is qcow2; or an object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LayerConfig {
    /// As text.
    Text(String),
    /// With all that it can have.
    Full(FullLayerConfig),
}

/// A layer below a disk's image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FullLayerConfig {
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub image_type: ImageType,
    /// The file with its data, if that is not in its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_file: Option<PathBuf>,
}

impl LayerConfig {
    /// The layer's file, format and data file.
    pub fn full(&self) -> FullLayerConfig {
        match self {
            LayerConfig::Full(full) => full.clone(),
            LayerConfig::Text(text) => {
                let (image_type, path) = match text.split_once(':') {
                    Some(("raw", path)) => (ImageType::Raw, path),
                    Some(("qcow2", path)) => (ImageType::Qcow2, path),
                    _ => (ImageType::Qcow2, text.as_str()),
                };
                FullLayerConfig {
                    path: path.into(),
                    image_type,
                    data_file: None,
                }
            }
        }
    }
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// A file or block device.
    pub path: PathBuf,
    /// Refuse writes.
    pub readonly: bool,
    /// Bypass the host's page cache.
    pub direct: bool,
    /// Queues; one a virtual CPU is the most that is useful.
    pub num_queues: u16,
    /// Descriptors a queue, a power of two.
    pub queue_size: u16,
    /// The image's format. If absent: qcow2 for a disk with `backing` or `data_file`, else raw.
    pub image_type: Option<ImageType>,
    /// The layers below the image, the uppermost first. Only these are opened, whatever the images
    /// say lies below them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backing: Vec<LayerConfig>,
    /// The file with the image's data, if that is not in its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<PathBuf>,
    /// Bytes of tables that its layers together keep in memory; 1M if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_size: Option<u64>,
    /// Its name in the API; `_diskN` if absent.
    pub id: Option<String>,
    /// What the guest reads as its serial number; the id if absent.
    pub serial: Option<String>,
    /// The I/O worker that serves its queues; `io` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How much it may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub iommu: Inert,
    /// Another process serves it, over a socket (vhost-user).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub vhost_user: bool,
    /// That process's socket.
    #[serde(alias = "socket", skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<PathBuf>,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub rate_limit_group: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_segment: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_device_id: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub queue_affinity: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub backing_files: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub sparse: Ignored,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub lock_granularity: Ignored,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub disable_io_uring: Ignored,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub disable_aio: Ignored,
}

impl DiskConfig {
    /// The image's format: what was said, or what follows from the rest.
    pub fn format(&self) -> ImageType {
        self.image_type.unwrap_or_else(|| {
            if self.backing.is_empty() && self.data_file.is_none() {
                ImageType::Raw
            } else {
                ImageType::Qcow2
            }
        })
    }
}

impl Default for DiskConfig {
    fn default() -> Self {
        DiskConfig {
            path: PathBuf::new(),
            readonly: false,
            direct: false,
            num_queues: 1,
            queue_size: 128,
            image_type: None,
            backing: Vec::new(),
            data_file: None,
            cache_size: None,
            id: None,
            serial: None,
            worker: None,
            rate_limiter_config: None,
            iommu: Inert,
            vhost_user: false,
            vhost_socket: None,
            rate_limit_group: Inert,
            pci_segment: Inert,
            pci_device_id: Inert,
            queue_affinity: Inert,
            backing_files: Inert,
            sparse: Ignored,
            lock_granularity: Ignored,
            disable_io_uring: Ignored,
            disable_aio: Ignored,
        }
    }
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetConfig {
    /// A tap interface, which exists already.
    #[serde(deserialize_with = "null_is_default")]
    pub tap: String,
    /// The guest's Ethernet address; one made from the tap's name if absent.
    pub mac: Option<String>,
    /// The MTU that the guest is told.
    pub mtu: Option<u16>,
    /// Queues, two a pair.
    pub num_queues: u16,
    /// Descriptors a queue, a power of two.
    pub queue_size: u16,
    /// Its name in the API; `_netN` if absent.
    pub id: Option<String>,
    /// Offer TCP segmentation offload.
    pub offload_tso: bool,
    /// Offer checksum offload.
    pub offload_csum: bool,
    /// The host's kernel moves the frames (vhost-net), and not a worker.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub vhost: bool,
    /// The I/O worker that serves its queues; `io` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How much it may receive, and how much it may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    #[doc(hidden)]
    #[serde(skip_serializing, deserialize_with = "inert::ip")]
    pub ip: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing, deserialize_with = "inert::mask")]
    pub mask: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub host_mac: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub iommu: Inert,
    /// Another process serves it, over a socket (vhost-user).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub vhost_user: bool,
    /// That process's socket.
    #[serde(alias = "socket", skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<PathBuf>,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_segment: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_device_id: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub offload_ufo: Ignored,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub vhost_mode: Ignored,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub fds: Inert,
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            tap: String::new(),
            mac: None,
            mtu: None,
            num_queues: 2,
            queue_size: 256,
            id: None,
            offload_tso: true,
            offload_csum: true,
            vhost: false,
            worker: None,
            rate_limiter_config: None,
            ip: Inert,
            mask: Inert,
            host_mac: Inert,
            iommu: Inert,
            vhost_user: false,
            vhost_socket: None,
            pci_segment: Inert,
            pci_device_id: Inert,
            offload_ufo: Ignored,
            vhost_mode: Ignored,
            fds: Inert,
        }
    }
}

/// A directory of the host that the guest can mount, served by a process such as virtiofsd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FsConfig {
    /// What the guest mounts it by; 1 to 36 bytes.
    pub tag: String,
    /// The serving process's socket (vhost-user).
    pub socket: PathBuf,
    /// Queues for requests, beside the one for urgent ones.
    pub num_queues: u16,
    /// Descriptors a queue, a power of two.
    pub queue_size: u16,
    /// Its name in the API; `_fsN` if absent.
    pub id: Option<String>,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_segment: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_device_id: Inert,
}

impl Default for FsConfig {
    fn default() -> Self {
        FsConfig {
            tag: String::new(),
            socket: PathBuf::new(),
            num_queues: 1,
            queue_size: 1024,
            id: None,
            pci_segment: Inert,
            pci_device_id: Inert,
        }
    }
}

/// An entropy device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RngConfig {
    /// `/dev/urandom` or `/dev/random`: both are the host kernel's generator.
    pub src: PathBuf,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub iommu: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub id: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_segment: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_device_id: Inert,
}

impl Default for RngConfig {
    fn default() -> Self {
        RngConfig {
            src: "/dev/urandom".into(),
            iommu: Inert,
            id: Inert,
            pci_segment: Inert,
            pci_device_id: Inert,
        }
    }
}

/// Where a console's bytes go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConsoleMode {
    /// No device.
    Off,
    /// A device that nobody listens to.
    #[default]
    Null,
    /// The monitor's standard input and output.
    Tty,
    /// A new pseudo-terminal, named by `vm.info`.
    Pty,
    /// A file, written only.
    File,
    /// A socket to which several may connect: they see what was said last and what is said, and may type.
    Socket,
}

/// A serial port or console.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where its bytes go.
    pub mode: ConsoleMode,
    /// The file for [`ConsoleMode::File`]; a log of bounded size, if one is wanted, beside a
    /// [`ConsoleMode::Socket`]; the pseudo-terminal for [`ConsoleMode::Pty`] in answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The socket for [`ConsoleMode::Socket`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub iommu: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub id: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_segment: Inert,
    #[doc(hidden)]
    #[serde(skip_serializing)]
    pub pci_device_id: Inert,
}

/// Sockets between host and guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u64,
    /// The Unix socket that the host's side connects to (`CONNECT port`), and whose name with
    /// `_port` behind it is where the guest's connections go.
    pub socket: PathBuf,
    /// Its name in the API.
    #[serde(default)]
    pub id: Option<String>,
    #[doc(hidden)]
    #[serde(default, skip_serializing)]
    pub iommu: Inert,
    #[doc(hidden)]
    #[serde(default, skip_serializing)]
    pub pci_segment: Inert,
    #[doc(hidden)]
    #[serde(default, skip_serializing)]
    pub pci_device_id: Inert,
}
