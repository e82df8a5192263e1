//! The programs that are compared, and how each is told to run the same machine with its serial port on stdout.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::size::Size;

/// What the payload says first.
const HELLO: &[u8] = b"skerry-payload: hello";
/// How long a program may say nothing.
const SILENCE: Duration = Duration::from_secs(10);
const EXIT_POLL: Duration = Duration::from_millis(1);

/// The programs to compare, from the command line.
#[derive(Args)]
pub struct PeerArguments {
    /// PVH ELF of the payload
    #[arg(long)]
    pub kernel: PathBuf,
    /// Skerry's monitor [default: `skerry-vmm` beside this program]
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// Another monitor to compare with: firecracker=PATH or cloud-hypervisor=PATH
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<Peer>,
    /// Guest memory
    #[arg(long, default_value = "128M")]
    pub memory: Size,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

impl PeerArguments {
    /// Skerry, if it is there, and the peers that were named.
    pub fn monitors(&self) -> Result<Vec<Peer>> {
        let mut peers = Vec::new();
        let beside = std::env::current_exe()
            .context("own path")?
            .with_file_name("skerry-vmm");
        match &self.vmm {
            Some(path) => peers.push(Peer {
                kind: Kind::Skerry,
                path: path.clone(),
            }),
            None if beside.exists() => peers.push(Peer {
                kind: Kind::Skerry,
                path: beside,
            }),
            None => {
                eprintln!("no skerry-vmm beside this program and no --vmm: measuring without it")
            }
        }
        peers.extend(self.peers.iter().cloned());
        for peer in &peers {
            if !peer.path.is_file() {
                bail!("{}: {} is not a program", peer.name(), peer.path.display());
            }
        }
        Ok(peers)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bare,
    Skerry,
    Firecracker,
    CloudHypervisor,
}

/// A program that can run the payload.
#[derive(Clone)]
pub struct Peer {
    kind: Kind,
    path: PathBuf,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not NAME=PATH"))?;
        let kind = match name {
            "firecracker" => Kind::Firecracker,
            "cloud-hypervisor" => Kind::CloudHypervisor,
            _ => {
                return Err(format!(
                    "`{name}` is neither firecracker nor cloud-hypervisor"
                ));
            }
        };
        Ok(Self {
            kind,
            path: path.into(),
        })
    }
}

/// The machine that every peer gets: one vCPU and this.
pub struct MachineSpec<'a> {
    pub kernel: &'a Path,
    pub cmdline: &'a str,
    pub memory: Size,
    pub disk: Option<&'a Path>,
    pub tap: Option<&'a str>,
}

impl Peer {
    /// The floor: this program's own `bare` command.
    pub fn bare() -> Result<Self> {
        Ok(Self {
            kind: Kind::Bare,
            path: std::env::current_exe().context("own path")?,
        })
    }

    /// Its name in results.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Bare => "bare",
            Kind::Skerry => "skerry",
            Kind::Firecracker => "firecracker",
            Kind::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// The command that runs a machine. `directory` takes a configuration file, if the peer wants one.
    pub fn command(&self, machine: &MachineSpec, directory: &Path) -> Result<Command> {
        let mut command = Command::new(&self.path);
        let memory = machine.memory.bytes();
        match self.kind {
            Kind::Bare => {
                command.arg("bare").arg("--kernel").arg(machine.kernel);
                command.arg("--memory").arg(memory.to_string());
                command.args(["--cmdline", machine.cmdline]);
            }
            Kind::Firecracker => {
                let path = directory.join("firecracker.json");
                let text = serde_json::to_vec_pretty(&firecracker_configuration(machine))?;
                std::fs::write(&path, text).with_context(|| path.display().to_string())?;
                command.arg("--no-api").arg("--config-file").arg(path);
            }
            Kind::Skerry | Kind::CloudHypervisor => {
                if self.kind == Kind::Skerry {
                    command.arg("--no-probe");
                }
                command.arg("--kernel").arg(machine.kernel);
                command.args(["--cmdline", machine.cmdline, "--cpus", "boot=1"]);
                command
                    .arg("--memory")
                    .arg(format!("size={}M", memory >> 20));
                command.args(["--serial", "tty", "--console", "off"]);
                if let Some(disk) = machine.disk {
                    command
                        .arg("--disk")
                        .arg(format!("path={},image_type=raw", disk.display()));
                }
                if let Some(tap) = machine.tap {
                    command.arg("--net").arg(format!("tap={tap}"));
                }
            }
        }
        Ok(command)
    }
}

fn firecracker_configuration(machine: &MachineSpec) -> serde_json::Value {
    let drives = machine.disk.map(|disk| {
        json!({
            "drive_id": "disk", "path_on_host": disk, "is_root_device": false, "is_read_only": false,
        })
    });
    let interfaces = machine
        .tap
        .map(|tap| json!({ "iface_id": "net", "host_dev_name": tap }));
    json!({
        "boot-source": { "kernel_image_path": machine.kernel, "boot_args": machine.cmdline },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": machine.memory.bytes() >> 20 },
        "drives": drives.into_iter().collect::<Vec<_>>(),
        "network-interfaces": interfaces.into_iter().collect::<Vec<_>>(),
    })
}

/// A peer that is running, and what it has printed. It ends with this value.
pub struct Running {
    child: Child,
    stdout: ChildStdout,
    /// Each piece of output with its time.
    output: Vec<(Duration, Vec<u8>)>,
    /// What it says on stderr, for when it fails.
    errors: File,
    started: Instant,
}

impl Running {
    /// Starts a command; its clock starts just before that.
    pub fn start(command: &mut Command) -> Result<Self> {
        let errors = tempfile::tempfile().context("temporary file")?;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(errors.try_clone().context("temporary file")?);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self {
            child,
            stdout,
            output: Vec::new(),
            errors,
            started,
        })
    }

    /// Reads one more piece of output; false at its end, or when none comes.
    fn read(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        let patience = Timespec::try_from(SILENCE).context("patience")?;
        if poll(
            &mut [PollFd::new(&self.stdout, PollFlags::IN)],
            Some(&patience),
        )
        .context("poll")?
            == 0
        {
            return Ok(false);
        }
        let length = self
            .stdout
            .read(&mut buffer)
            .context("reading the output")?;
        self.output
            .push((self.started.elapsed(), buffer[..length].to_vec()));
        Ok(length > 0)
    }

    fn text(&self) -> Vec<u8> {
        self.output
            .iter()
            .flat_map(|(_, piece)| piece)
            .copied()
            .collect()
    }

    /// Reads until `marker` was printed. Gives the time when its first byte arrived: a monitor may print lines
    /// of its own before.
    pub fn wait_for(&mut self, marker: &[u8]) -> Result<Duration> {
        loop {
            let text = self.text();
            if let Some(at) = text.windows(marker.len()).position(|bytes| bytes == marker) {
                let mut end = 0;
                for (time, piece) in &self.output {
                    end += piece.len();
                    if end > at {
                        return Ok(*time);
                    }
                }
            }
            if !self.read()? {
                return Err(self.silence(marker));
            }
        }
    }

    fn silence(&mut self, marker: &[u8]) -> anyhow::Error {
        let mut errors = Vec::new();
        // Without it the message says less, no more.
        let _ = self
            .errors
            .rewind()
            .and_then(|()| self.errors.read_to_end(&mut errors));
        anyhow!(
            "ended or went silent without `{}`; printed:\n{}{}",
            String::from_utf8_lossy(marker),
            String::from_utf8_lossy(&self.text()),
            String::from_utf8_lossy(&errors)
        )
    }

    /// Reads until the payload has said hello. Gives the time of its first byte.
    pub fn wait_for_hello(&mut self) -> Result<Duration> {
        self.wait_for(HELLO)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives the program some time to end by itself, then ends it.
    pub fn stop(mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self
            .child
            .try_wait()
            .context("waiting for the monitor")?
            .is_none()
        {
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(EXIT_POLL);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
