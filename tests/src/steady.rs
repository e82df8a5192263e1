//! A guest that checks itself (the payload's `steady`), and what outlives its monitors: disks, snapshots,
//! and the echo server that it talks to.

use std::path::{Path, PathBuf};

use skerry_vmm_api::config::{ConsoleConfig, ConsoleMode};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{
    AfterSnapshot, SnapshotKind, VmRestore, VmSnapshot, VmSnapshotInfo,
};
use tempfile::TempDir;

use crate::Api;
use crate::disk::{self, qemu_img};
use crate::vmm::{Builder, Exit, SHORT, Vmm};
use crate::vsock::EchoServer;

/// The port of the host that the guest talks to.
pub const PORT: u32 = 5000;
/// Bytes of its disk: more than it writes.
const DISK_SIZE: u64 = 4 << 20;
/// Its disk's name.
pub const DISK: &str = "_disk0";
/// The ways in which memory comes back, as flags call them.
pub const MODES: [&str; 3] = ["lazy", "copy", "userfault"];

/// Its belongings.
pub struct Steady {
    /// It goes before the folder that its socket is in.
    _echo: EchoServer,
    folder: TempDir,
}

impl Steady {
    /// Nothing but a folder with a raw disk `base.img`, and the echo server of the socket `vsock`.
    pub fn new() -> Steady {
        let folder = TempDir::new().expect("a folder");
        disk::create(&folder.path().join("base.img"), DISK_SIZE);
        let echo = EchoServer::start(&folder.path().join("vsock"), PORT);
        Steady {
            _echo: echo,
            folder,
        }
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What is in its folder, sorted.
    pub fn names(&self) -> Vec<String> {
        names(self.folder.path())
    }

    /// Makes a folder in its folder.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).expect("a folder");
        path
    }

    /// A monitor that boots it on its raw disk, with its sockets and an API. `words` are more arguments of
    /// the task.
    pub fn boot(&self, words: &str) -> Builder {
        self.boot_on(&format!("path={}", self.path("base.img").display()), words)
    }

    /// The same on another disk.
    pub fn boot_on(&self, disk: &str, words: &str) -> Builder {
        self.boot_after("", disk, words)
    }

    /// A monitor that boots it with so much memory in use that a snapshot takes its time, and with its raw
    /// disk alone. It works if `rounds` is more than none, and then waits for the power button.
    pub fn boot_large(&self, rounds: u64) -> Builder {
        let tasks = format!("run=steady:mem=384:disk=0:rounds={rounds} off=wait-power-button");
        Builder::payload_with_memory(&tasks, "size=512M")
            .flag(
                "--disk",
                format!("path={}", self.path("base.img").display()),
            )
            .with_api()
    }

    /// The same after other tasks, each with a comma behind it.
    pub fn boot_after(&self, tasks: &str, disk: &str, words: &str) -> Builder {
        let tasks = format!("run={tasks}steady:disk=0:vsock={PORT}:say=20{words} off=acpi");
        Builder::payload_with_memory(&tasks, "size=64M")
            .flag("--disk", disk)
            .flag(
                "--vsock",
                format!("cid=3,socket={}", self.path("vsock").display()),
            )
            .with_api()
    }

    /// A qcow2 disk of two layers with two queues.
    pub fn layered(&self) -> String {
        let (base, top) = (self.path("base.img"), self.path("top.qcow2"));
        let below = base.display().to_string();
        let words = ["create", "-q", "-f", "qcow2", "-b", &below, "-F", "raw"];
        qemu_img(&words, &[&top], &[]);
        format!("path={},backing=[raw:{below}],num_queues=2", top.display())
    }

    /// A monitor that goes on from a snapshot, with an API. `options` are more of `--restore`.
    pub fn restore(&self, snapshot: &str, options: &str) -> Builder {
        restoring(&self.path(snapshot), options)
    }

    /// The same with new layers of the disks in the monitor's own folder, so that they go with it.
    pub fn restore_aside(&self, snapshot: &str, options: &str) -> Builder {
        let builder = Builder::new(&["--no-probe", "--serial", "tty"]);
        let aside = builder.path("");
        let source = source(&self.path(snapshot));
        let option = format!("{source},overlay_dir={},{options}", aside.display());
        builder
            .flag("--restore", option.trim_end_matches(','))
            .with_api()
    }

    /// Asks for a full snapshot called `name`.
    pub fn full(&self, name: &str) -> VmSnapshot {
        full(&self.path(name))
    }

    /// Asks for what was written since the last one.
    pub fn diff(&self, name: &str) -> VmSnapshot {
        VmSnapshot {
            kind: SnapshotKind::Diff,
            track_dirty: true,
            ..self.full(name)
        }
    }

    /// Keeps a guest in a full snapshot.
    pub fn keep(&self, api: &Api, name: &str) -> VmSnapshotInfo {
        api.keep(&self.full(name))
    }

    /// Boots it, keeps it in the snapshot `name` while it works, and kills the monitor.
    pub fn boot_and_keep(&self, name: &str) {
        let vmm = started(self.boot(""));
        self.keep(&vmm.api(), name);
    }

    /// Asks for a VM made of a snapshot whose serial port is the monitor's standard output.
    pub fn again(&self, name: &str, overlay_dir: Option<&Path>) -> VmRestore {
        again(&self.path(name), overlay_dir)
    }
}

impl Default for Steady {
    fn default() -> Self {
        Steady::new()
    }
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("a folder").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

/// A monitor that goes on from a snapshot anywhere, with an API. `options` are more of `--restore`.
pub fn restoring(snapshot: &Path, options: &str) -> Builder {
    let option = format!("{},{options}", source(snapshot));
    Builder::new(&["--no-probe", "--serial", "tty"])
        .flag("--restore", option.trim_end_matches(','))
        .with_api()
}

fn source(snapshot: &Path) -> String {
    format!("source_url={}", url(snapshot))
}

/// A directory's URL.
pub fn url(directory: &Path) -> String {
    format!("file://{}", directory.display())
}

/// Asks for a full snapshot in `directory`.
pub fn full(directory: &Path) -> VmSnapshot {
    VmSnapshot {
        destination_url: url(directory),
        kind: SnapshotKind::Full,
        after: AfterSnapshot::Continue,
        track_dirty: false,
        live: true,
        overlays: Vec::new(),
        tls_dir: None,
        insecure: false,
    }
}

/// Asks for a running VM made of the snapshot in `directory`, with its serial port on standard output.
pub fn again(directory: &Path, overlay_dir: Option<&Path>) -> VmRestore {
    VmRestore {
        resume: true,
        overlay_dir: overlay_dir.map(Path::to_owned),
        serial: Some(ConsoleConfig {
            mode: ConsoleMode::Tty,
            ..ConsoleConfig::default()
        }),
        ..VmRestore::of(&url(directory))
    }
}

/// Starts a monitor and waits until its guest has checked itself a while.
pub fn started(builder: Builder) -> Vmm {
    let vmm = builder.start();
    works(&vmm);
    vmm
}

/// Waits until the guest has checked itself a while more.
pub fn works(vmm: &Vmm) {
    let rounds = || vmm.lines().iter().filter(|l| l.contains(ROUND)).count();
    vmm.expect_nth_line(ROUND, rounds() + 2, SHORT);
}

const ROUND: &str = "# steady: round=";

/// Lets the guest check everything once more and end; panics unless all was as it should be.
pub fn finish(mut vmm: Vmm) -> Exit {
    vmm.type_text("q");
    let exit = vmm.wait(SHORT);
    assert_eq!(exit.code, Some(0), "{exit}");
    exit.ok("steady");
    exit
}

/// The same where the monitor was told of its VM by the API, and so stays when the guest ends.
pub fn finish_and_shut_down(mut vmm: Vmm) -> Exit {
    vmm.type_text("q");
    vmm.expect_line("skerry-payload: done ok=", SHORT);
    let api = vmm.api();
    api.expect_state(VmState::Shutdown, SHORT);
    api.act(Operation::VmmShutdown);
    let exit = vmm.wait(SHORT);
    assert_eq!(exit.code, Some(0), "{exit}");
    exit.ok("steady");
    exit
}

/// How often the guest's connection to the host was made anew.
pub fn reconnects(exit: &Exit) -> u64 {
    let value = exit.value("steady", "reconnects");
    value.parse().expect("a number")
}
