//! `skerry snapshot merge`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use skerry_snapshot::{Directory, merge};

use super::progress::Bar;
use super::watch::Watched;
use super::{Failure, Outcome, bytes};

/// Make one full snapshot of a diff and what it builds on
///
/// These stay as they are. What builds on the diff can as well build on the new one, in the diff's
/// place.
#[derive(Debug, Args)]
pub struct Merge {
    /// The snapshot's directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// The new one's directory, which must not exist
    #[arg(value_name = "TARGET")]
    target: PathBuf,

    #[command(flatten)]
    bar: Bar,
}

impl Merge {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let source = Directory::new(&self.directory);
        self.bar.watch("Merging", |progress| {
            merge(&source, &self.target, &Watched(progress))
        })?;
        let target = Directory::new(&self.target);
        let memory = target.header()?.memory;
        let used = used(&target.state())? + used(&target.memory())?;
        println!(
            "Merged {} into {}: {} of {} of memory ({} of {} bytes), {} on disk",
            self.directory.display(),
            self.target.display(),
            bytes::show(memory.data),
            bytes::show(memory.size),
            memory.data,
            memory.size,
            bytes::show(used),
        );
        Ok(0)
    }
}

/// Bytes that a file takes.
fn used(path: &Path) -> Result<u64, Failure> {
    match path.metadata() {
        Ok(found) => Ok(found.blocks() * 512),
        Err(source) => Err(Failure::System {
            what: "look at",
            path: path.to_owned(),
            source,
        }),
    }
}
