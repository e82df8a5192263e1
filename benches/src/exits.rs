//! `skerry-bench exits`: what leaving the guest costs under each monitor, by the way it is left.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{DiskSpec, MachineSpec, command};
use crate::machine::tsc_khz;
use crate::peer::{PeerArguments, Way};
use crate::report::{Better, Report, ReportArguments};
use crate::running::Running;
use crate::stats::Samples;

/// `skerry-bench exits`.
#[derive(Args)]
pub struct ExitArguments {
    #[command(flatten)]
    peers: PeerArguments,
    #[command(flatten)]
    report: ReportArguments,
    /// Starts of each program, taken in turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// What the payload calls each, and what it is.
const KINDS: [(&str, &str); 5] = [
    ("doorbell", "exits: a doorbell, taken by the kernel"),
    ("mmio", "exits: a device's register, in user space"),
    ("pio", "exits: a port, in user space"),
    ("polled", "exits: a read of 512 bytes, polled for"),
    (
        "interrupt",
        "exits: a read of 512 bytes, with its interrupt",
    ),
];

/// Measures and prints.
pub fn run(arguments: &ExitArguments) -> Result<()> {
    let monitors = arguments.peers.monitors()?;
    if monitors.is_empty() {
        bail!("no monitor to measure: pass --vmm PATH or --peer NAME");
    }
    let plain = |way: Way| !matches!(way, Way::Polled | Way::Adaptive | Way::Async);
    let contestants: Vec<_> = monitors
        .iter()
        .flat_map(|m| m.ways())
        .filter(|who| plain(who.way))
        .collect();
    let mut report = Report::new(&arguments.report, arguments.peers.host()?);
    let kernel = arguments.peers.kernel()?;
    let directory = tempfile::tempdir().context("temporary directory")?;
    let disk = directory.path().join("disk.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).context("the disk")?;
    let cmdline = format!("run=exit-costs tsc-khz={}", tsc_khz());
    let machine = MachineSpec {
        kernel: &kernel,
        cmdline: &cmdline,
        memory: arguments.peers.memory,
        disk: Some(DiskSpec::raw(&disk)),
        tap: None,
    };
    let places = || {
        contestants
            .iter()
            .map(|who| Samples::new(who.name()))
            .collect::<Vec<_>>()
    };
    let mut samples = KINDS.map(|_| places());
    for round in 0..=arguments.runs {
        for (i, who) in contestants.iter().enumerate() {
            let mut running = Running::start(&mut command(who, &machine, directory.path())?)?;
            let task = running
                .wait_for_task("exit-costs")
                .with_context(|| who.name())?;
            if round > 0 {
                for ((key, _), samples) in KINDS.iter().zip(&mut samples) {
                    samples[i].add(task.number(key)? / 1e3);
                }
            }
            running.stop(Duration::from_secs(2))?;
        }
    }
    for ((_, title), samples) in KINDS.iter().zip(&samples) {
        report.add(title, "us", Better::Lower, samples, Vec::new());
    }
    report.finish()
}
