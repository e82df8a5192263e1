//! `skerry image`: image files, after `qemu-img`'s conventions, except that formats and layers are never guessed; and
//! the image store.

mod bench;
mod bitmap;
mod check;
mod checksum;
mod commit;
mod compare;
mod convert;
mod convert_oci;
mod create;
mod export;
mod fetch;
mod find_boot;
mod gc;
mod import;
mod info;
mod inspect;
mod layers;
mod list;
mod map;
mod measure;
mod options;
mod prepare;
mod pull;
mod rebase;
mod registry;
mod resize;
mod rm;
mod scratch;
mod snapshot;
mod store;
mod verify;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::failure::{Failure, Outcome, exit_code};
use super::{bytes, date, output, progress};

pub use fetch::FetchError;

/// Disk images, qcow2 and raw, and the store of images. Formats and backing layers are always given, never guessed.
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new image
    Create(create::Create),
    /// Say what an image is
    Info(info::Info),
    /// Look for damage and leaked space, and mend it
    Check(check::Check),
    /// Tell whether two disks hold the same
    Compare(compare::Compare),
    /// Copy a disk into another image
    Convert(convert::Convert),
    /// Say where a disk's content is
    Map(map::Map),
    /// Say how large the file of a new image would be
    Measure(measure::Measure),
    /// Make a disk larger or smaller
    Resize(resize::Resize),
    /// Put an image on other layers
    Rebase(rebase::Rebase),
    /// Merge an image into the layer below it
    Commit(commit::Commit),
    /// List, make, apply or delete internal snapshots
    Snapshot(snapshot::Snapshot),
    /// List and change persistent bitmaps of what changed
    Bitmap(bitmap::Bitmap),
    /// Bring an OCI image from a registry into the image store
    Pull(pull::Pull),
    /// Bring a disk image or an OCI image into the image store
    Import(import::Import),
    /// List the images of the store
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Say what an image of the store is
    Inspect(inspect::Inspect),
    /// Take an image's name away
    Rm(rm::Rm),
    /// Remove what no name and no workload needs from the store
    Gc(gc::Gc),
    /// Read the whole store, and say what is damaged
    Verify(verify::Verify),
    /// Make a disk image of an OCI image of the store
    ConvertOci(convert_oci::ConvertOci),
    /// Boot a disk image of the store once, and keep what VMs are cloned from
    Prepare(prepare::Prepare),
    /// Find the kernel of a disk image of the store
    #[command(hide = true)]
    FindBoot(find_boot::FindBoot),
    /// Write a disk image of the store to a file
    Export(export::Export),
    /// Measure how fast an image is read or written
    Bench(bench::Bench),
}

impl Image {
    /// Does it; the exit code.
    pub fn run(self) -> ExitCode {
        let (outcome, failed) = match self.command {
            Command::Create(c) => (c.run(), 1),
            Command::Info(c) => (c.run(), 1),
            Command::Check(c) => (c.run(), 1),
            Command::Compare(c) => (c.run(), 2),
            Command::Convert(c) => (c.run(), 1),
            Command::Map(c) => (c.run(), 1),
            Command::Measure(c) => (c.run(), 1),
            Command::Resize(c) => (c.run(), 1),
            Command::Rebase(c) => (c.run(), 1),
            Command::Commit(c) => (c.run(), 1),
            Command::Snapshot(c) => (c.run(), 1),
            Command::Bitmap(c) => (c.run(), 1),
            Command::Bench(c) => (c.run(), 1),
            Command::Pull(c) => (c.run(), 1),
            Command::Import(c) => (c.run(), 1),
            Command::List(c) => (c.run(), 1),
            Command::Inspect(c) => (c.run(), 1),
            Command::Rm(c) => (c.run(), 1),
            Command::Gc(c) => (c.run(), 1),
            Command::Verify(c) => (c.run(), 1),
            Command::ConvertOci(c) => (c.run(), 1),
            Command::Prepare(c) => (c.run(), 1),
            Command::FindBoot(c) => (c.run(), 1),
            Command::Export(c) => (c.run(), 1),
        };
        exit_code(outcome, failed)
    }
}

/// The exit code for flags that are wrong: `compare` answers "different" with 1.
pub fn usage_code() -> u8 {
    let compare = std::env::args().nth(2).is_some_and(|a| a == "compare");
    if compare { 2 } else { 1 }
}
