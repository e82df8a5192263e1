//! `skerry-bench disk`: small requests from a guest to a disk, answered by each monitor in each of its ways.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::command::{DiskSpec, MachineSpec, command, unable};
use crate::cpu::{self, Used};
use crate::machine::tsc_khz;
use crate::peer::{Contestant, Kind, PeerArguments, Way};
use crate::report::{Better, Report, ReportArguments};
use crate::running::Running;
use crate::stats::Samples;

/// `skerry-bench disk`.
#[derive(Args)]
pub struct DiskArguments {
    #[command(flatten)]
    peers: PeerArguments,
    #[command(flatten)]
    report: ReportArguments,
    /// Where the images that are read are made: a file system like that of real ones
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Where the images that are written are made
    #[arg(long, default_value = "/dev/shm")]
    written: PathBuf,
    /// Times that each is measured, in turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 500)]
    ms: u64,
    /// Bytes of the images, in MiB
    #[arg(long, default_value_t = 256)]
    size: u64,
    /// Bytes of a request
    #[arg(long, default_value_t = 4096)]
    block: u64,
    /// Requests under way
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    depth: Vec<u64>,
    /// In order, and not at random
    #[arg(long)]
    sequential: bool,
    /// The guest waits for interrupts, and does not poll
    #[arg(long)]
    interrupts: bool,
    /// Keep virtual CPUs and I/O threads on a host CPU each, the first and the second
    #[arg(long)]
    pin: bool,
    /// Only raw images
    #[arg(long)]
    raw_only: bool,
    /// Measure first writes into an overlay of a 64 GiB image, and nothing else
    #[arg(long)]
    first_write: bool,
    /// Measure what an idle disk costs, and nothing else
    #[arg(long)]
    idle: bool,
}

impl DiskArguments {
    fn wait(&self) -> &'static str {
        if self.interrupts { "irq" } else { "poll" }
    }
}

/// Measures and prints.
pub fn run(arguments: &DiskArguments) -> Result<()> {
    let monitors = arguments.peers.monitors()?;
    if monitors.is_empty() {
        bail!("no monitor to measure: pass --vmm PATH or --peer NAME");
    }
    let contestants: Vec<_> = monitors.iter().flat_map(|m| m.ways()).collect();
    let mut report = Report::new(&arguments.report, arguments.peers.host()?);
    let kernel = arguments.peers.kernel()?;
    let bench = Bench {
        tsc_khz: tsc_khz(),
        arguments,
        kernel: &kernel,
        contestants: &contestants,
    };
    if arguments.first_write {
        bench.first_writes(&mut report)?;
    } else if arguments.idle {
        bench.idle(&mut report)?;
    } else {
        bench.rates(&mut report)?;
    }
    report.finish()
}

struct Bench<'a> {
    tsc_khz: u64,
    arguments: &'a DiskArguments,
    kernel: &'a Path,
    contestants: &'a [Contestant],
}

impl Bench<'_> {
    fn start(&self, who: &Contestant, cmdline: &str, disk: DiskSpec) -> Result<Running> {
        let directory = tempfile::tempdir().context("temporary directory")?;
        let cmdline = format!("{cmdline} tsc-khz={}", self.tsc_khz);
        let machine = MachineSpec {
            kernel: self.kernel,
            cmdline: &cmdline,
            memory: self.arguments.peers.memory,
            disk: Some(disk),
            tap: None,
        };
        let running = Running::start(&mut command(who, &machine, directory.path())?)?;
        // The configuration is read before anything is said.
        let mut running = running;
        running.wait_for_hello().with_context(|| who.name())?;
        if self.arguments.pin {
            cpu::pin(running.pid())?;
        }
        Ok(running)
    }

    fn rates(&self, report: &mut Report) -> Result<()> {
        let arguments = self.arguments;
        let formats: &[bool] = if arguments.raw_only {
            &[false]
        } else {
            &[false, true]
        };
        for (op, place) in [
            ("read", &arguments.directory),
            ("write", &arguments.written),
        ] {
            let folder =
                tempfile::tempdir_in(place).with_context(|| place.display().to_string())?;
            for qcow2 in formats.iter().copied() {
                let image = image(folder.path(), qcow2, arguments.size)?;
                let disk = DiskSpec {
                    qcow2,
                    ..DiskSpec::raw(&image)
                };
                for depth in arguments.depth.iter().copied() {
                    self.rate(report, op, depth, disk)?;
                }
                std::fs::remove_file(&image).context("the image")?;
            }
        }
        Ok(())
    }

    /// One table: everybody's rate of one kind of request.
    fn rate(&self, report: &mut Report, op: &str, depth: u64, disk: DiskSpec) -> Result<()> {
        let arguments = self.arguments;
        let (block, ms) = (arguments.block, arguments.ms);
        let order = if arguments.sequential {
            "seq"
        } else {
            "random"
        };
        let cmdline = format!(
            "run=blk-load:op={op}:order={order}:bytes={block}:depth={depth}:ms={ms} wait={}",
            arguments.wait()
        );
        let (mut samples, left_out) = self.places(&disk);
        // The first round fills caches and doesn't count.
        for round in 0..=arguments.runs {
            for (who, samples) in self.contestants.iter().zip(&mut samples) {
                if unable(who, &disk).is_some() {
                    continue;
                }
                let one = self
                    .measure(who, &cmdline, disk)
                    .with_context(|| who.name())?;
                if round > 0 {
                    samples.add(one.rate / 1e3);
                    samples.add_beside("cpu us/op", one.cpu);
                    samples.add_beside("p50 us", one.p50);
                    samples.add_beside("p99 us", one.p99);
                }
            }
        }
        let format = if disk.qcow2 { "qcow2" } else { "raw" };
        let title = format!("disk: {format} {order} {op}s of {block} bytes, depth {depth}");
        report.add(&title, "1000 a second", Better::Higher, &samples, left_out);
        Ok(())
    }

    fn places(&self, disk: &DiskSpec) -> (Vec<Samples>, Vec<String>) {
        let samples = self.contestants.iter().map(|who| Samples::new(who.name()));
        let left_out = self
            .contestants
            .iter()
            .filter_map(|who| unable(who, disk).map(|why| format!("{}: {why}", who.name())));
        (samples.collect(), left_out.collect())
    }

    fn measure(&self, who: &Contestant, cmdline: &str, disk: DiskSpec) -> Result<One> {
        let mut running = self.start(who, cmdline, disk)?;
        running.wait_for(b"# load: begin")?;
        let before = Used::by(running.pid())?;
        running.wait_for(b"# load: end")?;
        let used = Used::by(running.pid())?.since(before);
        let task = running.wait_for_task("blk-load")?;
        let ops = task.number("ops")?.max(1.0);
        let one = One {
            rate: ops * 1e6 / task.number("us")?,
            cpu: used.others as f64 / 1e3 / ops,
            p50: task.number("p50")? / 1e3,
            p99: task.number("p99")? / 1e3,
        };
        running.stop(Duration::from_secs(2))?;
        Ok(one)
    }

    /// What a disk costs that was used and is not any more.
    fn idle(&self, report: &mut Report) -> Result<()> {
        let folder = tempfile::tempdir_in(&self.arguments.directory).context("a folder")?;
        let image = image(folder.path(), false, self.arguments.size)?;
        let disk = DiskSpec::raw(&image);
        let cmdline = "run=blk-load:ms=200:idle=2000 wait=poll";
        let (mut samples, left_out) = self.places(&disk);
        for _ in 0..self.arguments.runs.min(3) {
            for (who, samples) in self.contestants.iter().zip(&mut samples) {
                let mut running = self.start(who, cmdline, disk)?;
                running.wait_for(b"# idle: begin")?;
                let (before, begun) = (Used::by(running.pid())?, std::time::Instant::now());
                running.wait_for(b"# idle: end")?;
                let used = Used::by(running.pid())?.since(before);
                let share = used.others as f64 / begun.elapsed().as_nanos() as f64;
                samples.add(share * 100.0);
                running.stop(Duration::from_secs(2))?;
            }
        }
        let unit = "% of a CPU, beside the vCPU";
        report.add(
            "disk: idle after a load",
            unit,
            Better::Lower,
            &samples,
            left_out,
        );
        Ok(())
    }

    /// First writes into an overlay, and the same places once more.
    fn first_writes(&self, report: &mut Report) -> Result<()> {
        const SIZE_MIB: u64 = 64 << 10;
        // What one disk's caches hold the tables of; a quarter of its clusters, each written once.
        const SPAN: u64 = 2 << 30;
        const COUNT: u64 = SPAN / (128 << 10);
        let folder = tempfile::tempdir_in(&self.arguments.directory).context("a folder")?;
        let base = folder.path().join("base.qcow2");
        qemu_img(&["create", "-q", "-f", "qcow2"], &base, Some(SIZE_MIB))?;
        let able = |who: &&Contestant| {
            matches!(who.kind(), Kind::Skerry | Kind::Qemu) && who.way != Way::Adaptive
        };
        let contestants: Vec<_> = self.contestants.iter().filter(able).collect();
        for depth in &self.arguments.depth {
            let cmdline = format!(
                "run=blk-load:op=write:order=stride:depth={depth}:count={COUNT}:limit={SPAN} wait={}",
                self.arguments.wait()
            );
            for who in &contestants {
                let mut samples = ["allocated", "first"].map(Samples::new);
                for round in 0..=self.arguments.runs {
                    let top = folder.path().join("top.qcow2");
                    let below = base.display().to_string();
                    // With subclusters, as our own overlays are made: without them a cluster's rest is copied.
                    let shape = "extended_l2=on,cluster_size=128k";
                    let words = [
                        "create", "-q", "-f", "qcow2", "-o", shape, "-b", &below, "-F", "qcow2",
                    ];
                    qemu_img(&words, &top, None)?;
                    let disk = DiskSpec {
                        path: &top,
                        qcow2: true,
                        base: Some(&base),
                    };
                    let mut running = self.start(who, &cmdline, disk)?;
                    let task = running.wait_for_task("blk-load")?;
                    if round > 0 {
                        samples[0].add(task.number("again_us")? / COUNT as f64);
                        samples[1].add(task.number("first_us")? / COUNT as f64);
                    }
                    running.stop(Duration::from_secs(5))?;
                    std::fs::remove_file(&top).context("the overlay")?;
                }
                let name = who.name();
                let title =
                    format!("disk: {name}, writes into an overlay of 64 GiB, depth {depth}");
                report.add(&title, "us a request", Better::Lower, &samples, Vec::new());
            }
        }
        Ok(())
    }
}

/// One measurement.
struct One {
    /// Requests a second.
    rate: f64,
    /// Microseconds of CPU a request, beside the vCPU.
    cpu: f64,
    /// Microseconds a request takes.
    p50: f64,
    p99: f64,
}

/// An image that is allocated whole, and in the page cache.
fn image(folder: &Path, qcow2: bool, mib: u64) -> Result<PathBuf> {
    let raw = folder.join("disk.raw");
    let piece: Vec<u8> = (0..1u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut file = std::fs::File::create(&raw).context("the image")?;
    for _ in 0..mib {
        std::io::Write::write_all(&mut file, &piece).context("the image")?;
    }
    drop(file);
    if !qcow2 {
        return Ok(raw);
    }
    let path = folder.join("disk.qcow2");
    let from = raw.display().to_string();
    qemu_img(
        &["convert", "-q", "-f", "raw", "-O", "qcow2", &from],
        &path,
        None,
    )?;
    std::fs::remove_file(&raw).context("the image")?;
    std::fs::read(&path).context("the image")?;
    Ok(path)
}

fn qemu_img(words: &[&str], path: &Path, mib: Option<u64>) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command
        .args(words)
        .arg(path)
        .args(mib.map(|mib| format!("{mib}M")));
    let output = command
        .output()
        .context("qemu-img (of Debian's qemu-utils) makes the images")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "qemu-img {}: {errors}",
        words.join(" ")
    );
    Ok(())
}
