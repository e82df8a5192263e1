//! Why a snapshot is refused.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What is wrong with a snapshot, or what the system refused.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Of which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no snapshot.
    #[error("{path} is no snapshot: {what}")]
    Foreign {
        /// The directory or its file.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// Another version wrote it.
    #[error(
        "{path} has format version {found}, and this program reads {oldest} to {newest}: use the version that wrote it ({advice})"
    )]
    Version {
        /// The state file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// What is read.
        oldest: u32,
        /// What is written.
        newest: u32,
        /// What to do.
        advice: &'static str,
    },
    /// It is damaged.
    #[error(
        "{path} is damaged: {what}: take the snapshot again, or fetch it again from where it came"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A diff snapshot's parent is not there or another one.
    #[error("the snapshot {path} builds on {parent}, {what}")]
    Parent {
        /// The diff snapshot.
        path: PathBuf,
        /// What it builds on.
        parent: PathBuf,
        /// What is wrong with that.
        what: String,
    },
    /// A diff comes without what it builds on.
    #[error(
        "it builds on the snapshot {id}: give its directory (--parent DIR), or take a full snapshot"
    )]
    NoParent {
        /// The parent's id.
        id: String,
    },
    /// What comes is no stream of a snapshot, or was cut or altered.
    #[error("the stream is no whole snapshot: {what}: send it again")]
    Stream {
        /// What is wrong.
        what: String,
    },
    /// Another version sends it.
    #[error(
        "the stream has version {found}, and this program reads {known}: use the same version at both ends"
    )]
    StreamVersion {
        /// Its version.
        found: u32,
        /// What is read.
        known: u32,
    },
    /// The connection to the other side broke, or it was silent.
    #[error("cannot {what} the snapshot's stream")]
    Link {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever was to receive it did not take it.
    #[error("the receiver refused the snapshot: {0}")]
    Refused(String),
    /// It cannot be written, or nobody could read it.
    #[error("the snapshot cannot be written: {what}")]
    Unwritable {
        /// What is wrong.
        what: String,
    },
    /// It was ended early, and nothing came of it.
    #[error("cancelled")]
    Cancelled,
    /// Something is in the way.
    #[error("{path} is there already: give the name of a new directory")]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A record that nobody asked for.
    #[error(
        "{path} has {kind} `{id}`, which this machine has no use for: it was written by another version"
    )]
    Leftover {
        /// The state file.
        path: PathBuf,
        /// The record's kind.
        kind: String,
        /// Whose it is.
        id: String,
    },
}

pub(crate) fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}
