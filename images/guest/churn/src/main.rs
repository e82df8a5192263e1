//! `skerry-churn DISK STOP [ROUNDS]`: writes and reads a disk until the file STOP exists or the rounds are over.
//!
//! It knows what every 4 KiB block holds: the round that wrote it last, or the content that it found there. Each
//! round's threads write random extents past the page cache, flush, and read back what they wrote and some of what
//! was there; the end reads everything. Lines on standard output are for the host.

mod disk;
mod load;
mod pattern;

use std::path::Path;
use std::process::ExitCode;

use disk::Disk;
use load::{Load, Wrong};

/// Rounds for each line about them, after the first ones.
const ROUNDS_PER_LINE: u32 = 4;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (disk, stop, rounds) = match words.as_slice() {
        [disk, stop] => (disk, stop, Ok(u32::MAX)),
        [disk, stop, rounds] => (disk, stop, rounds.parse()),
        _ => {
            println!("churn FAILED wanted: DISK STOP [ROUNDS]");
            return ExitCode::FAILURE;
        }
    };
    let outcome = rounds
        .map_err(|error| Wrong::Other(format!("rounds: {error}")))
        .and_then(|rounds| churn(Path::new(disk), Path::new(stop), rounds));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            println!("churn FAILED {wrong}");
            ExitCode::FAILURE
        }
    }
}

fn churn(path: &Path, stop: &Path, rounds: u32) -> Result<(), Wrong> {
    let disk = Disk::open(path, true)?;
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
        match load.rounds() {
            1 => println!("churn running"),
            round if round % ROUNDS_PER_LINE == 0 => println!("churn round {round} ok"),
            _ => {}
        }
    }
    let sum = load.verify()?;
    println!(
        "churn ok rounds={} bytes={} size={} sum={sum:#018x}",
        load.rounds(),
        load.bytes(),
        load.size()
    );
    Ok(())
}
