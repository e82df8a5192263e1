//! The command line: Cloud Hypervisor's flags, into the API's configuration type.

use std::path::PathBuf;

use clap::Parser;
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{
    ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, FsConfig, MemoryConfig, NetConfig,
    PayloadConfig, RngConfig, VsockConfig,
};
use skerry_vmm_api::options::{OptionError, from_str};
use skerry_vmm_api::snapshots::VmRestore;
use skerry_vmm_api::workers::WorkerConfig;

/// One microVM on KVM.
///
/// Give a kernel to boot a VM, an API socket to be told what to boot, or both.
#[derive(Debug, Parser)]
#[command(name = "skerry-vmm", version, max_term_width = 100)]
pub struct Args {
    /// Serve the API on this Unix socket: path=SOCKET, or SOCKET
    #[arg(long, value_name = "path=SOCKET", value_parser = socket)]
    pub api_socket: Option<PathBuf>,

    /// Kernel: an x86-64 ELF vmlinux or a bzImage
    #[arg(long, value_name = "FILE", help_heading = "VM")]
    pub kernel: Option<PathBuf>,

    /// Initial file system
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = "VM")]
    pub initramfs: Option<PathBuf>,

    /// A snapshot to go on from.
    #[arg(help = "source_url=file://DIR[,mode=lazy|copy|userfault][,overlay_dir=DIR|,in_place=on][,verify=on][,track_dirty=on][,ignore_cpu=on][,prefault_bandwidth=BYTES][,disks=[ID@SOCKET,…]][,fs=[ID@SOCKET,…]][,resume=off]: go on from a snapshot", long, value_name = "source_url=file://DIR,…", value_parser = restore, conflicts_with_all = ["kernel", "cpus", "memory", "disk", "net", "fs", "vsock", "rng", "pvpanic", "worker", "poll_cap"], help_heading = "VM")]
    pub restore: Option<VmRestore>,

    /// The kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        allow_hyphen_values = true,
        help_heading = "VM"
    )]
    pub cmdline: Option<String>,

    /// CPUs.
    #[arg(help = "boot=N[,affinity=[VCPU@[HOST,…],…]][,max_phys_bits=N][,nested=on|off]", long, value_name = "boot=N,…", value_parser = from_str::<CpusConfig>, help_heading = "VM")]
    pub cpus: Option<CpusConfig>,

    /// Memory.
    #[arg(help = "size=BYTES[,hugepages=on[,hugepage_size=BYTES]][,prefault=on][,mergeable=on][,thp=off]", long, value_name = "size=N,…", value_parser = from_str::<MemoryConfig>, help_heading = "VM")]
    pub memory: Option<MemoryConfig>,

    /// Disks.
    #[arg(help = "path=FILE | vhost_user=on,socket=PATH [,readonly=on][,direct=on][,image_type=raw][,num_queues=N][,queue_size=N][,id=ID][,serial=TEXT][,worker=NAME][,bw_size=BYTES,bw_refill_time=MS][,ops_size=N,ops_refill_time=MS]; repeatable", long, value_name = "path=FILE,…", value_parser = from_str::<DiskConfig>, num_args = 1.., help_heading = "VM")]
    pub disk: Vec<DiskConfig>,

    /// Network devices.
    #[arg(help = "tap=NAME[,vhost=on] | vhost_user=on,socket=PATH [,mac=MAC][,mtu=N][,num_queues=N][,queue_size=N][,offload_tso=off][,offload_csum=off][,id=ID][,worker=NAME][,bw_size=BYTES,bw_refill_time=MS][,ops_size=N,ops_refill_time=MS]; repeatable", long, value_name = "tap=NAME,…", value_parser = from_str::<NetConfig>, num_args = 1.., help_heading = "VM")]
    pub net: Vec<NetConfig>,

    /// Shared directories.
    #[arg(help = "tag=TAG,socket=PATH[,num_queues=N][,queue_size=N][,id=ID]: a directory that virtiofsd serves on that socket; repeatable", long, value_name = "tag=TAG,…", value_parser = from_str::<FsConfig>, num_args = 1.., help_heading = "VM")]
    pub fs: Vec<FsConfig>,

    /// cid=N,socket=PATH: sockets between host and guest
    #[arg(long, value_name = "cid=N,socket=PATH", value_parser = from_str::<VsockConfig>, help_heading = "VM")]
    pub vsock: Option<VsockConfig>,

    /// src=/dev/urandom, or off: the entropy device, which is there by default
    #[arg(long, value_name = "src=FILE|off", num_args = 0..=1, default_missing_value = "src=/dev/urandom", value_parser = rng, help_heading = "VM")]
    pub rng: Option<Rng>,

    /// Serial port (ttyS0): tty, pty, null, off, file=PATH or socket=PATH[,file=LOG] [default: null]
    #[arg(long, value_name = "MODE", value_parser = console, help_heading = "VM")]
    pub serial: Option<ConsoleConfig>,

    /// Console (hvc0): tty, pty, null, off, file=PATH or socket=PATH[,file=LOG] [default: tty]
    #[arg(long, value_name = "MODE", value_parser = console, help_heading = "VM")]
    pub console: Option<ConsoleConfig>,

    /// Let the guest's kernel report its panic
    #[arg(long, help_heading = "VM")]
    pub pvpanic: bool,

    /// I/O workers.
    #[arg(help = "name=NAME[,poll-max-ns=NS|inf][,affinity=[HOST,…]]: a thread that serves the queues of devices given worker=NAME; `io` serves the others [default: poll-max-ns=32000]; repeatable", long, value_name = "name=NAME,…", value_parser = from_str::<WorkerConfig>, num_args = 1.., help_heading = "VM")]
    pub worker: Vec<WorkerConfig>,

    /// What all I/O workers together may spend on polling in vain: percent of one host CPU
    #[arg(long, value_name = "PERCENT", help_heading = "VM")]
    pub poll_cap: Option<u32>,

    /// End when the guest resets itself, instead of starting it again
    #[arg(long)]
    pub no_reboot: bool,

    /// End with the VM that the API makes, as with one that flags give
    #[arg(long, requires = "api_socket")]
    pub end_with_vm: bool,

    /// Boot without finding out first whether this KVM can run Linux
    #[arg(long)]
    pub no_probe: bool,

    /// Find out whether this KVM can run Linux, and end: 0 if it can, 3 if it cannot
    #[arg(long, conflicts_with_all = ["kernel", "api_socket", "no_probe"])]
    pub probe_only: bool,

    /// System call filters: true, log (report, don't kill) or false
    #[arg(long, value_name = "true|log|false", default_value = "true")]
    pub seccomp: crate::sandbox::Mode,

    /// Say more: -v information, -vv details
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A VM that the command line gives runs, unless something else is said.
fn restore(text: &str) -> Result<VmRestore, OptionError> {
    let silent = !text.split(',').any(|word| word.starts_with("resume="));
    let mut restore: VmRestore = from_str(text)?;
    restore.resume |= silent;
    Ok(restore)
}

/// The entropy device, or none.
#[derive(Debug, Clone)]
pub struct Rng(Option<RngConfig>);

fn rng(text: &str) -> Result<Rng, OptionError> {
    Ok(Rng(if text == "off" {
        None
    } else {
        Some(from_str(text)?)
    }))
}

fn socket(text: &str) -> Result<PathBuf, String> {
    if text.starts_with("fd=") {
        return Err("an inherited descriptor cannot be served: give path=SOCKET".into());
    }
    let path = text.strip_prefix("path=").unwrap_or(text);
    if path.is_empty() {
        Err("give path=SOCKET".into())
    } else {
        Ok(path.into())
    }
}

fn console(text: &str) -> Result<ConsoleConfig, String> {
    let mode = match text {
        "tty" => ConsoleMode::Tty,
        "pty" => ConsoleMode::Pty,
        "null" => ConsoleMode::Null,
        "off" => ConsoleMode::Off,
        _ => return console_at(text),
    };
    Ok(ConsoleConfig {
        mode,
        ..ConsoleConfig::default()
    })
}

/// A console with a file, or with a socket and perhaps a log.
fn console_at(text: &str) -> Result<ConsoleConfig, String> {
    let wrong = || "give tty, pty, null, off, file=PATH or socket=PATH[,file=LOG]".to_owned();
    let path = |path: &str| match path {
        "" => Err(wrong()),
        path => Ok(Some(path.into())),
    };
    if let Some(file) = text.strip_prefix("file=") {
        return Ok(ConsoleConfig {
            mode: ConsoleMode::File,
            file: path(file)?,
            ..ConsoleConfig::default()
        });
    }
    let rest = text.strip_prefix("socket=").ok_or_else(wrong)?;
    let (socket, log) = match rest.split_once(",file=") {
        Some((socket, log)) => (socket, path(log)?),
        None => (rest, None),
    };
    Ok(ConsoleConfig {
        mode: ConsoleMode::Socket,
        socket: path(socket)?,
        file: log,
        ..ConsoleConfig::default()
    })
}

impl Args {
    /// The snapshot to go on from, with what other flags say of it.
    pub fn restored(&self) -> Option<VmRestore> {
        let mut restore = self.restore.clone()?;
        restore.serial = self.serial.clone().or(restore.serial);
        restore.console = self.console.clone().or(restore.console);
        Some(restore)
    }

    /// The VM that the flags describe; none if they name no kernel.
    pub fn vm(&self) -> Option<VmConfig> {
        let kernel = self.kernel.clone()?;
        let mut config = VmConfig {
            cpus: self.cpus.clone().unwrap_or_default(),
            memory: self.memory.clone().unwrap_or_default(),
            payload: PayloadConfig {
                kernel: Some(kernel),
                cmdline: self.cmdline.clone(),
                initramfs: self.initramfs.clone(),
                ..PayloadConfig::default()
            },
            disks: self.disk.clone(),
            net: self.net.clone(),
            fs: self.fs.clone(),
            vsock: self.vsock.clone(),
            pvpanic: self.pvpanic,
            workers: self.worker.clone(),
            poll_cap: self.poll_cap,
            ..VmConfig::default()
        };
        if let Some(Rng(rng)) = &self.rng {
            config.rng = rng.clone();
        }
        if let Some(serial) = &self.serial {
            config.serial = serial.clone();
        }
        match &self.console {
            Some(console) => config.console = console.clone(),
            // The terminal can be the serial port's by saying so once.
            None if config.serial.mode == ConsoleMode::Tty => {
                config.console.mode = ConsoleMode::Off
            }
            None => {}
        }
        Some(config)
    }
}
