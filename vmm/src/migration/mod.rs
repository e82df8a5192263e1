//! Live migration: a running machine goes to another monitor.
//!
//! ```text
//! source                                target
//! HELLO header ────────────────────────▶ does it fit here?
//!              ◀──────────────────────── ACCEPT, or REFUSE and why
//! FILE, DATA … ────────────────────────▶ frozen layers of disks, if they go with the guest
//! PAGES … ─────────────────────────────▶ while the guest runs, in rounds
//! (the guest is paused, its disks are let go)
//! PAGES, FILE, DATA …, STATE ──────────▶ builds the machine, opens the disks
//!              ◀──────────────────────── READY
//! GO ──────────────────────────────────▶
//!              ◀──────────────────────── RUNNING; the guest goes on there
//! ```
//!
//! **Who has the guest.** Until GO it is the source's: whatever fails before, it says CANCEL, waits until the
//! target has let go, takes its disks back and goes on. From GO on it is the target's. The source keeps it,
//! paused, until it hears RUNNING; if it does not, it stays paused, and `vm.resume` tries to take the disks
//! back. Over a Unix socket the end of a process is certain: then a target that has said READY goes on when
//! its source ends, and a source takes the guest back whose target ends before RUNNING. Over TCP a broken
//! connection says nothing, and nobody goes on because of one. Whoever goes on needs the locks of the disks.

mod files;
mod receive;
mod send;
mod wire;

use std::io;

use skerry_link::LinkError;
use skerry_snapshot::SnapshotError;
use thiserror::Error;

use crate::disks::DiskError;
use crate::machine::MachineError;
use crate::memory::TrackError;
use crate::snapshot::SnapshotRequestError;

pub use receive::{Arrival, listen};
pub use send::{Cancel, Sending};

/// Why a migration failed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MigrationError {
    #[error("a migration or a snapshot is under way: wait for its end, or cancel it")]
    UnderWay,
    #[error("no migration is under way")]
    None,
    #[error("the migration was cancelled")]
    Cancelled,
    #[error("the VM ended while it was being migrated")]
    Ended,
    #[error(
        "disk `{0}` has bitmaps, which would be lost: remove them first (vm.disk-bitmap-remove)"
    )]
    Bitmaps(String),
    #[error(
        "disk `{0}` keeps its data in a file of its own, which cannot go with it: let both hosts reach it"
    )]
    DataFile(String),
    #[error("the guest brings its disks: give disk_dir=DIR for them")]
    NoDiskDir,
    #[error("cannot {what}")]
    Link {
        what: &'static str,
        source: io::Error,
    },
    #[error("the other side does not speak this protocol: {0}")]
    Protocol(&'static str),
    #[error("the target refused: {}", .0.join("; "))]
    Refused(Vec<String>),
    #[error("the target could not go on: {0}; the VM goes on here")]
    Target(String),
    #[error(
        "{0}: the other side may have the guest, so it stays paused here; see whether it runs there, and if not, vm.resume lets it go on"
    )]
    Stranded(String),
    #[error(transparent)]
    Connection(#[from] LinkError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotRequestError),
    #[error(transparent)]
    State(#[from] SnapshotError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Track(#[from] TrackError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn link(what: &'static str) -> impl Fn(io::Error) -> MigrationError {
    move |source| MigrationError::Link { what, source }
}
