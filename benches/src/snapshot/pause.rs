//! How long a guest stands still for a snapshot: by the monitor's answer, and as the guest itself sees it.

use std::fs::File;
use std::io::{PipeWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use super::Bench;
use crate::api::Api;
use crate::command::{MachineSpec, command_with_api};
use crate::peer::{Kind, Peer};
use crate::report::{Better, Report, Target};
use crate::running::{Running, Task};
use crate::size::Size;
use crate::stats::Samples;

/// The guest.
const GUEST: Size = Size::mib(1024);
/// What it writes between two snapshots, and goes on writing where it is busy, in MiB.
const WRITTEN: u64 = 64;
/// What it touches beside that, where all of its memory is kept: the rest is the payload's.
const TOUCHED: u64 = 1024 - WRITTEN - 16;
/// What a pause for a diff is aimed to stay under, in ms.
const PAUSE: f64 = 50.0;
/// Snapshots of all memory: a disk takes its time for each.
const FULL_RUNS: usize = 5;

/// How one is taken.
struct Case {
    name: &'static str,
    /// Memory is copied while the guest runs, and not in the pause.
    live: bool,
    /// The guest goes on writing meanwhile.
    busy: bool,
}

const CASES: [Case; 4] = [
    Case {
        name: "skerry live, quiet",
        live: true,
        busy: false,
    },
    Case {
        name: "skerry live, busy",
        live: true,
        busy: true,
    },
    Case {
        name: "skerry still, quiet",
        live: false,
        busy: false,
    },
    Case {
        name: "skerry still, busy",
        live: false,
        busy: true,
    },
];

/// How much of memory it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Full,
    Diff,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Part::Full => "full",
            Part::Diff => "diff",
        }
    }

    /// MiB that it has at least.
    fn mib(self) -> u64 {
        match self {
            Part::Full => TOUCHED + WRITTEN,
            Part::Diff => WRITTEN,
        }
    }
}

/// What the monitor answers.
#[derive(Deserialize)]
struct Info {
    pause_us: f64,
    total_us: f64,
    memory_bytes: u64,
    paused_bytes: u64,
}

impl Bench {
    pub(super) fn pauses(&self, report: &mut Report) -> Result<()> {
        let Some(ours) = self.monitors.iter().find(|m| m.kind == Kind::Skerry) else {
            return Ok(());
        };
        let title = format!("pause: a diff of {WRITTEN} MiB, of a guest of {GUEST}");
        let targets = CASES.map(|case| Target::median(case.name, PAUSE));
        let samples = self.pause(ours, Part::Diff, self.runs)?;
        report.add_aimed(&title, "ms", Better::Lower, &samples, Vec::new(), &targets);
        let title = format!("pause: all of a guest of {GUEST} that has touched all of it");
        let samples = self.pause(ours, Part::Full, self.runs.min(FULL_RUNS))?;
        report.add(&title, "ms", Better::Lower, &samples, Vec::new());
        Ok(())
    }

    fn pause(&self, monitor: &Peer, part: Part, runs: usize) -> Result<Vec<Samples>> {
        let mut floor = Samples::new("plain write");
        let mut samples = CASES.map(|case| Samples::new(case.name));
        let touched = if part == Part::Full { TOUCHED } else { 0 };
        let mut guest = Guest::start(self, monitor, touched)?;
        if part == Part::Diff {
            // What the first diff builds on.
            guest.keep(Part::Full, true, true)?;
        }
        // The first round fills caches and doesn't count.
        for round in 0..=runs {
            let time = self.plain_write(part.mib())?;
            if round > 0 {
                floor.add(time.as_secs_f64() * 1e3);
            }
            for (case, samples) in CASES.iter().zip(&mut samples) {
                let (info, stood) = guest.measure(part, case).context(case.name)?;
                if round > 0 {
                    samples.add(info.pause_us / 1e3);
                    samples.add_beside("guest ms", stood / 1e3);
                    samples.add_beside("total ms", info.total_us / 1e3);
                    samples.add_beside("MiB", mib(info.memory_bytes));
                    samples.add_beside("paused MiB", mib(info.paused_bytes));
                }
            }
        }
        Ok(std::iter::once(floor).chain(samples).collect())
    }

    /// The floor: a file of so many MiB, written into the page cache.
    fn plain_write(&self, mib: u64) -> Result<Duration> {
        const PIECE: usize = 1 << 20;
        let piece = vec![0x5a; PIECE];
        let path = self.folder.path().join("plain");
        let mut file = File::create(&path).context("a file")?;
        let begun = Instant::now();
        for _ in 0..mib {
            file.write_all(&piece).context("a file")?;
        }
        let time = begun.elapsed();
        std::fs::remove_file(&path).context("a file")?;
        Ok(time)
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A guest that writes memory when it is told to.
struct Guest {
    running: Running,
    serial: PipeWriter,
    api: Api,
    /// Where its snapshots are kept while they are measured.
    snapshot: PathBuf,
    _folder: tempfile::TempDir,
}

impl Guest {
    fn start(bench: &Bench, monitor: &Peer, touched: u64) -> Result<Guest> {
        let folder = tempfile::tempdir().context("temporary directory")?;
        let socket = folder.path().join("api");
        let cmdline = format!(
            "run=rewrite:mem={WRITTEN}:touch={touched} tsc-khz={}",
            bench.tsc_khz
        );
        let machine = MachineSpec {
            kernel: &bench.kernel,
            cmdline: &cmdline,
            memory: GUEST,
            disk: None,
            tap: None,
        };
        let mut command = command_with_api(&monitor.plain(), &machine, folder.path(), &socket)?;
        let (input, serial) = std::io::pipe().context("a pipe")?;
        let mut running = Running::start_reading(&mut command, input.into())?;
        running.wait_for(b"# rewrite: ready")?;
        Ok(Guest {
            running,
            serial,
            api: Api::wait(&socket)?,
            snapshot: bench.folder.path().join("snapshot"),
            _folder: folder,
        })
    }

    /// Tells it a byte, and waits for what it says to that.
    fn tell(&mut self, byte: u8) -> Result<Task> {
        self.running.listen_anew();
        self.serial.write_all(&[byte]).context("the serial port")?;
        self.running.wait_for_remark("rewrite")
    }

    /// Keeps it once, after it has written. Also gives the longest time that it stood still meanwhile, in us.
    fn measure(&mut self, part: Part, case: &Case) -> Result<(Info, f64)> {
        self.tell(b'w')?;
        // Either way, standing still counts from here.
        self.tell(if case.busy { b'l' } else { b's' })?;
        let info = self.keep(part, case.live, part == Part::Diff)?;
        let stood = self.tell(b's')?.number("gap_us")?;
        ensure!(
            info.memory_bytes >= part.mib() << 20,
            "only {:.1} MiB were kept: the guest did not write what it was told to",
            mib(info.memory_bytes)
        );
        Ok((info, stood))
    }

    fn keep(&self, part: Part, live: bool, track: bool) -> Result<Info> {
        let request = json!({
            "destination_url": format!("file://{}", self.snapshot.display()),
            "type": part.word(), "live": live, "track_dirty": track,
        });
        let answer = self.api.put("/api/v1/vm.snapshot", &request)?;
        // A diff builds on it, but nobody will restore that.
        std::fs::remove_dir_all(&self.snapshot).context("the snapshot")?;
        serde_json::from_value(answer).context("the answer to vm.snapshot")
    }
}
