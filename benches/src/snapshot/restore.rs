//! From the start of a process, or from a request to one that waits, to the first byte of a machine that goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::api::Api;
use crate::command::{MachineSpec, command};
use crate::cpu::{Prompt, Used};
use crate::kept::{DOT, Kept, Mode};
use crate::machine::available_memory;
use crate::peer::{Kind, Peer};
use crate::report::{Better, Report, Target};
use crate::running::Running;
use crate::size::Size;
use crate::stats::Samples;

/// What the first byte is aimed to come within, in ms, and what the largest guest may take beside the smallest.
const FROM_PROCESS: f64 = 8.0;
const FROM_POOL: f64 = 5.0;
const BY_SIZE: f64 = 1.2;

/// Where a restore begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Just before the process starts.
    Process,
    /// With the request to a process that waits, and that was told of the size.
    Pool,
}

const TABLES: [(Start, Mode, &str); 4] = [
    (
        Start::Process,
        Mode::Lazy,
        "restore: memory mapped, from process start to the first byte",
    ),
    (
        Start::Pool,
        Mode::Lazy,
        "restore: memory mapped, from a prepared process to the first byte",
    ),
    (
        Start::Process,
        Mode::Copy,
        "restore: memory read, from process start to the first byte",
    ),
    (
        Start::Pool,
        Mode::Copy,
        "restore: memory read, from a prepared process to the first byte",
    ),
];

impl Bench {
    pub(super) fn restores(&self, report: &mut Report) -> Result<()> {
        let (kept, left_out) = self.keep_all()?;
        let line = |kept: &Kept| Samples::new(name(kept));
        let mut tables = TABLES.map(|_| kept.iter().map(line).collect::<Vec<_>>());
        let mut floor = Samples::new("bare boot");
        let _prompt = Prompt::new();
        // The first round fills caches and doesn't count.
        for round in 0..=self.runs {
            for ((start, mode, _), samples) in TABLES.iter().zip(&mut tables) {
                for (kept, samples) in kept.iter().zip(samples) {
                    // Firecracker only maps.
                    if *mode == Mode::Copy && kept.monitor().kind == Kind::Firecracker {
                        continue;
                    }
                    let one = restore(kept, *start, *mode).with_context(|| name(kept))?;
                    if round > 0 {
                        one.add_to(samples);
                    }
                }
            }
            let one = self.bare()?;
            if round > 0 {
                one.add_to(&mut floor);
            }
        }
        for ((start, mode, title), mut samples) in TABLES.iter().zip(tables) {
            let targets = match mode {
                Mode::Lazy => targets(*start, &kept),
                Mode::Copy => Vec::new(),
            };
            samples.push(floor.clone());
            let left_out = match mode {
                Mode::Lazy => left_out.clone(),
                Mode::Copy => Vec::new(),
            };
            report.add_aimed(title, "ms", Better::Lower, &samples, left_out, &targets);
        }
        Ok(())
    }

    /// A snapshot of each monitor at each size, and those that this host has no room for.
    fn keep_all(&self) -> Result<(Vec<Kept>, Vec<String>)> {
        let (mut kept, mut left_out) = (Vec::new(), Vec::new());
        let cmdline = format!("run=tick:mem={} tsc-khz={}", self.touched, self.tsc_khz);
        for monitor in &self.monitors {
            for size in &self.sizes {
                if let Some(why) = no_room(monitor, *size, available_memory()) {
                    left_out.push(format!("{} {size}: {why}", monitor.kind.name()));
                    continue;
                }
                let machine = MachineSpec {
                    kernel: &self.kernel,
                    cmdline: &cmdline,
                    memory: *size,
                    disk: None,
                    tap: None,
                };
                let directory = format!("{}-{size}", monitor.kind.name());
                let directory = self.folder.path().join(directory);
                let one = Kept::take(monitor, &machine, &directory);
                kept.push(one.with_context(|| format!("{} {size}", monitor.kind.name()))?);
            }
        }
        Ok((kept, left_out))
    }

    /// The floor: the payload's first byte after a boot by a program that does nothing else.
    fn bare(&self) -> Result<One> {
        let machine = MachineSpec {
            kernel: &self.kernel,
            cmdline: "off=hlt",
            memory: self.sizes.first().copied().context("no sizes")?,
            disk: None,
            tap: None,
        };
        let mut command = command(&Peer::bare()?, &machine, self.folder.path())?;
        let mut running = Running::start(&mut command)?;
        let (_, time) = running.wait_for_byte()?;
        Ok(One {
            time,
            cpu: Used::by(running.pid())?,
        })
    }
}

fn name(kept: &Kept) -> String {
    format!("{} {}", kept.monitor().kind.name(), kept.size())
}

/// Why this host has no room for a guest of that size; none if it has.
fn no_room(monitor: &Peer, size: Size, available: u64) -> Option<&'static str> {
    // Memory that nobody touches takes none, but Firecracker's snapshot has it all in its file.
    let needed = match monitor.kind {
        Kind::Firecracker => size.bytes() / 4 * 5,
        _ => size.bytes(),
    };
    (needed > available).then_some("this host has not that much memory free")
}

fn targets(start: Start, kept: &[Kept]) -> Vec<Target> {
    let limit = match start {
        Start::Process => FROM_PROCESS,
        Start::Pool => FROM_POOL,
    };
    let mut ours = kept.iter().filter(|k| k.monitor().kind == Kind::Skerry);
    let (Some(first), last) = (ours.next().map(name), ours.next_back().map(name)) else {
        return Vec::new();
    };
    let mut targets = vec![Target::median(first, limit)];
    if let Some(last) = last {
        targets.push(Target::median(last.clone(), limit));
        targets.push(Target::ratio(last, BY_SIZE));
    }
    targets
}

/// One restore.
struct One {
    time: Duration,
    /// Processor time until then, also of the guest.
    cpu: Used,
}

impl One {
    fn add_to(&self, samples: &mut Samples) {
        samples.add(self.time.as_secs_f64() * 1e3);
        samples.add_beside("cpu ms", self.cpu.all() as f64 / 1e6);
    }
}

/// Goes on from a snapshot once.
fn restore(kept: &Kept, start: Start, mode: Mode) -> Result<One> {
    let folder = tempfile::tempdir().context("temporary directory")?;
    let socket = folder.path().join("api");
    if start == Start::Process && kept.monitor().kind == Kind::Skerry {
        let mut running = Running::start(&mut kept.restoring(mode, None))?;
        return went_on(&mut running, Used::default());
    }
    let mut running = Running::start(&mut kept.waiting(&socket))?;
    let api = Api::wait(&socket)?;
    let mut before = Used::default();
    if start == Start::Pool {
        kept.prepare(&api)?;
        before = Used::by(running.pid())?;
        running.listen_anew();
    }
    let sent = kept.load(&api, mode, None)?;
    let one = went_on(&mut running, before);
    // Its reasons are better than silence.
    sent.answer()?;
    one
}

fn went_on(running: &mut Running, before: Used) -> Result<One> {
    let (byte, time) = running.wait_for_byte()?;
    let cpu = Used::by(running.pid())?.since(before);
    ensure!(
        byte == DOT,
        "the guest did not go on, but printed {:?}",
        char::from(byte)
    );
    Ok(One { time, cpu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_all_memory_needs_room() {
        let firecracker: Peer = "firecracker=/f".parse().unwrap();
        let size: Size = "8G".parse().unwrap();
        assert!(no_room(&firecracker, size, 9 << 30).is_some());
        assert!(no_room(&firecracker, size, 10 << 30).is_none());
        let mut ours = firecracker;
        ours.kind = Kind::Skerry;
        assert!(no_room(&ours, size, 9 << 30).is_none());
        assert!(no_room(&ours, size, 7 << 30).is_some());
    }
}
