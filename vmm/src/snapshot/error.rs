//! Why a snapshot or a restore was refused.

use std::io;
use std::path::PathBuf;

use skerry_devices::virtio::vhost_user::VhostUserError;
use skerry_link::LinkError;
use skerry_snapshot::SnapshotError;
use thiserror::Error;

use crate::arch::ArchError;
use crate::disks::DiskError;
use crate::memory::TrackError;

/// Why a snapshot could not be taken or restored.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SnapshotRequestError {
    #[error("`{0}` is no URL of a directory: give file:///path/of/the/snapshot")]
    Url(String),
    #[error(
        "`{0}` is no place for a snapshot: give file:///path/of/the/snapshot, or where somebody receives it, unix:/path/of/a/socket or tcp:HOST:PORT"
    )]
    Destination(String),
    #[error("a snapshot is being taken: wait for its end")]
    UnderWay,
    #[error("device `{id}` {why}")]
    Device { id: String, why: &'static str },
    #[error("device `{id}` cannot be kept")]
    Held { id: String, source: VhostUserError },
    #[error(
        "nothing is known of what the guest wrote since a snapshot: take a full one with track_dirty=true first"
    )]
    NoParent,
    #[error(
        "the snapshot {0}, on which this one would build, went over a connection: send this one after it, or take a full one"
    )]
    Elsewhere(String),
    #[error("the VM ended while its snapshot was being taken")]
    Ended,
    #[error("CPU {0} does not answer: it failed before")]
    Cpu(u32),
    #[error("the VM cannot be restored here: {}", .0.join("; "))]
    Problems(Vec<String>),
    #[error("cannot write memory to {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot fetch the memory that is missing")]
    Fetch(#[source] io::Error),
    #[error("the VM was not made of a snapshot: restore one first (vm.restore)")]
    NotRestored,
    #[error("cannot note in {path} that the snapshot's disks go on without it")]
    Mark { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Connection(#[from] LinkError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Track(#[from] TrackError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Arch(#[from] ArchError),
}
