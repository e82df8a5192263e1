//! What a configuration must satisfy before anything is opened: each rule names what breaks it and
//! what to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use skerry_devices::virtio::net::Mac;
use skerry_devices::virtio::queue::MAX_QUEUE_SIZE;
use skerry_devices::virtio::vhost_user::TAG_LEN;
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{ConsoleMode, DiskConfig, FsConfig, NetConfig};
use skerry_vmm_api::workers::{DEFAULT_WORKER, RateLimiterConfig};
use thiserror::Error;

/// Virtual CPUs that a machine may have.
pub const MAX_CPUS: u32 = 64;
const MIN_MEMORY: u64 = 2 << 20;
const PAGE: u64 = 4096;
const MAX_QUEUES: u16 = 64;
/// I/O workers that a machine may have.
const MAX_WORKERS: usize = 64;
/// Names of devices that configurations do not name.
const RESERVED_IDS: [&str; 2] = ["_rng", "_console"];

/// A rule that a configuration breaks.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("there is nothing to boot: give a kernel (--kernel, or payload.kernel)")]
    NoKernel,
    #[error("cpus boot={0}: a machine has 1 to {MAX_CPUS} CPUs")]
    Cpus(u32),
    #[error("cpus max={max}: give boot={boot} to {MAX_CPUS}, or leave max out")]
    MaxCpus { boot: u32, max: u32 },
    #[error("cpus affinity names CPU {0}, which the machine does not have")]
    Affinity(u32),
    #[error("cpus max_phys_bits={0}: give 32 to 52")]
    PhysBits(u8),
    #[error("memory hugepage_size={0} means nothing without hugepages=on: give both or neither")]
    HugePagesOff(u64),
    #[error("`{0}` is the name of a built-in device: give another id")]
    ReservedId(String),
    #[error("memory size={0}: give at least {MIN_MEMORY} bytes, in whole pages of {1}")]
    Memory(u64, u64),
    #[error("memory hugepage_size={0} is no power of two from 4K on")]
    HugePageSize(u64),
    #[error("disk `{0}` has no path: give path=FILE")]
    DiskPath(String),
    #[error(
        "net `{0}` has no tap: give tap=NAME of an interface made with `ip tuntap add dev NAME mode tap`"
    )]
    Tap(String),
    #[error("`{0}` is served by another process: give its socket=PATH (vhost_socket, in JSON)")]
    VhostSocket(String),
    #[error("`{0}` has a socket and is not vhost-user: give vhost_user=on, too")]
    SocketAlone(String),
    #[error(
        "`{id}` {setting}: with vhost_user=on that is the serving process's business, leave it out"
    )]
    VhostUser { id: String, setting: &'static str },
    #[error(
        "`{0}` vhost=on: the kernel serves one queue pair without limits, leave num_queues and the limits out"
    )]
    VhostNet(String),
    #[error("fs tag=`{0}`: give 1 to {TAG_LEN} bytes")]
    FsTag(String),
    #[error("`{id}` num_queues={queues}: give 1 to {MAX_QUEUES}")]
    Queues { id: String, queues: u16 },
    #[error(
        "`{id}` num_queues={queues}: a network device has two queues a pair, so give an even number up to {MAX_QUEUES}"
    )]
    QueuePairs { id: String, queues: u16 },
    #[error("`{id}` queue_size={size}: give a power of two from 2 to {MAX_QUEUE_SIZE}")]
    QueueSize { id: String, size: u16 },
    #[error("`{id}` mac={mac} is no unicast Ethernet address like 52:54:00:12:34:56")]
    Mac { id: String, mac: String },
    #[error("`{id}` mtu={mtu}: give 68 to 65535")]
    Mtu { id: String, mtu: u16 },
    #[error("rng src={0}: the host kernel's generator is /dev/urandom or /dev/random")]
    Rng(PathBuf),
    #[error("vsock cid={0}: 0 to 2 and 4294967295 are reserved, give one between")]
    Cid(u64),
    #[error("the {0} goes to a file and names none: give file=PATH")]
    ConsoleFile(&'static str),
    #[error("the {0} goes to a socket and names none: give socket=PATH")]
    ConsoleSocket(&'static str),
    #[error("both serial and console use the terminal: switch one of them off")]
    TwoOnTty,
    #[error("worker name `{0}`: give 1 to 15 letters, digits, `-`, `_` or `.`")]
    WorkerName(String),
    #[error("two workers are called `{0}`: give them different names")]
    DuplicateWorker(String),
    #[error("{0} workers: a machine has at most {MAX_WORKERS}")]
    Workers(usize),
    #[error(
        "`{id}` worker={worker}: there is no such worker, declare it with --worker name={worker} (workers, in JSON)"
    )]
    NoWorker { id: String, worker: String },
    #[error("poll_cap={0}: give percent of one host CPU, from 1 on, or leave it out")]
    PollCap(u32),
    #[error(
        "`{id}` rate limit: size and refill_time (milliseconds) are both at least 1 and at most 2^40"
    )]
    RateLimit { id: String },
    #[error("two devices are called `{0}`: give them different ids")]
    DuplicateId(String),
}

/// Checks CPUs and memory alone.
pub fn size(config: &mut VmConfig) -> Result<(), ConfigError> {
    cpus(config)?;
    memory(config)
}

/// Gives unnamed devices names and checks every rule.
pub fn check(config: &mut VmConfig) -> Result<(), ConfigError> {
    name_devices(config);
    if config.payload.kernel.is_none() {
        return Err(ConfigError::NoKernel);
    }
    cpus(config)?;
    memory(config)?;
    for disk in &config.disks {
        self::disk(disk)?;
    }
    for net in &config.net {
        self::net(net)?;
    }
    for fs in &config.fs {
        self::fs(fs)?;
    }
    if let Some(rng) = &config.rng
        && ![Path::new("/dev/urandom"), Path::new("/dev/random")].contains(&rng.src.as_path())
    {
        return Err(ConfigError::Rng(rng.src.clone()));
    }
    if let Some(vsock) = &config.vsock
        && !(3..u64::from(u32::MAX)).contains(&vsock.cid)
    {
        return Err(ConfigError::Cid(vsock.cid));
    }
    for (console, name) in [
        (&config.serial, "serial port"),
        (&config.console, "console"),
    ] {
        if console.mode == ConsoleMode::File && console.file.is_none() {
            return Err(ConfigError::ConsoleFile(name));
        }
        if console.mode == ConsoleMode::Socket && console.socket.is_none() {
            return Err(ConfigError::ConsoleSocket(name));
        }
    }
    if config.serial.mode == ConsoleMode::Tty && config.console.mode == ConsoleMode::Tty {
        return Err(ConfigError::TwoOnTty);
    }
    workers(config)?;
    unique_ids(config)
}

fn workers(config: &VmConfig) -> Result<(), ConfigError> {
    if config.workers.len() > MAX_WORKERS {
        return Err(ConfigError::Workers(config.workers.len()));
    }
    if config.poll_cap == Some(0) {
        return Err(ConfigError::PollCap(0));
    }
    let mut names = BTreeSet::from([DEFAULT_WORKER]);
    let mut seen = BTreeSet::new();
    for worker in &config.workers {
        let name = worker.name.as_str();
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 15 || !name.chars().all(fits) {
            return Err(ConfigError::WorkerName(name.to_owned()));
        }
        names.insert(name);
        if !seen.insert(name) {
            return Err(ConfigError::DuplicateWorker(name.to_owned()));
        }
    }
    let disks = config.disks.iter().map(|d| (&d.id, &d.worker));
    let users = disks.chain(config.net.iter().map(|n| (&n.id, &n.worker)));
    for (device, worker) in users {
        if let Some(worker) = worker
            && !names.contains(worker.as_str())
        {
            return Err(ConfigError::NoWorker {
                id: id(device),
                worker: worker.clone(),
            });
        }
    }
    Ok(())
}

/// Checks a device's limits.
fn rate_limit(
    device: &Option<String>,
    limit: Option<&RateLimiterConfig>,
) -> Result<(), ConfigError> {
    const MOST: u64 = 1 << 40;
    let sides = limit.map(|l| [l.bandwidth, l.ops]).unwrap_or_default();
    let fits = |n: u64| (1..=MOST).contains(&n);
    let good = sides
        .iter()
        .flatten()
        .all(|b| fits(b.size) && fits(b.refill_time) && b.one_time_burst.is_none_or(|n| n <= MOST));
    match good {
        true => Ok(()),
        false => Err(ConfigError::RateLimit { id: id(device) }),
    }
}

/// Cloud Hypervisor's names for what was given none: `_disk0`, `_net1`, ….
fn name_devices(config: &mut VmConfig) {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    taken.extend(config.disks.iter().filter_map(|d| d.id.clone()));
    taken.extend(config.net.iter().filter_map(|n| n.id.clone()));
    taken.extend(config.fs.iter().filter_map(|f| f.id.clone()));
    let mut fresh = |kind: &str, id: &mut Option<String>| {
        if id.is_none() {
            let name = (0..)
                .map(|i| format!("_{kind}{i}"))
                .find(|n| !taken.contains(n));
            taken.extend(name.clone());
            *id = name;
        }
    };
    for disk in &mut config.disks {
        fresh("disk", &mut disk.id);
    }
    for net in &mut config.net {
        fresh("net", &mut net.id);
    }
    for fs in &mut config.fs {
        fresh("fs", &mut fs.id);
    }
    if let Some(vsock) = &mut config.vsock {
        fresh("vsock", &mut vsock.id);
    }
}

fn cpus(config: &VmConfig) -> Result<(), ConfigError> {
    let cpus = &config.cpus;
    if !(1..=MAX_CPUS).contains(&cpus.boot_vcpus) {
        return Err(ConfigError::Cpus(cpus.boot_vcpus));
    }
    if !(32..=52).contains(&cpus.max_phys_bits) {
        return Err(ConfigError::PhysBits(cpus.max_phys_bits));
    }
    if cpus.max_vcpus != 0 && !(cpus.boot_vcpus..=MAX_CPUS).contains(&cpus.max_vcpus) {
        return Err(ConfigError::MaxCpus {
            boot: cpus.boot_vcpus,
            max: cpus.max_vcpus,
        });
    }
    match cpus.affinity.iter().find(|a| a.vcpu >= cpus.boot_vcpus) {
        Some(affinity) => Err(ConfigError::Affinity(affinity.vcpu)),
        None => Ok(()),
    }
}

fn memory(config: &VmConfig) -> Result<(), ConfigError> {
    let memory = &config.memory;
    let mut page = PAGE;
    if let (false, Some(size)) = (memory.hugepages, memory.hugepage_size) {
        return Err(ConfigError::HugePagesOff(size));
    }
    if memory.hugepages {
        page = memory.hugepage_size.unwrap_or(2 << 20);
        if !page.is_power_of_two() || page < PAGE {
            return Err(ConfigError::HugePageSize(page));
        }
    }
    if memory.size < MIN_MEMORY || !memory.size.is_multiple_of(page) {
        return Err(ConfigError::Memory(memory.size, page));
    }
    Ok(())
}

fn id(id: &Option<String>) -> String {
    id.clone().unwrap_or_default()
}

/// Checks a disk's rules.
pub fn disk(disk: &DiskConfig) -> Result<(), ConfigError> {
    if disk.vhost_user {
        let own = [
            ("path", !disk.path.as_os_str().is_empty()),
            ("readonly", disk.readonly),
            ("direct", disk.direct),
            ("image_type", disk.image_type.is_some()),
            ("backing", !disk.backing.is_empty()),
            ("data_file", disk.data_file.is_some()),
            ("cache_size", disk.cache_size.is_some()),
            ("serial", disk.serial.is_some()),
            ("rate limits", disk.rate_limiter_config.is_some()),
        ];
        vhost_user(&disk.id, disk.vhost_socket.as_deref(), &own)?;
    } else if disk.vhost_socket.is_some() {
        return Err(ConfigError::SocketAlone(id(&disk.id)));
    } else if disk.path.as_os_str().is_empty() {
        return Err(ConfigError::DiskPath(id(&disk.id)));
    }
    if !(1..=MAX_QUEUES).contains(&disk.num_queues) {
        return Err(ConfigError::Queues {
            id: id(&disk.id),
            queues: disk.num_queues,
        });
    }
    rate_limit(&disk.id, disk.rate_limiter_config.as_ref())?;
    queue_size(&disk.id, disk.queue_size)
}

/// Checks a network device's rules.
pub fn net(net: &NetConfig) -> Result<(), ConfigError> {
    if net.vhost_user {
        let own = [
            ("tap", !net.tap.is_empty()),
            ("vhost", net.vhost),
            ("mtu", net.mtu.is_some()),
            ("num_queues", net.num_queues != 2),
            ("rate limits", net.rate_limiter_config.is_some()),
        ];
        vhost_user(&net.id, net.vhost_socket.as_deref(), &own)?;
    } else if net.vhost_socket.is_some() {
        return Err(ConfigError::SocketAlone(id(&net.id)));
    } else if net.tap.is_empty() {
        return Err(ConfigError::Tap(id(&net.id)));
    }
    if net.vhost && (net.num_queues != 2 || net.rate_limiter_config.is_some()) {
        return Err(ConfigError::VhostNet(id(&net.id)));
    }
    if !(2..=MAX_QUEUES).contains(&net.num_queues) || !net.num_queues.is_multiple_of(2) {
        return Err(ConfigError::QueuePairs {
            id: id(&net.id),
            queues: net.num_queues,
        });
    }
    if let Some(mac) = &net.mac {
        parse_mac(mac).ok_or_else(|| ConfigError::Mac {
            id: id(&net.id),
            mac: mac.clone(),
        })?;
    }
    if let Some(mtu @ ..68) = net.mtu {
        return Err(ConfigError::Mtu {
            id: id(&net.id),
            mtu,
        });
    }
    rate_limit(&net.id, net.rate_limiter_config.as_ref())?;
    queue_size(&net.id, net.queue_size)
}

/// Checks a shared directory's rules.
fn fs(fs: &FsConfig) -> Result<(), ConfigError> {
    if !(1..=TAG_LEN).contains(&fs.tag.len()) {
        return Err(ConfigError::FsTag(fs.tag.clone()));
    }
    if fs.socket.as_os_str().is_empty() {
        return Err(ConfigError::VhostSocket(id(&fs.id)));
    }
    if !(1..MAX_QUEUES).contains(&fs.num_queues) {
        return Err(ConfigError::Queues {
            id: id(&fs.id),
            queues: fs.num_queues,
        });
    }
    queue_size(&fs.id, fs.queue_size)
}

/// Checks a device that another process serves; `own` are settings that are that process's, and whether
/// they are given.
fn vhost_user(
    device: &Option<String>,
    socket: Option<&Path>,
    own: &[(&'static str, bool)],
) -> Result<(), ConfigError> {
    if socket.is_none_or(|socket| socket.as_os_str().is_empty()) {
        return Err(ConfigError::VhostSocket(id(device)));
    }
    match own.iter().find(|(_, given)| *given) {
        Some((setting, _)) => Err(ConfigError::VhostUser {
            id: id(device),
            setting,
        }),
        None => Ok(()),
    }
}

fn queue_size(device: &Option<String>, size: u16) -> Result<(), ConfigError> {
    if size.is_power_of_two() && (2..=MAX_QUEUE_SIZE).contains(&size) {
        Ok(())
    } else {
        Err(ConfigError::QueueSize {
            id: id(device),
            size,
        })
    }
}

fn unique_ids(config: &VmConfig) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    let vsock = config.vsock.as_ref().and_then(|v| v.id.as_ref());
    let ids = config.disks.iter().filter_map(|d| d.id.as_ref());
    let ids = ids
        .chain(config.net.iter().filter_map(|n| n.id.as_ref()))
        .chain(config.fs.iter().filter_map(|f| f.id.as_ref()))
        .chain(vsock);
    for id in ids {
        if RESERVED_IDS.contains(&id.as_str()) {
            return Err(ConfigError::ReservedId(id.clone()));
        }
        if !seen.insert(id) {
            return Err(ConfigError::DuplicateId(id.clone()));
        }
    }
    Ok(())
}

/// A unicast Ethernet address.
pub fn parse_mac(text: &str) -> Option<Mac> {
    const MULTICAST: u8 = 1;
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        *byte = (part.len() == 2)
            .then(|| u8::from_str_radix(part, 16).ok())
            .flatten()?;
    }
    (parts.next().is_none() && mac[0] & MULTICAST == 0).then_some(mac)
}

/// A locally administered address made from a name: the same name gives the same address.
pub fn mac_of(name: &str) -> Mac {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let b = hash.to_le_bytes();
    [
        0x52,
        0x54,
        b[0] ^ b[4],
        b[1] ^ b[5],
        b[2] ^ b[6],
        b[3] ^ b[7],
    ]
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod tests;
