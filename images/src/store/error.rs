//! Why the image store cannot do something.

use std::io;
use std::path::PathBuf;

use super::Hash;

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {what} {path} of the image store")]
    System {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file or folder, below the store's directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// Others have it for so long that it was given up.
    #[error("the image store {path} is in use by another process: try again when that has ended", path = path.display())]
    Busy {
        /// The store's directory.
        path: PathBuf,
    },
    /// It was written by another version.
    #[error(
        "the image store {path} has version {found}, and this program knows version {known}: {remedy}",
        path = path.display(),
        remedy = remedy(*found, *known)
    )]
    Version {
        /// The store's directory.
        path: PathBuf,
        /// What it has.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// No image has this name.
    #[error(
        "no image `{name}` in the store: bring it there with `skerry image pull` or `skerry image import`"
    )]
    NoImage {
        /// The name, with its tag.
        name: String,
    },
    /// It cannot be a name.
    #[error(
        "{name:?} is no name of an image: {why}; write NAME[:TAG] of a-z, 0-9 and . _ - /, as in debian:12"
    )]
    Name {
        /// What was given.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The image is of another kind than is needed.
    #[error("image `{name}` is {is}, and {wanted} is needed")]
    Kind {
        /// The image.
        name: String,
        /// What it is.
        is: &'static str,
        /// What was needed.
        wanted: &'static str,
    },
    /// Something in the store is not what it was when it was put there.
    #[error(
        "{what} {hash} of the image store is damaged: {why}; `skerry image verify --drop` removes what is damaged, then import the image anew"
    )]
    Damaged {
        /// What it is.
        what: &'static str,
        /// Its name.
        hash: Hash,
        /// What is wrong.
        why: String,
    },
    /// A pack's index cannot be understood.
    #[error(
        "{path} of the image store is damaged: {why}; `skerry image verify --drop` removes it, then import the images anew"
    )]
    Pack {
        /// Its file, below the store's directory.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A record cannot be understood.
    #[error("{path} of the image store cannot be understood")]
    Record {
        /// Its file, below the store's directory.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// What is imported cannot be read.
    #[error("what is imported cannot be read")]
    Source(#[source] io::Error),
    /// An image's file cannot be read.
    #[error(transparent)]
    Image(#[from] crate::Error),
    /// What it starts from is not found.
    #[error(transparent)]
    Boot(#[from] crate::boot::BootError),
    /// It is larger than the store takes.
    #[error("{what} has {size} bytes, and at most {limit} can be: nothing was imported")]
    TooMuch {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        size: u64,
        /// How large it may be.
        limit: u64,
    },
    /// The caller asked it to end.
    #[error("cancelled")]
    Cancelled,
}

/// What to do with a store of another version.
fn remedy(found: u32, known: u32) -> &'static str {
    match found < known {
        true => {
            "its images cannot be read any more: take another directory, or remove this one while no workload has an image of it, and import them anew"
        }
        false => "use a program of that version, or another directory",
    }
}

/// A refusal of the system.
pub(super) fn system(
    what: &'static str,
    path: impl Into<String>,
) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.into();
    move |source| StoreError::System { what, path, source }
}
