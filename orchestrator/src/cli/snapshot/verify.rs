//! `skerry snapshot verify`.

use std::path::{Path, PathBuf};

use clap::Args;
use skerry_snapshot::{Chain, Directory, Header, MemoryFile, Watch};

use super::output::on_a_line;
use super::progress::Bar;
use super::watch::Watched;
use super::{Outcome, bytes, disks};

/// Look for damage, and for disk layers that are missing
///
/// What the snapshot builds on is checked with it. Exits with 0: none, 1: damage, or could not look, 3: disk layers are missing, and nothing else.
#[derive(Debug, Args)]
pub struct Verify {
    /// The snapshot's directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    #[command(flatten)]
    bar: Bar,
}

impl Verify {
    /// Does it.
    pub fn run(&self) -> Outcome {
        // All checksums of state are compared here, those of memory below.
        let chain = Chain::open(&Directory::new(&self.directory))?;
        self.bar.watch("Checking", |progress| {
            let watch = Watched(progress);
            watch.expect(chain.summed());
            chain.verify_watched(&watch)
        })?;
        for (header, memory) in chain.headers.iter().zip(&chain.memory) {
            println!("{}", on_a_line(&checked(header, memory)));
        }
        let findings = disks::look(&chain.state.header().config);
        for missing in &findings.missing {
            eprintln!("skerry: {missing}");
        }
        println!("files of disks: {}", findings.there);
        if !findings.missing.is_empty() {
            eprintln!("skerry: the snapshot is sound, but cannot be restored without these files");
            return Ok(3);
        }
        println!("ok");
        Ok(0)
    }
}

/// What of a snapshot was checked.
fn checked(header: &Header, memory: &MemoryFile) -> String {
    let directory = memory.path().parent().unwrap_or(Path::new("."));
    // Those below are named from here: `two/../one` is `one`.
    let directory = directory
        .canonicalize()
        .unwrap_or_else(|_| directory.to_owned());
    let (count, summed) = (header.records.len(), memory.summed());
    format!(
        "{}: {count} records ({} bytes), {} of memory ({summed} bytes)",
        directory.display(),
        header.records.iter().map(|record| record.len).sum::<u64>(),
        bytes::show(summed),
    )
}
