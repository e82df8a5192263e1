//! `skerry-bench schedule`: how densely and how fast `skerry simulate` places workloads, beside the simple
//! policies on the same traces.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::machine::Host;
use crate::report::{Better, Report, ReportArguments, Target};
use crate::stats::Samples;

/// `skerry-bench schedule`.
#[derive(Args)]
pub struct ScheduleArguments {
    /// The command [default: `skerry` beside this program]
    #[arg(long, value_name = "PATH")]
    skerry: Option<PathBuf>,
    /// Hosts
    #[arg(long, default_value_t = 5000)]
    hosts: u32,
    /// Traces, each by chance from another seed
    #[arg(long, default_value_t = 3)]
    runs: u64,
    #[command(flatten)]
    report: ReportArguments,
}

/// Placements a second that are aimed at.
const RATE: f64 = 20_000.0;

/// What is read of an answer.
#[derive(Deserialize)]
struct Answer {
    policies: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    policy: String,
    rejected_share: f64,
    unplaceable: f64,
    first_rejection: First,
    placements_per_second: f64,
    placements_per_cpu_second: f64,
    latency_us: Latency,
}

#[derive(Deserialize)]
struct First {
    density: f64,
    unplaceable: f64,
}

#[derive(Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

/// The policies by their names, ours first: ratios are to it.
const POLICIES: [&str; 4] = ["skerry", "first-fit", "best-fit", "worst-fit"];

/// What is measured of each policy.
struct Measured(Vec<Samples>);

impl Measured {
    fn new() -> Self {
        Measured(POLICIES.into_iter().map(Samples::new).collect())
    }

    fn add(&mut self, policy: &str, value: f64, beside: &[(&str, f64)]) {
        let Some(at) = POLICIES.iter().position(|name| *name == policy) else {
            return;
        };
        self.0[at].add(value);
        for (name, value) in beside {
            self.0[at].add_beside(name, *value);
        }
    }
}

/// Measures and prints.
pub fn run(arguments: &ScheduleArguments) -> Result<()> {
    let own = std::env::current_exe().context("own path")?;
    let skerry = arguments.skerry.clone();
    let skerry = skerry.unwrap_or_else(|| own.with_file_name("skerry"));
    if !skerry.is_file() {
        bail!(
            "{} is not the command: build it with `cargo build --release -p skerry`, or give --skerry",
            skerry.display()
        );
    }
    let mut report = Report::new(
        &arguments.report,
        Host::here([("skerry", skerry.as_path())]),
    );
    let [
        mut density,
        mut stranded,
        mut rejected,
        mut rate,
        mut latency,
    ] = std::array::from_fn(|_| Measured::new());
    for seed in 1..=arguments.runs {
        let hosts = arguments.hosts.to_string();
        let mut command = Command::new(&skerry);
        command.args(["simulate", "--output", "json", "--hosts", &hosts]);
        command.args(["--seed", &seed.to_string()]);
        let output = command.output().context("running skerry")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("skerry simulate failed: {said}");
        }
        let answer: Answer = serde_json::from_slice(&output.stdout).context("its answer")?;
        for line in &answer.policies {
            let (name, first) = (&line.policy, &line.first_rejection);
            density.add(name, 100.0 * first.density, &[]);
            let average = ("average", 100.0 * line.unplaceable);
            stranded.add(name, 100.0 * first.unplaceable, &[average]);
            rejected.add(name, 100.0 * line.rejected_share, &[]);
            let clock = ("by clock", line.placements_per_second / 1e3);
            rate.add(name, line.placements_per_cpu_second / 1e3, &[clock]);
            latency.add(name, line.latency_us.p50, &[("p99", line.latency_us.p99)]);
        }
    }
    let title = |what: &str| format!("schedule: {what}, {} hosts", arguments.hosts);
    let mut add = |what, unit, better, measured: Measured, targets: &[Target]| {
        report.add_aimed(&title(what), unit, better, &measured.0, Vec::new(), targets);
    };
    let (higher, lower) = (Better::Higher, Better::Lower);
    // What is taken at the first rejection: no policy is to take more than ours.
    let simple = &POLICIES[1..];
    let aims: Vec<Target> = simple
        .iter()
        .map(|name| Target::ratio(*name, 1.0))
        .collect();
    add(
        "density at the first rejection",
        "% of CPUs and memory",
        higher,
        density,
        &aims,
    );
    add(
        "unplaceable at the first rejection",
        "% of CPUs and memory",
        lower,
        stranded,
        &[],
    );
    add("rejected", "% of what was asked for", lower, rejected, &[]);
    add(
        "placements",
        "1000 in a second of CPU time",
        higher,
        rate,
        &[],
    );
    let aim = Target::median("skerry", 1e6 / RATE);
    add("one placement, median", "us", lower, latency, &[aim]);
    report.finish()
}
