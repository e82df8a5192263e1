//! `skerry-bench memory`: what a monitor needs beyond the guest's memory, with one disk and one network device.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{DiskSpec, MachineSpec, command};
use crate::peer::{Contestant, Peer, PeerArguments};
use crate::report::{Better, Report, ReportArguments};
use crate::running::Running;
use crate::smaps::{self, Mapping};
use crate::stats::Samples;
use crate::tap::{self, Tap};

const DISK_BYTES: u64 = 64 << 20;
const DONE: &[u8] = b"skerry-payload: done ok=2 fail=0";

/// `skerry-bench memory`.
#[derive(Args)]
pub struct MemoryArguments {
    #[command(flatten)]
    peers: PeerArguments,
    #[command(flatten)]
    report: ReportArguments,
    /// Starts of each program, taken in turns
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Measures and prints.
pub fn run(arguments: &MemoryArguments) -> Result<()> {
    let peers = arguments.peers.monitors()?;
    if peers.is_empty() {
        bail!("no monitor to measure: pass --vmm PATH or --peer NAME");
    }
    let peers: Vec<_> = peers.iter().map(Peer::plain).collect();
    let mut report = Report::new(&arguments.report, arguments.peers.host()?);
    tap::enter_namespace()?;
    let mut samples: Vec<_> = peers.iter().map(|peer| Samples::new(peer.name())).collect();
    for _ in 0..arguments.runs {
        for (peer, samples) in peers.iter().zip(&mut samples) {
            let bytes = measure(peer, &arguments.peers).with_context(|| peer.name())?;
            samples.add(bytes as f64 / f64::from(1 << 20));
        }
    }
    let title = "memory beyond the guest's";
    report.add(title, "MiB of PSS", Better::Lower, &samples, Vec::new());
    report.finish()
}

fn measure(peer: &Contestant, arguments: &PeerArguments) -> Result<u64> {
    let directory = tempfile::tempdir().context("temporary directory")?;
    let disk = directory.path().join("disk.raw");
    std::fs::File::create(&disk)
        .and_then(|file| file.set_len(DISK_BYTES))
        .with_context(|| disk.display().to_string())?;
    let tap = Tap::new()?;
    let kernel = arguments.kernel()?;
    let machine = MachineSpec {
        kernel: &kernel,
        cmdline: "run=blk-info,net-info off=spin",
        memory: arguments.memory,
        disk: Some(DiskSpec::raw(&disk)),
        tap: Some(tap::NAME),
    };
    let mut running = Running::start(&mut command(peer, &machine, directory.path())?)?;
    running.wait_for(DONE)?;
    let bytes = beyond_guest(&smaps::of(running.pid())?, arguments.memory.bytes());
    running.stop(Duration::ZERO)?;
    drop(tap);
    bytes
}

/// PSS of all mappings but the guest's memory: memfds or anonymous memory of at least its size.
fn beyond_guest(mappings: &[Mapping], guest: u64) -> Result<u64> {
    let is_guest = |mapping: &&Mapping| {
        let path = &mapping.path;
        let memory = path.is_empty() || path.starts_with("/memfd:") || path.starts_with("[anon");
        memory && mapping.size >= guest
    };
    let (guests, others): (Vec<_>, Vec<_>) = mappings.iter().partition(is_guest);
    if guests.is_empty() {
        bail!("the guest's memory is not among the monitor's mappings");
    }
    Ok(others.iter().map(|mapping| mapping.pss).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mappings() -> Vec<Mapping> {
        let mapping = |path: &str, size, pss| Mapping {
            path: path.into(),
            size,
            pss,
            ..Mapping::default()
        };
        vec![
            mapping("/usr/bin/monitor", 1 << 20, 100),
            mapping("/memfd:guest (deleted)", 128 << 20, 4000),
            mapping("", 1 << 20, 20),
        ]
    }

    #[test]
    fn guest_memory_does_not_count() {
        assert_eq!(beyond_guest(&mappings(), 128 << 20).ok(), Some(120));
    }

    #[test]
    fn unknown_guest_memory_is_an_error() {
        assert!(beyond_guest(&mappings(), 256 << 20).is_err());
    }
}
