//! Machines that are kept in a snapshot and go on from it, by our monitor and by Firecracker.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::api::{Api, Sent};
use crate::command::{MachineSpec, command_with_api};
use crate::peer::{Kind, Peer};
use crate::running::Running;
use crate::size::Size;

/// What the payload prints when it is ready to be kept: from here on it prints dots and nothing else.
const TICKING: &[u8] = b"# tick: ready\n.";
/// What it says when it was told to halt.
pub const HALTED: &[u8] = b"# tick: halted";
/// The byte that tells it so.
pub const HALT: &[u8] = b"h";
/// What a machine that goes on prints first.
pub const DOT: u8 = b'.';

/// How memory comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is mapped.
    Lazy,
    /// It is read.
    Copy,
}

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Mode::Lazy => "lazy",
            Mode::Copy => "copy",
        }
    }
}

/// A machine that ticks, in a snapshot.
pub struct Kept {
    monitor: Peer,
    directory: PathBuf,
    memory: Size,
}

impl Kept {
    /// Starts a machine whose payload runs `tick`, and keeps it in `directory`, which is made.
    pub fn take(monitor: &Peer, machine: &MachineSpec, directory: &Path) -> Result<Kept> {
        let folder = tempfile::tempdir().context("temporary directory")?;
        let socket = folder.path().join("api");
        let mut command = command_with_api(&monitor.plain(), machine, folder.path(), &socket)?;
        let mut running = Running::start(&mut command)?;
        running.wait_for(TICKING)?;
        let api = Api::wait(&socket)?;
        let kept = Kept {
            monitor: monitor.clone(),
            directory: directory.to_owned(),
            memory: machine.memory,
        };
        match monitor.kind {
            Kind::Skerry => {
                let request = json!({ "destination_url": kept.url(), "after": "stop" });
                api.put("/api/v1/vm.snapshot", &request)?;
            }
            Kind::Firecracker => kept.take_of_firecracker(&api)?,
            kind => bail!("{}'s snapshots are not driven here", kind.name()),
        }
        Ok(kept)
    }

    fn take_of_firecracker(&self, api: &Api) -> Result<()> {
        std::fs::create_dir(&self.directory)
            .with_context(|| self.directory.display().to_string())?;
        let paused = json!({ "state": "Paused" });
        api.send("PATCH", "/vm", &paused)?.answer()?;
        let request = json!({
            "snapshot_type": "Full", "snapshot_path": self.state(), "mem_file_path": self.memory(),
        });
        api.put("/snapshot/create", &request)?;
        // It writes all of the memory, also what nobody has touched. As holes that takes no more of the page
        // cache than ours does; without util-linux it stays as it is.
        let dug = Command::new("fallocate")
            .arg("--dig-holes")
            .arg(self.memory())
            .status();
        if !dug.is_ok_and(|status| status.success()) {
            eprintln!("{} stays without holes", self.memory().display());
        }
        Ok(())
    }

    /// Which monitor keeps it.
    pub fn monitor(&self) -> &Peer {
        &self.monitor
    }

    /// How much memory it has.
    pub fn size(&self) -> Size {
        self.memory
    }

    /// The file of its memory.
    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn url(&self) -> String {
        format!("file://{}", self.directory.display())
    }

    /// A process of our monitor that goes on from it by itself. `overlays` is a directory for its disks' new
    /// layers.
    pub fn restoring(&self, mode: Mode, overlays: Option<&Path>) -> Command {
        let mut command = Command::new(&self.monitor.path);
        let mut option = format!("source_url={},mode={}", self.url(), mode.word());
        if let Some(overlays) = overlays {
            option += &format!(",overlay_dir={}", overlays.display());
        }
        command.args(["--no-probe", "--restore", &option]);
        command.args(["--serial", "tty", "--console", "off"]);
        command
    }

    /// A process of its monitor that waits on `socket` to be told what to go on from.
    pub fn waiting(&self, socket: &Path) -> Command {
        let mut command = Command::new(&self.monitor.path);
        match self.monitor.kind {
            Kind::Firecracker => {
                command.arg("--api-sock").arg(socket);
                command.args(["--log-path", "/dev/null", "--level", "Error"]);
            }
            _ => {
                command.arg("--no-probe").arg("--api-socket").arg(socket);
            }
        }
        command
    }

    /// Makes a waiting process ready for a machine of this size, where that can be done.
    pub fn prepare(&self, api: &Api) -> Result<()> {
        if self.monitor.kind == Kind::Skerry {
            let size =
                json!({ "cpus": { "boot_vcpus": 1 }, "memory": { "size": self.memory.bytes() } });
            api.put("/api/v1/vm.prepare", &size)?;
        }
        Ok(())
    }

    /// Tells a waiting process to go on from it. Firecracker has no modes: it maps.
    pub fn load(&self, api: &Api, mode: Mode, overlays: Option<&Path>) -> Result<Sent> {
        if self.monitor.kind == Kind::Firecracker {
            let request = json!({
                "snapshot_path": self.state(), "resume_vm": true,
                "mem_backend": { "backend_type": "File", "backend_path": self.memory() },
            });
            return api.send("PUT", "/snapshot/load", &request);
        }
        let mut request = json!({ "source_url": self.url(), "mode": mode.word(), "resume": true });
        if let Some(overlays) = overlays {
            request["overlay_dir"] = json!(overlays);
        }
        api.send("PUT", "/api/v1/vm.restore", &request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(monitor: &str) -> Kept {
        Kept {
            monitor: monitor.parse().unwrap(),
            directory: "/s".into(),
            memory: "128M".parse().unwrap(),
        }
    }

    fn words(command: &Command) -> String {
        let words: Vec<_> = command.get_args().map(|w| w.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn each_clone_has_layers_of_its_own() {
        let mut ours = kept("firecracker=/f");
        ours.monitor.kind = Kind::Skerry;
        let command = words(&ours.restoring(Mode::Lazy, Some(Path::new("/c/7"))));
        assert!(
            command.contains("source_url=file:///s,mode=lazy,overlay_dir=/c/7 "),
            "{command}"
        );
        let command = words(&ours.restoring(Mode::Copy, None));
        assert!(
            command.contains("source_url=file:///s,mode=copy "),
            "{command}"
        );
    }

    #[test]
    fn each_monitor_waits_in_its_own_words() {
        let command = words(&kept("firecracker=/f").waiting(Path::new("/a")));
        assert!(command.starts_with("--api-sock /a "), "{command}");
        let mut ours = kept("firecracker=/f");
        ours.monitor.kind = Kind::Skerry;
        let command = words(&ours.waiting(Path::new("/a")));
        assert!(command.ends_with("--api-socket /a"), "{command}");
    }
}
