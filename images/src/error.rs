//! Why an image cannot be used.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on an image failed. Each names the image.
#[derive(Debug, Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the file.
    #[error(
        "{path} is in use by another process: stop that one, or open it in both for reading only (readonly=on)"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Not a file that can hold an image, or one whose size does not fit.
    #[error("{path} is {what}")]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do about it.
        what: String,
    },
    /// Not a qcow2 image at all.
    #[error(
        "{path} is not a qcow2 image (its first bytes are not QFI\\xfb): name its format, for example raw:{path}"
    )]
    NotQcow2 {
        /// The file.
        path: PathBuf,
    },
    /// The image says of itself, or shows, that it is broken.
    #[error("image {path} is corrupt: {what}; try `skerry image check -r all` on a copy")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The image is well-formed but needs what this engine does not do.
    #[error("image {path} cannot be used: {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it needs.
        what: String,
    },
    /// The request does not fit the image.
    #[error("{path}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with the request, and what would be right.
        what: String,
    },
    /// Writing to something opened for reading.
    #[error("{path} was opened for reading only")]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// The caller asked it to end.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The system's error number for a guest or a tool that wants one.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Error::ReadOnly { .. } => libc::EROFS,
            Error::Cancelled => libc::ECANCELED,
            Error::Locked { .. } => libc::EAGAIN,
            Error::Unsupported { .. } => libc::ENOTSUP,
            Error::Invalid { .. } | Error::Kind { .. } | Error::NotQcow2 { .. } => libc::EINVAL,
            Error::Corrupt { .. } => libc::EIO,
        }
    }
}
