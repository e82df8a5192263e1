//! The programs that are compared, and the ways in which each is run.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::machine::Host;
use crate::size::Size;

/// The programs to compare, from the command line.
#[derive(Args)]
pub struct PeerArguments {
    /// PVH ELF of the payload [default: `skerry-payload` beside this program]
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Skerry's monitor [default: `skerry-vmm` beside this program]
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// Another monitor to compare with: qemu, qemu=PATH, firecracker=PATH or cloud-hypervisor=PATH
    #[arg(long = "peer", value_name = "NAME[=PATH]")]
    peers: Vec<Peer>,
    /// Guest memory
    #[arg(long, default_value = "128M")]
    pub memory: Size,
}

impl PeerArguments {
    /// Skerry, if it is there, and the peers that were named.
    pub fn monitors(&self) -> Result<Vec<Peer>> {
        let mut peers = Vec::new();
        match &self.vmm {
            Some(path) => peers.push(Peer::new(Kind::Skerry, path)),
            None => match beside("skerry-vmm")? {
                path if path.exists() => peers.push(Peer::new(Kind::Skerry, &path)),
                _ => {
                    eprintln!(
                        "no skerry-vmm beside this program and no --vmm: measuring without it"
                    )
                }
            },
        }
        peers.extend(self.peers.iter().cloned());
        for peer in &peers {
            if !peer.path.is_file() {
                bail!(
                    "{}: {} is not a program",
                    peer.kind.name(),
                    peer.path.display()
                );
            }
        }
        Ok(peers)
    }

    /// The payload.
    pub fn kernel(&self) -> Result<PathBuf> {
        let path = match &self.kernel {
            Some(path) => path.clone(),
            None => beside("skerry-payload")?,
        };
        if !path.is_file() {
            bail!(
                "{} is not the payload: build it with `cargo build --release -p skerry-payload`, or give --kernel",
                path.display()
            );
        }
        Ok(path)
    }

    /// Where these programs run.
    pub fn host(&self) -> Result<Host> {
        let monitors = self.monitors()?;
        Ok(Host::here(
            monitors.iter().map(|p| (p.kind.name(), p.path.as_path())),
        ))
    }
}

fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    Ok(own.with_file_name(name))
}

/// Which program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This program's own `bare` command.
    Bare,
    /// Ours.
    Skerry,
    /// QEMU, with KVM.
    Qemu,
    /// Firecracker.
    Firecracker,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

impl Kind {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bare => "bare",
            Kind::Skerry => "skerry",
            Kind::Qemu => "qemu",
            Kind::Firecracker => "firecracker",
            Kind::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// The ways in which it does I/O that are measured.
    fn ways(self) -> &'static [Way] {
        match self {
            Kind::Bare => &[],
            Kind::Skerry => &[Way::Polled, Way::Adaptive, Way::Events],
            Kind::Qemu => &[Way::Polled, Way::Events],
            Kind::Firecracker => &[Way::Sync, Way::Async],
            Kind::CloudHypervisor => &[Way::Plain],
        }
    }
}

/// How a monitor does I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it does by itself.
    Plain,
    /// It waits for doorbells only.
    Events,
    /// It polls as long as work usually comes.
    Adaptive,
    /// It polls: ours without end, QEMU's I/O thread for up to a millisecond.
    Polled,
    /// Firecracker's I/O by plain calls.
    Sync,
    /// Firecracker's I/O by io_uring.
    Async,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Plain => "",
            Way::Events => " events",
            Way::Adaptive => " adaptive",
            Way::Polled => " polled",
            Way::Sync => " sync",
            Way::Async => " async",
        }
    }
}

/// A program that can run the payload.
#[derive(Clone, Debug)]
pub struct Peer {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

impl Peer {
    fn new(kind: Kind, path: &Path) -> Peer {
        let path = path.to_owned();
        Peer { kind, path }
    }

    /// The floor: this program's own `bare` command.
    pub fn bare() -> Result<Contestant> {
        let own = std::env::current_exe().context("own path")?;
        Ok(Peer::new(Kind::Bare, &own).plain())
    }

    /// It, as it is by itself.
    pub fn plain(&self) -> Contestant {
        Contestant {
            peer: self.clone(),
            way: Way::Plain,
        }
    }

    /// It, in each way of doing I/O.
    pub fn ways(&self) -> Vec<Contestant> {
        let way = |way: &Way| Contestant {
            peer: self.clone(),
            way: *way,
        };
        self.kind.ways().iter().map(way).collect()
    }
}

/// A program in one of its ways.
#[derive(Clone, Debug)]
pub struct Contestant {
    pub(crate) peer: Peer,
    /// How it does I/O.
    pub way: Way,
}

impl Contestant {
    /// Its name in results.
    pub fn name(&self) -> String {
        format!("{}{}", self.peer.kind.name(), self.way.name())
    }

    /// Which program it is.
    pub fn kind(&self) -> Kind {
        self.peer.kind
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name, Some(PathBuf::from(path))),
            None => (text, None),
        };
        let kind = match name {
            "qemu" => Kind::Qemu,
            "firecracker" => Kind::Firecracker,
            "cloud-hypervisor" => Kind::CloudHypervisor,
            _ => {
                return Err(format!(
                    "`{name}` is none of qemu, firecracker and cloud-hypervisor"
                ));
            }
        };
        let program = match kind {
            Kind::Qemu => "qemu-system-x86_64",
            kind => kind.name(),
        };
        let path = path
            .or_else(|| in_path(program))
            .ok_or_else(|| format!("{program} is not in PATH: give {name}=PATH"))?;
        Ok(Self { kind, path })
    }
}

/// A program of this host's, by its name.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(program));
    found.find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_with_their_paths() {
        let peer: Peer = "firecracker=/opt/fc".parse().unwrap();
        assert_eq!(
            (peer.kind, peer.path.to_str()),
            (Kind::Firecracker, Some("/opt/fc"))
        );
        assert!("xen=/x".parse::<Peer>().unwrap_err().contains("none of"));
        let names: Vec<_> = peer.ways().iter().map(Contestant::name).collect();
        assert_eq!(names, ["firecracker sync", "firecracker async"]);
    }
}
