//! `skerry-bench memory`: what a monitor needs beyond the guest's memory, with one disk and one network device.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{DiskSpec, MachineSpec, command};
use crate::peer::{Contestant, Peer, PeerArguments};
use crate::report::{Better, Report, ReportArguments};
use crate::running::Running;
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
    let smaps = format!("/proc/{}/smaps", running.pid());
    let text = std::fs::read_to_string(&smaps).context(smaps)?;
    let bytes = beyond_guest(&text, arguments.memory.bytes());
    running.stop(Duration::ZERO)?;
    drop(tap);
    bytes
}

/// PSS of all mappings but the guest's memory: memfds or anonymous memory of at least its size.
fn beyond_guest(smaps: &str, guest: u64) -> Result<u64> {
    let (mut beyond, mut found_guest, mut is_guest) = (0, false, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(size) = mapping_size(first) {
            let path = words.nth(4).unwrap_or("");
            let memory =
                path.is_empty() || path.starts_with("/memfd:") || path.starts_with("[anon");
            is_guest = memory && size >= guest;
            found_guest |= is_guest;
        } else if first == "Pss:" && !is_guest {
            let kib: u64 = words
                .next()
                .and_then(|kib| kib.parse().ok())
                .context("smaps: Pss")?;
            beyond += kib << 10;
        }
    }
    if !found_guest {
        bail!("the guest's memory is not among the monitor's mappings");
    }
    Ok(beyond)
}

/// The size of the mapping that a line such as `7f00-7f80 rw-p …` starts.
fn mapping_size(word: &str) -> Option<u64> {
    let (start, end) = word.split_once('-')?;
    let (start, end) = (
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    );
    end.checked_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 00:01 7 /usr/bin/monitor
Size: 1024 kB
Pss: 100 kB
Pss_Dirty: 50 kB
7f0000000000-7f0008000000 rw-s 00000000 00:01 8 /memfd:guest (deleted)
Pss: 4000 kB
7f0010000000-7f0010100000 rw-p 00000000 00:00 0
Pss: 20 kB
";

    #[test]
    fn guest_memory_does_not_count() {
        assert_eq!(beyond_guest(SMAPS, 128 << 20).ok(), Some(120 << 10));
    }

    #[test]
    fn unknown_guest_memory_is_an_error() {
        assert!(beyond_guest(SMAPS, 256 << 20).is_err());
    }
}
