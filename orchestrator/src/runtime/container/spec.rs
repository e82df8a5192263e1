//! What a container is made of, as its owner says it, and what became of it.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
pub use skerry_exec::{ExecSpec, TerminalSize};

use super::image::Image;

/// How many processes a container may have if it is not said.
pub const PROCESSES: u32 = 4096;

/// What a container is to be. Everything but the image has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// The image, prepared.
    pub image: Image,
    /// What runs instead of the image's entry point.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// The arguments, instead of the image's. With a `command`, the image's are not used either.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Environment variables, which override the image's.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The working directory, instead of the image's.
    #[serde(default)]
    pub working_dir: Option<PathBuf>,
    /// Who it runs as, instead of the image's user: `uid`, `uid:gid`, or names that the image knows.
    #[serde(default)]
    pub user: Option<String>,
    /// Its host name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Whether its root cannot be written.
    #[serde(default)]
    pub read_only: bool,
    /// What it sees of the host's files, and what it has in memory.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    /// Capabilities beside the default ones, as `CAP_NET_ADMIN`.
    #[serde(default)]
    pub add_capabilities: Vec<String>,
    /// Default capabilities that it does not get. `ALL` takes all of them.
    #[serde(default)]
    pub drop_capabilities: Vec<String>,
    /// Whether set-uid programs raise nobody.
    #[serde(default = "yes")]
    pub no_new_privileges: bool,
    /// Whether system calls are filtered that containers have no use for.
    #[serde(default = "yes")]
    pub seccomp: bool,
    /// Its network.
    #[serde(default)]
    pub network: Network,
    /// Its cgroup, from the root of every hierarchy. `/skerry/ID` if absent.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// What it may use.
    #[serde(default)]
    pub limits: ResourceLimits,
    /// What is kept of its output.
    #[serde(default)]
    pub log: LogLimits,
    /// What makes its namespaces.
    #[serde(default)]
    pub runtime: Runtime,
    /// What its owner wants to find again: not looked at here.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

impl ContainerSpec {
    /// A container that does what its image says, with the defaults.
    pub fn of(image: Image) -> ContainerSpec {
        ContainerSpec {
            image,
            command: None,
            args: None,
            env: Vec::new(),
            working_dir: None,
            user: None,
            hostname: None,
            read_only: false,
            mounts: Vec::new(),
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            no_new_privileges: true,
            seccomp: true,
            network: Network::default(),
            cgroup: None,
            limits: ResourceLimits::default(),
            log: LogLimits::default(),
            runtime: Runtime::default(),
            labels: Default::default(),
        }
    }
}

/// Something mounted into a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MountSpec {
    /// A file or directory of the host.
    Bind {
        /// Where it is on the host.
        source: PathBuf,
        /// Where the container sees it.
        target: PathBuf,
        /// Whether the container may only read it.
        read_only: bool,
    },
    /// A file system in memory.
    Memory {
        /// Where the container sees it.
        target: PathBuf,
        /// How much it may hold, in bytes.
        size: u64,
    },
}

/// A container's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Network {
    /// A namespace of its own with nothing in it but the loopback.
    #[default]
    New,
    /// A namespace that its owner made, by its path.
    Path(PathBuf),
    /// The host's.
    Host,
}

/// What a container may use. What is absent is not limited, but for processes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceLimits {
    /// Thousandths of a CPU that it may use.
    #[serde(default)]
    pub cpu_milli: Option<u32>,
    /// Its share of busy CPUs, in thousandths of a CPU that it asked for.
    #[serde(default)]
    pub cpu_request_milli: Option<u32>,
    /// The CPUs that it runs on, as `0-3,8`.
    #[serde(default)]
    pub cpus: Option<String>,
    /// Memory in bytes. Nothing of it is swapped beyond that.
    #[serde(default)]
    pub memory: Option<u64>,
    /// How many processes and threads there may be.
    #[serde(default)]
    pub processes: Option<u32>,
}

/// What is kept of a container's output.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLimits {
    /// How long one file may grow, in bytes.
    pub file_size: u64,
    /// How many files there are: the one that is written and older ones.
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> LogLimits {
        LogLimits {
            file_size: 16 << 20,
            files: 4,
        }
    }
}

/// What makes a container's namespaces and starts its first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Runtime {
    /// The library that is built in.
    #[default]
    BuiltIn,
    /// A program with runc's command line, by its path or name.
    Program(PathBuf),
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// It was made and not started.
    Created,
    /// It is being started.
    Starting,
    /// It runs.
    Running(Started),
    /// It ended.
    Exited(Exit),
    /// What looked after it was killed: `adopt` ends what is left of it.
    Lost,
}

/// A container that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its first process, as the host numbers it.
    pub pid: i32,
    /// When it was started.
    pub at: SystemTime,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code; 128 and the signal's number if it was killed by one.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// When it was started, if it was.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub ended: SystemTime,
    /// How many of its processes the kernel killed for want of memory: none if it did not run out.
    pub oom_kills: u64,
    /// What happened, if it did not end by itself.
    pub reason: Option<String>,
}
