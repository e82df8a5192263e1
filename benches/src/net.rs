//! `skerry-bench net`: frames between a guest and the host's tap, moved by each monitor in each of its ways.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{MachineSpec, command};
use crate::cpu::Used;
use crate::machine::tsc_khz;
use crate::peer::{Contestant, PeerArguments};
use crate::report::{Better, Report, ReportArguments};
use crate::running::Running;
use crate::stats::Samples;
use crate::tap::{self, Tap};
use crate::traffic::Traffic;

/// `skerry-bench net`.
#[derive(Args)]
pub struct NetArguments {
    #[command(flatten)]
    peers: PeerArguments,
    #[command(flatten)]
    report: ReportArguments,
    /// Times that each is measured, in turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 500)]
    ms: u64,
}

/// What is moved.
struct Case {
    title: &'static str,
    direction: &'static str,
    bytes: usize,
    segment: u16,
    unit: &'static str,
}

const CASES: [Case; 5] = [
    Case {
        title: "net: frames of 60 bytes from the guest",
        direction: "send",
        bytes: 60,
        segment: 0,
        unit: "1000 a second",
    },
    Case {
        title: "net: frames of 60 bytes to the guest",
        direction: "receive",
        bytes: 60,
        segment: 0,
        unit: "1000 a second",
    },
    Case {
        title: "net: a stream of 64 KiB segments from the guest",
        direction: "send",
        bytes: 64_054,
        segment: 1448,
        unit: "MiB a second",
    },
    Case {
        title: "net: a stream of 64 KiB segments to the guest",
        direction: "receive",
        bytes: 64_054,
        segment: 1448,
        unit: "MiB a second",
    },
    Case {
        title: "net: round trips of 60 bytes",
        direction: "echo",
        bytes: 60,
        segment: 0,
        unit: "1000 a second",
    },
];

/// Measures and prints.
pub fn run(arguments: &NetArguments) -> Result<()> {
    let monitors = arguments.peers.monitors()?;
    if monitors.is_empty() {
        bail!("no monitor to measure: pass --vmm PATH or --peer NAME");
    }
    let mut contestants: Vec<_> = monitors.iter().flat_map(|m| m.ways()).collect();
    // Firecracker's two ways are its disks'.
    contestants.dedup_by_key(|who| who.name().replace(" async", " sync"));
    let mut report = Report::new(&arguments.report, arguments.peers.host()?);
    let kernel = arguments.peers.kernel()?;
    tap::enter_namespace()?;
    let khz = tsc_khz();
    for case in &CASES {
        let mut samples: Vec<_> = contestants
            .iter()
            .map(|who| Samples::new(who.name()))
            .collect();
        let mut left_out = Vec::new();
        for round in 0..=arguments.runs {
            for (who, samples) in contestants.iter().zip(&mut samples) {
                if left_out.iter().any(|(name, _)| *name == who.name()) {
                    continue;
                }
                match measure(arguments, &kernel, khz, who, case) {
                    Ok(one) if round > 0 => one.add_to(samples, case),
                    Ok(_) => {}
                    // A device may lack what a case takes: the guest says so.
                    Err(e) if format!("{e:#}").contains("no-segmentation") => {
                        left_out.push((who.name(), "it does not take segments to be cut"));
                    }
                    Err(e) => return Err(e.context(who.name())),
                }
            }
        }
        let left_out = left_out.iter().map(|(name, why)| format!("{name}: {why}"));
        report.add(
            case.title,
            case.unit,
            Better::Higher,
            &samples,
            left_out.collect(),
        );
    }
    report.finish()
}

/// One measurement.
struct One {
    frames: f64,
    bytes: f64,
    p50: f64,
    cpu: f64,
}

impl One {
    fn add_to(&self, samples: &mut Samples, case: &Case) {
        samples.add(match case.segment {
            0 => self.frames / 1e3,
            _ => self.bytes / f64::from(1 << 20),
        });
        samples.add_beside("cpu us/frame", self.cpu);
        if case.direction == "echo" {
            samples.add_beside("p50 us", self.p50);
        }
    }
}

fn measure(
    arguments: &NetArguments,
    kernel: &Path,
    khz: u64,
    who: &Contestant,
    case: &Case,
) -> Result<One> {
    let directory = tempfile::tempdir().context("temporary directory")?;
    let _tap = Tap::new()?;
    let Case {
        direction,
        bytes,
        segment,
        ..
    } = case;
    let cmdline = format!(
        "run=net-load:dir={direction}:bytes={bytes}:segment={segment}:ms={} wait=poll tsc-khz={khz}",
        arguments.ms
    );
    let machine = MachineSpec {
        kernel,
        cmdline: &cmdline,
        memory: arguments.peers.memory,
        disk: None,
        tap: Some(tap::NAME),
    };
    // The guest begins to send at once.
    let echo = match *direction {
        "echo" => Some(Traffic::echo(tap::NAME)?),
        _ => None,
    };
    let mut running = Running::start(&mut command(who, &machine, directory.path())?)?;
    if let Err(silence) = running.wait_for(b"# load: ready") {
        // It may have said why.
        return Err(running.wait_for_task("net-load").err().unwrap_or(silence));
    }
    let traffic = match *direction {
        "receive" => Some(Traffic::blast(tap::NAME, *bytes, *segment)?),
        _ => None,
    };
    running.wait_for(b"# load: begin")?;
    let before = Used::by(running.pid())?;
    running.wait_for(b"# load: end")?;
    let used = Used::by(running.pid())?.since(before);
    let task = running.wait_for_task("net-load")?;
    drop((traffic, echo));
    let one = One {
        frames: task.number("rate")?,
        bytes: task.number("bytes_per_s")?,
        p50: task.number("p50")? / 1e3,
        cpu: used.others as f64 / 1e3 / task.number("frames")?.max(1.0),
    };
    running.stop(Duration::from_secs(2))?;
    Ok(one)
}
