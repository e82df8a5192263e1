//! `skerry-bench node`: a host under `skerry up`. How soon what is declared says its first byte, one at a time
//! and many at once, and what the host's own process takes.

mod guest;
mod host;
mod image;
mod looking;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use skerry_images::qcow2::CreateOptions;

use crate::cpu::Prompt;
use crate::engine;
use crate::peer::{Kind, PeerArguments, in_path};
use crate::report::{Better, Report, ReportArguments, Target};
use crate::running::Running;
use crate::stats::Samples;
use host::{Host, Programs};

/// `skerry-bench node`.
#[derive(Args)]
pub struct NodeArguments {
    #[command(flatten)]
    peers: PeerArguments,
    #[command(flatten)]
    report: ReportArguments,
    /// The command [default: `skerry` beside this program]
    #[arg(long, value_name = "PATH")]
    skerry: Option<PathBuf>,
    /// VMs and containers that are declared one after the other
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// VMs that are declared at once
    #[arg(long, default_value_t = 100)]
    vms: usize,
    /// How many times
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Monitors of the warm pool
    #[arg(long, default_value_t = 4)]
    warm: usize,
    /// Seconds in which nothing happens
    #[arg(long, default_value_t = 10)]
    idle: u64,
    /// Where the host's state is kept: a file system like that of real ones
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Few runs and VMs: to see that it works, and for --check
    #[arg(long, conflicts_with_all = ["runs", "vms", "rounds", "idle"])]
    quick: bool,
}

const DISK_BYTES: u64 = 64 << 20;
/// What is aimed at: ms until one, until all; MiB; percent of a CPU; as a multiple of runc.
const ONE: f64 = 50.0;
const ALL: f64 = 5000.0;
const MEMORY: f64 = 40.0;
const IDLE: f64 = 1.0;
const RUNC: f64 = 1.3;
const MIB: f64 = (1 << 20) as f64;

/// Measures and prints.
pub fn run(arguments: &NodeArguments) -> Result<()> {
    let (mut report, bench) = Bench::prepare(arguments)?;
    let (runs, vms, rounds, idle) = arguments.counts();
    ensure!(
        runs > 0 && vms > 0 && rounds > 0,
        "there is nothing to measure"
    );
    bench.one(runs, &mut report)?;
    bench.many(vms, rounds, idle, &mut report)?;
    bench.containers(runs, &mut report)?;
    report.finish()
}

/// `skerry-bench looking`: measures what it costs that somebody looks, and prints it.
pub fn look(arguments: &NodeArguments) -> Result<()> {
    let (mut report, bench) = Bench::prepare(arguments)?;
    let (_, vms, rounds, time) = arguments.counts();
    ensure!(vms > 0 && rounds > 0, "there is nothing to measure");
    bench.looking(vms, rounds, time, &mut report)?;
    report.finish()
}

impl NodeArguments {
    /// Runs, VMs, rounds, and how long nothing happens.
    fn counts(&self) -> (usize, usize, usize, Duration) {
        let (runs, vms, rounds, idle) = match self.quick {
            true => (3, 8, 1, 2),
            false => (self.runs, self.vms, self.rounds, self.idle),
        };
        (runs, vms, rounds, Duration::from_secs(idle))
    }
}

struct Bench {
    programs: Programs,
    folder: tempfile::TempDir,
    snapshot: PathBuf,
    memory: u64,
    warm: usize,
}

impl Bench {
    /// Makes ready what all measurements need.
    fn prepare(arguments: &NodeArguments) -> Result<(Report<'_>, Bench)> {
        let monitors = arguments.peers.monitors()?;
        let Some(ours) = monitors.iter().find(|m| m.kind == Kind::Skerry) else {
            bail!("no monitor to measure: pass --vmm PATH");
        };
        let own = std::env::current_exe().context("own path")?;
        let skerry = arguments.skerry.clone();
        let skerry = skerry.unwrap_or_else(|| own.with_file_name("skerry"));
        if !skerry.is_file() {
            bail!(
                "{} is not the command: build it with `cargo build --release -p skerry`, or give --skerry",
                skerry.display()
            );
        }
        let vmm = std::path::absolute(&ours.path).context("the monitor")?;
        let directory = std::path::absolute(&arguments.directory).context("the directory")?;
        let folder =
            tempfile::tempdir_in(&directory).with_context(|| directory.display().to_string())?;
        let report = Report::new(&arguments.report, arguments.peers.host()?);
        let disk = folder.path().join("disk.qcow2");
        engine::make(&disk, &CreateOptions::new(DISK_BYTES))?;
        let snapshot = folder.path().join("snapshot");
        guest::keep(ours, &arguments.peers, &disk, &snapshot)?;
        let bench = Bench {
            programs: Programs { skerry, vmm },
            folder,
            snapshot,
            memory: arguments.peers.memory.bytes(),
            warm: arguments.warm,
        };
        Ok((report, bench))
    }

    fn host(&self, warm: usize) -> Result<Host> {
        Host::start(&self.programs, self.folder.path(), warm)
    }

    /// From the request to one VM's first byte.
    fn one(&self, runs: usize, report: &mut Report) -> Result<()> {
        let pooled = format!("pool of {}", self.warm);
        let mut samples = ["no pool", &pooled].map(Samples::new);
        let (cold, warm) = (self.host(0)?, self.host(self.warm)?);
        let prompt = Prompt::new();
        // The first fill caches, and don't count.
        for run in 0..=runs {
            for (host, samples) in [&cold, &warm].into_iter().zip(&mut samples) {
                let begun = Instant::now();
                let sent = host.clone(&format!("vm{run}"), &self.snapshot, self.memory)?;
                let vm = [host.declared(sent, "microvms")?];
                let answered = begun.elapsed();
                let (heard, _) = host.heard(&vm, begun)?;
                host.settled(&vm)?;
                let settled = begun.elapsed();
                host.delete(&vm)?;
                if run > 0 {
                    samples.add(heard.as_secs_f64() * 1e3);
                    samples.add_beside("answer ms", answered.as_secs_f64() * 1e3);
                    samples.add_beside("Running ms", settled.as_secs_f64() * 1e3);
                }
                // The pool is filled again meanwhile.
                std::thread::sleep(Duration::from_millis(300));
            }
        }
        drop(prompt);
        let title = "node: a clone, from the request to its first byte";
        let targets = [
            Target::median("no pool", ONE),
            Target::p95("no pool", ONE),
            Target::median(&pooled, ONE),
            Target::p95(&pooled, ONE),
        ];
        report.add_aimed(title, "ms", Better::Lower, &samples, Vec::new(), &targets);
        Ok(())
    }

    /// Many at once, and what the host's process takes with them.
    fn many(&self, vms: usize, rounds: usize, idle: Duration, report: &mut Report) -> Result<()> {
        let pooled = format!("pool of {}", self.warm);
        let mut times = ["no pool", &pooled].map(Samples::new);
        let mut memory = ["RSS", "PSS", "private"].map(Samples::new);
        let mut share = [Samples::new("skerry up")];
        for _ in 0..rounds {
            for (pool, samples) in [0, self.warm].into_iter().zip(&mut times) {
                let host = self.host(pool)?;
                let (before, used) = (host.memory()?, host.used()?);
                let begun = Instant::now();
                let sent: Result<Vec<_>> = (0..vms)
                    .map(|n| host.clone(&format!("vm{n}"), &self.snapshot, self.memory))
                    .collect();
                let declared: Result<Vec<_>> = sent?
                    .into_iter()
                    .map(|sent| host.declared(sent, "microvms"))
                    .collect();
                let declared = declared?;
                let answered = begun.elapsed();
                let (last, half) = host.heard(&declared, begun)?;
                samples.add(last.as_secs_f64() * 1e3);
                samples.add_beside("half ms", half.as_secs_f64() * 1e3);
                samples.add_beside("answers ms", answered.as_secs_f64() * 1e3);
                host.settled(&declared)?;
                let used = host.used()?.since(used);
                samples.add_beside("up's CPU ms", used.all() as f64 / 1e6);
                std::thread::sleep(Duration::from_secs(2));
                share[0].add(host.idle(idle)?);
                let after = host.memory()?;
                let pairs = [
                    (before.0, after.0),
                    (before.1, after.1),
                    (before.2, after.2),
                ];
                for (samples, (before, after)) in memory.iter_mut().zip(pairs) {
                    samples.add(after as f64 / MIB);
                    samples.add_beside("with none", before as f64 / MIB);
                }
                host.delete(&declared)?;
            }
        }
        let title = format!("node: {vms} clones at once, until the last one's first byte");
        let targets = [Target::median("no pool", ALL), Target::median(&pooled, ALL)];
        report.add_aimed(&title, "ms", Better::Lower, &times, Vec::new(), &targets);
        let title = format!("node: memory of `skerry up` with {vms} VMs");
        let targets = [Target::median("RSS", MEMORY)];
        report.add_aimed(&title, "MiB", Better::Lower, &memory, Vec::new(), &targets);
        let title = format!("node: `skerry up` with {vms} VMs while nothing happens");
        let targets = [Target::median("skerry up", IDLE)];
        report.add_aimed(
            &title,
            "% of a CPU",
            Better::Lower,
            &share,
            Vec::new(),
            &targets,
        );
        Ok(())
    }

    /// A container from the request, and runc's from the start of its process.
    fn containers(&self, runs: usize, report: &mut Report) -> Result<()> {
        let title = "node: a container, to its first byte";
        let mut samples = ["runc run", "skerry up"].map(Samples::new);
        let Some(busybox) = image::busybox() else {
            let why = "containers: this host has no static busybox (Debian's busybox-static)";
            report.add(title, "ms", Better::Lower, &samples, vec![why.to_owned()]);
            return Ok(());
        };
        let (layout, bundle) = image::make(&busybox, self.folder.path())?;
        let runc = in_path("runc");
        let mut left_out = Vec::new();
        match &runc {
            Some(runc) => image::configure(runc, &bundle)?,
            None => {
                left_out.push("runc run: runc is not in PATH (Debian's package runc)".to_owned())
            }
        }
        let host = self.host(0)?;
        let prompt = Prompt::new();
        for run in 0..=runs {
            if let Some(runc) = &runc {
                let mut command = Command::new(runc);
                command.arg("run").arg("--bundle").arg(&bundle);
                command.arg(format!("bench-{}-{run}", std::process::id()));
                let mut running = Running::start_reading(&mut command, Stdio::null())?;
                let (_, time) = running.wait_for_byte()?;
                running.stop(Duration::from_secs(10))?;
                if run > 0 {
                    samples[0].add(time.as_secs_f64() * 1e3);
                }
            }
            let begun = Instant::now();
            let sent = host.container(&format!("c{run}"), &layout, &image::COMMAND)?;
            let container = [host.declared(sent, "containers")?];
            let (heard, _) = host.heard(&container, begun)?;
            host.settled(&container)?;
            host.delete(&container)?;
            if run > 0 {
                samples[1].add(heard.as_secs_f64() * 1e3);
            }
        }
        drop(prompt);
        let targets = match runc {
            Some(_) => vec![Target::ratio("skerry up", RUNC)],
            None => Vec::new(),
        };
        report.add_aimed(title, "ms", Better::Lower, &samples, left_out, &targets);
        Ok(())
    }
}
