//! `skerry-churn DISK STOP [ROUNDS] [echo=ADDRESS:PORT]`: writes and reads a disk and memory until the file
//! STOP exists or the rounds are over, beside a timer that fires and datagrams that come back.
//!
//! It knows what every 4 KiB block holds: the round that wrote it last, or the content that it found there. Each
//! round's threads write random extents past the page cache, flush, and read back what they wrote and some of what
//! was there; the end reads everything. Lines on standard output are for the host.

mod clock;
mod disk;
mod echo;
mod load;
mod memory;
mod pattern;

use std::path::Path;
use std::process::ExitCode;

use clock::Clock;
use disk::Disk;
use echo::Echo;
use load::{Load, Wrong};
use memory::Memory;

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let echo = words.pop_if(|word| word.starts_with("echo="));
    let server = echo.as_deref().and_then(|word| word.strip_prefix("echo="));
    let (disk, stop, rounds) = match words.as_slice() {
        [disk, stop] => (disk, stop, Ok(u32::MAX)),
        [disk, stop, rounds] => (disk, stop, rounds.parse()),
        _ => {
            println!("churn FAILED wanted: DISK STOP [ROUNDS] [echo=ADDRESS:PORT]");
            return ExitCode::FAILURE;
        }
    };
    let outcome = rounds
        .map_err(|error| Wrong::Other(format!("rounds: {error}")))
        .and_then(|rounds| churn(Path::new(disk), Path::new(stop), rounds, server));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            println!("churn FAILED {wrong}");
            ExitCode::FAILURE
        }
    }
}

fn churn(path: &Path, stop: &Path, rounds: u32, server: Option<&str>) -> Result<(), Wrong> {
    let disk = Disk::open(path, true)?;
    let echo = server.map(Echo::start).transpose()?;
    let answers = || echo.as_ref().map_or(Ok(0), Echo::answers);
    let (clock, mut memory) = (Clock::start(), Memory::new());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut load = Load::new(&disk)?;
    println!(
        "churn found size={} sum={:#018x}",
        load.size(),
        load.found()
    );
    while load.rounds() < rounds && !stop.exists() {
        if let Some(size) = load.grow()? {
            println!("disk {name} grew to {}M", size >> 20);
        }
        load.round()?;
        memory.round(load.rounds())?;
        let (ticks, answers) = (clock.ticks()?, answers()?);
        match load.rounds() {
            1 => println!("churn running"),
            round => println!("churn round {round} ok ticks={ticks} echoes={answers}"),
        }
    }
    memory.verify()?;
    let sum = load.verify()?;
    println!(
        "churn ok rounds={} bytes={} size={} sum={sum:#018x}",
        load.rounds(),
        load.bytes(),
        load.size()
    );
    Ok(())
}
