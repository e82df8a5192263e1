//! `skerry-bench boot`: from just before the process starts to the payload's first byte on the serial port.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::command::{MachineSpec, command};
use crate::peer::{Peer, PeerArguments};
use crate::report::{Better, Report, ReportArguments};
use crate::running::Running;
use crate::stats::Samples;

const PATIENCE: Duration = Duration::from_secs(2);

/// `skerry-bench boot`.
#[derive(Args)]
pub struct BootArguments {
    #[command(flatten)]
    peers: PeerArguments,
    #[command(flatten)]
    report: ReportArguments,
    /// Starts of each program, taken in turns
    #[arg(long, default_value_t = 30)]
    runs: usize,
}

/// Measures and prints.
pub fn run(arguments: &BootArguments) -> Result<()> {
    let directory = tempfile::tempdir().context("temporary directory")?;
    let mut peers = vec![Peer::bare()?];
    peers.extend(arguments.peers.monitors()?.iter().map(Peer::plain));
    let mut report = Report::new(&arguments.report, arguments.peers.host()?);
    let kernel = arguments.peers.kernel()?;
    let machine = MachineSpec {
        kernel: &kernel,
        cmdline: "off=acpi",
        memory: arguments.peers.memory,
        disk: None,
        tap: None,
    };
    let mut samples: Vec<_> = peers.iter().map(|peer| Samples::new(peer.name())).collect();
    // The first round fills caches and doesn't count.
    for round in 0..=arguments.runs {
        for (peer, samples) in peers.iter().zip(&mut samples) {
            let mut running = Running::start(&mut command(peer, &machine, directory.path())?)?;
            let time = running.wait_for_hello().with_context(|| peer.name())?;
            if round > 0 {
                samples.add(time.as_secs_f64() * 1e3);
            }
            running.stop(PATIENCE)?;
        }
    }
    report.add("boot", "ms", Better::Lower, &samples, Vec::new());
    report.finish()
}
