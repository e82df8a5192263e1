//! A monitor as a process of its own, which outlives us.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::time::timeout;

use super::PATIENCE;
use super::home::Home;
use super::process::Process;
use super::sockets::Sockets;
use crate::model::MicroVmSpec;
use crate::network::Tap;
use crate::runtime::{End, RuntimeError, system};

/// A monitor.
#[derive(Clone)]
pub struct Monitor(Process);

/// The program, and how it is started.
pub struct Vmm {
    path: PathBuf,
    /// Monitors find out whether this host's KVM can run Linux.
    probe: bool,
    sockets: Sockets,
}

impl Vmm {
    /// The one at `path`.
    pub fn new(path: &Path, probe: bool) -> Vmm {
        Vmm {
            path: path.to_owned(),
            probe,
            sockets: Sockets::new(),
        }
    }

    /// Starts a monitor in a folder, with its socket there.
    pub fn start(&self, home: &Home, arguments: &[String]) -> Result<Monitor, RuntimeError> {
        let socket = format!("path={}", home.socket().display());
        let mut all = vec!["--api-socket".to_owned(), socket];
        if !self.probe {
            all.push("--no-probe".to_owned());
        }
        all.extend_from_slice(arguments);
        Monitor::spawn(&self.path, &all, home)
    }

    /// Starts one without a VM, in a folder that is made if need be, and waits until it listens.
    pub async fn start_empty(&self, home: &Home) -> Result<Monitor, RuntimeError> {
        home.make().map_err(system("make the monitor's folder"))?;
        let monitor = self.start(home, &["--end-with-vm".to_owned()])?;
        let listens = self.listens(home, &monitor).await;
        match listens && !monitor.has_ended() {
            true => Ok(monitor),
            false => {
                monitor.kill();
                monitor.ended().await;
                Err(RuntimeError::Stillborn(home.last_words()))
            }
        }
    }

    /// Waits until a monitor listens or has ended; false if it does neither.
    pub async fn listens(&self, home: &Home, monitor: &Monitor) -> bool {
        let either = async {
            tokio::select! {
                () = self.sockets.appears(home) => {}
                () = monitor.ended() => {}
            }
        };
        timeout(PATIENCE, either).await.is_ok()
    }
}

impl Monitor {
    /// Starts one. The folder's lock is its standard input, which has nothing to read: whatever becomes of us,
    /// it is held as long as the monitor lives, from before it listens on its socket.
    fn spawn(vmm: &Path, arguments: &[String], home: &Home) -> Result<Monitor, RuntimeError> {
        let lock = home.take().map_err(system("lock the VM's folder"))?;
        let lock = lock.ok_or_else(|| {
            RuntimeError::Unfit(
                "another monitor has the VM's folder: it is starting, or ending".into(),
            )
        })?;
        home.forget_run().map_err(system("clean the VM's folder"))?;
        let log = |path: &Path| {
            let mut options = File::options();
            options.append(true).create(true).mode(0o600);
            options
                .open(path)
                .map_err(system(format!("open {}", path.display())))
        };
        let mut command = Command::new(vmm);
        command
            .args(arguments)
            .stdin(lock)
            .stdout(log(&home.log())?)
            .stderr(log(&home.log())?)
            .current_dir("/")
            // What ends us by our terminal is not for it.
            .process_group(0);
        let child = command
            .spawn()
            .map_err(system(format!("start {}", vmm.display())))?;
        let watched = Process::of_child(child).map_err(system("watch the monitor"))?;
        Ok(Monitor(watched))
    }

    /// The one that listens on a socket, if there is one.
    pub fn adopt(socket: &Path) -> Option<Monitor> {
        let stream = UnixStream::connect(socket).ok()?;
        // Those of a socket that is listened on are the listener's.
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        let monitor = Monitor(Process::of_pid(peer.pid).ok()?);
        // As long as it can be connected to, that number is still its.
        UnixStream::connect(socket).ok().map(|_| monitor)
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        self.0.ended().await;
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    /// Ends it, whatever it does.
    pub fn kill(&self) {
        self.0.kill();
    }

    /// How it ended.
    pub fn end(&self, home: &Home) -> End {
        use std::os::unix::process::ExitStatusExt;
        let Some(status) = self.0.status() else {
            return End {
                well: false,
                how: "it ended; how, only the agent that started it could know".to_owned(),
            };
        };
        let how = match (status.code(), status.signal()) {
            (Some(0), _) => "the guest shut down".to_owned(),
            (Some(code), _) => format!("exit code {code}: {}", home.last_words()),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "it ended in an unknown way".to_owned(),
        };
        End {
            well: status.success(),
            how,
        }
    }
}

/// The command line of a monitor that boots a kernel.
pub fn arguments(
    home: &Home,
    spec: &MicroVmSpec,
    disks: &[String],
) -> Result<Vec<String>, RuntimeError> {
    let mut all: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: String| all.extend([format!("--{name}"), value]);
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| RuntimeError::Unfit(format!("{} is no UTF-8", path.display())))
    };
    let (console, log) = (home.console_socket(), home.console());
    let serial = format!("socket={},file={}", console.display(), log.display());
    let boot = &spec.boot;
    if let Some(kernel) = &boot.kernel {
        flag("kernel", text(kernel)?);
    }
    if let Some(initramfs) = &boot.initramfs {
        flag("initramfs", text(initramfs)?);
    }
    if !boot.cmdline.is_empty() {
        flag("cmdline", boot.cmdline.clone());
    }
    flag("cpus", format!("boot={}", spec.cpus));
    let pages = if spec.hugepages { ",hugepages=on" } else { "" };
    flag("memory", format!("size={}{pages}", spec.memory.whole()));
    for disk in disks {
        flag("disk", disk.clone());
    }
    if spec.vsock {
        flag("vsock", format!("cid=3,socket={}", home.vsock().display()));
    }
    flag("serial", serial);
    flag("console", "off".to_owned());
    Ok(all)
}

/// Gives a VM that boots its shares.
pub fn add_shares(arguments: &mut Vec<String>, shares: Vec<String>) {
    for share in shares {
        arguments.extend(["--fs".to_owned(), share]);
    }
}

/// Gives a VM that boots its ports: devices, and words for its kernel.
pub fn add_networks(arguments: &mut Vec<String>, taps: &[Tap], words: &str) {
    for tap in taps {
        arguments.push("--net".to_owned());
        arguments.push(format!("tap={},mac={}", tap.name, tap.mac));
    }
    if words.is_empty() {
        return;
    }
    match arguments.iter().position(|flag| flag == "--cmdline") {
        Some(at) => {
            let line = arguments.get_mut(at + 1);
            line.into_iter()
                .for_each(|line| *line = format!("{line} {words}"));
        }
        None => arguments.extend(["--cmdline".to_owned(), words.to_owned()]),
    }
}
