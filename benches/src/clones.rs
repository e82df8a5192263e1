//! `skerry-bench clone`: many machines made of one snapshot at once, how soon the last of them answers, and what
//! each takes of the host's memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::{Resource, getrlimit, setrlimit};
use skerry_images::qcow2::CreateOptions;

use crate::api::{Api, Sent};
use crate::command::{DiskSpec, MachineSpec, command};
use crate::cpu::Prompt;
use crate::crowd::Crowd;
use crate::engine;
use crate::kept::{DOT, HALT, HALTED, Kept, Mode};
use crate::machine::tsc_khz;
use crate::peer::{Kind, Peer, PeerArguments};
use crate::report::{Better, Report, ReportArguments, Target};
use crate::running::Running;
use crate::smaps;
use crate::stats::Samples;

/// `skerry-bench clone`.
#[derive(Args)]
pub struct CloneArguments {
    #[command(flatten)]
    peers: PeerArguments,
    #[command(flatten)]
    report: ReportArguments,
    /// Clones that are made at once
    #[arg(long, default_value_t = 100)]
    clones: usize,
    /// How many of them prepared processes become; the others' processes are started for them [default: all]
    #[arg(long, value_name = "K")]
    pool: Option<usize>,
    /// Times that each is measured, in turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where the snapshot, its disk and the clones' layers are kept: a file system like that of real ones
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Few clones and runs: to see that it works, and for --check
    #[arg(long, conflicts_with_all = ["clones", "runs"])]
    quick: bool,
}

const DISK_BYTES: u64 = 64 << 20;
/// What the last clone's first byte is aimed to come within, in ms, and what each may have of the guest's memory
/// for itself, in KiB.
const ALL_OF_THEM: f64 = 1000.0;
const PRIVATE: f64 = 1024.0;

/// Measures and prints.
pub fn run(arguments: &CloneArguments) -> Result<()> {
    const QUICK: (usize, usize) = (8, 2);
    let monitors = arguments.peers.monitors()?;
    let Some(ours) = monitors.iter().find(|m| m.kind == Kind::Skerry) else {
        bail!("no monitor to measure: pass --vmm PATH");
    };
    let (clones, runs) = match arguments.quick {
        true => QUICK,
        false => (arguments.clones, arguments.runs),
    };
    ensure!(clones > 0, "--clones 0 leaves nothing to measure");
    let pool = arguments.pool.unwrap_or(clones).min(clones);
    open_many_files();
    let directory = std::path::absolute(&arguments.directory).context("the directory")?;
    let folder =
        tempfile::tempdir_in(&directory).with_context(|| directory.display().to_string())?;
    let mut report = Report::new(&arguments.report, arguments.peers.host()?);
    let bench = Bench {
        kernel: arguments.peers.kernel()?,
        kept: keep(arguments, ours, folder.path())?,
        folder: folder.path(),
        halt: folder.path().join("halt"),
        clones,
    };
    std::fs::write(&bench.halt, HALT).context("what is typed")?;
    bench.run(runs, pool, &mut report)?;
    report.finish()
}

/// Each clone has its output, its messages, and a connection.
fn open_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it, fewer clones fit; opening says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The machine that all are made of: it has a disk in use.
fn keep(arguments: &CloneArguments, ours: &Peer, folder: &Path) -> Result<Kept> {
    let disk = folder.join("disk.qcow2");
    engine::make(&disk, &CreateOptions::new(DISK_BYTES))?;
    let cmdline = format!("run=tick:disk=0 tsc-khz={}", tsc_khz());
    let machine = MachineSpec {
        kernel: &arguments.peers.kernel()?,
        cmdline: &cmdline,
        memory: arguments.peers.memory,
        disk: Some(DiskSpec {
            qcow2: true,
            ..DiskSpec::raw(&disk)
        }),
        tap: None,
    };
    Kept::take(ours, &machine, &folder.join("snapshot"))
}

struct Bench<'a> {
    kernel: PathBuf,
    kept: Kept,
    folder: &'a Path,
    /// What is typed on each clone's serial port: a guest that spins takes the others' time.
    halt: PathBuf,
    clones: usize,
}

/// What the clones of one round took.
struct Taken {
    /// Until the first byte of the last, and of half of them.
    last: Duration,
    half: Duration,
    /// Bytes of each.
    private: Vec<u64>,
    private_of_guest: Vec<u64>,
    pss: Vec<u64>,
}

/// How machines come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A process is started for each clone.
    Processes,
    /// Prepared processes become clones.
    Pool,
    /// Programs boot the payload on KVM and do nothing else: the floor.
    Bare,
}

const WAYS: [Way; 3] = [Way::Processes, Way::Pool, Way::Bare];

/// Each of which all clones of all rounds have a sample.
struct Memory {
    of_guest: Samples,
    of_process: Samples,
    pss: Samples,
    bare: Samples,
}

impl Memory {
    fn add(&mut self, way: Way, taken: &Taken) {
        let all = |samples: &mut Samples, bytes: &[u64]| {
            bytes.iter().for_each(|b| samples.add(*b as f64 / 1024.0));
        };
        match way {
            Way::Processes => {
                all(&mut self.of_guest, &taken.private_of_guest);
                all(&mut self.of_process, &taken.private);
                all(&mut self.pss, &taken.pss);
            }
            // They are the same processes in the end.
            Way::Pool => {}
            Way::Bare => all(&mut self.bare, &taken.private),
        }
    }
}

impl Bench<'_> {
    fn run(&self, runs: usize, pool: usize, report: &mut Report) -> Result<()> {
        let pooled = format!("skerry pool of {pool}");
        let mut times = ["skerry processes", &pooled, "bare boots"].map(Samples::new);
        let mut memory = Memory {
            of_guest: Samples::new("skerry guest memory"),
            of_process: Samples::new("skerry process"),
            pss: Samples::new("skerry PSS"),
            bare: Samples::new("bare process"),
        };
        let prompt = Prompt::new();
        // The first round fills caches and doesn't count.
        for round in 0..=runs {
            for (way, samples) in WAYS.into_iter().zip(&mut times) {
                let taken = match way {
                    Way::Processes => self.clones(0)?,
                    Way::Pool if pool == 0 => continue,
                    Way::Pool => self.clones(pool)?,
                    Way::Bare => self.bare()?,
                };
                if round > 0 {
                    samples.add(taken.last.as_secs_f64() * 1e3);
                    samples.add_beside("half ms", taken.half.as_secs_f64() * 1e3);
                    memory.add(way, &taken);
                }
            }
        }
        drop(prompt);
        let title = format!(
            "clone: {} of a guest of {}, until the last one's first byte",
            self.clones,
            self.kept.size()
        );
        let targets = [
            Target::median("skerry processes", ALL_OF_THEM),
            Target::median(pooled, ALL_OF_THEM),
        ];
        report.add_aimed(&title, "ms", Better::Lower, &times, Vec::new(), &targets);
        let title = "clone: memory that is one clone's own";
        let targets = [Target::median("skerry guest memory", PRIVATE)];
        let Memory {
            of_guest,
            of_process,
            pss,
            bare,
        } = memory;
        let samples = [of_guest, of_process, pss, bare];
        report.add_aimed(title, "KiB", Better::Lower, &samples, Vec::new(), &targets);
        Ok(())
    }

    /// Makes the clones, so many of them from a pool.
    fn clones(&self, pool: usize) -> Result<Taken> {
        let folder = tempfile::tempdir_in(self.folder).context("a folder for layers")?;
        let overlays = (0..self.clones)
            .map(|i| folder.path().join(i.to_string()))
            .collect::<Vec<_>>();
        for overlays in &overlays {
            std::fs::create_dir(overlays).context("a folder for layers")?;
        }
        let waiting = (0..pool)
            .map(|i| self.waiting(&folder.path().join(format!("{i}.api"))))
            .collect::<Result<Vec<_>>>()?;
        let mut crowd = Crowd::new();
        let mut sent: Vec<Sent> = Vec::new();
        let (from_pool, from_process) = overlays.split_at(pool);
        for ((running, api), overlays) in waiting.into_iter().zip(from_pool) {
            sent.push(self.kept.load(&api, Mode::Lazy, Some(overlays))?);
            crowd.join(running)?;
        }
        for overlays in from_process {
            let mut command = self.kept.restoring(Mode::Lazy, Some(overlays));
            crowd.join(Running::start_reading(&mut command, self.typed()?)?)?;
        }
        let (last, half) = crowd.wait(Some(DOT))?;
        for sent in sent {
            sent.answer()?;
        }
        for running in crowd.running() {
            running.wait_for(HALTED)?;
        }
        let memory = self.kept.memory();
        let mut taken = Taken {
            last,
            half,
            private: Vec::new(),
            private_of_guest: Vec::new(),
            pss: Vec::new(),
        };
        for running in crowd.running() {
            let mappings = smaps::of(running.pid())?;
            let guest = mappings.iter().filter(|m| Path::new(&m.path) == memory);
            let guest: Vec<_> = guest.collect();
            ensure!(
                !guest.is_empty(),
                "the guest's memory is not among the monitor's mappings"
            );
            let sum = |of: fn(&smaps::Mapping) -> u64| mappings.iter().map(of).sum();
            taken.private.push(sum(|m| m.private));
            taken.pss.push(sum(|m| m.pss));
            taken
                .private_of_guest
                .push(guest.iter().map(|m| m.private).sum());
        }
        Ok(taken)
    }

    fn typed(&self) -> Result<Stdio> {
        Ok(File::open(&self.halt).context("what is typed")?.into())
    }

    /// A process that waits for what it becomes.
    fn waiting(&self, socket: &Path) -> Result<(Running, Api)> {
        let mut command = self.kept.waiting(socket);
        let running = Running::start_reading(&mut command, self.typed()?)?;
        let api = Api::wait(socket)?;
        self.kept.prepare(&api)?;
        Ok((running, api))
    }

    /// The floor: as many programs that boot the payload on KVM and do nothing else.
    fn bare(&self) -> Result<Taken> {
        let machine = MachineSpec {
            kernel: &self.kernel,
            cmdline: "off=hlt",
            memory: self.kept.size(),
            disk: None,
            tap: None,
        };
        let bare = Peer::bare()?;
        let mut crowd = Crowd::new();
        for _ in 0..self.clones {
            let mut command = command(&bare, &machine, self.folder)?;
            crowd.join(Running::start(&mut command)?)?;
        }
        let (last, half) = crowd.wait(None)?;
        for running in crowd.running() {
            running.wait_for(b"done ok=0 fail=0")?;
        }
        let private = crowd.running().iter().map(|running| {
            let mappings = smaps::of(running.pid())?;
            Ok(mappings.iter().map(|m| m.private).sum())
        });
        Ok(Taken {
            last,
            half,
            private: private.collect::<Result<_>>()?,
            private_of_guest: Vec::new(),
            pss: Vec::new(),
        })
    }
}
