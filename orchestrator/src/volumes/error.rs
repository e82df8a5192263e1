//! What can be wrong with volumes.

use std::io;
use std::path::{Path, PathBuf};

use skerry_vmm_api::client::ClientError;

use crate::api::ApiError;
use crate::model::FieldError;

/// Why something cannot be done with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something else has to happen first; it is tried again.
    #[error("{0}")]
    Waits(String),
    /// The system refused.
    #[error("cannot {what} {path}")]
    System {
        /// What was tried, as a verb.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A layer cannot be used.
    #[error("a layer cannot be used")]
    Image(#[from] skerry_images::Error),
    /// What says which layers there are cannot be understood.
    #[error("{path} is damaged: restore the volume from a snapshot")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The VM's monitor does not do it.
    #[error("the VM's monitor does not do it")]
    Monitor(#[from] ClientError),
    /// The VM's monitor does not answer.
    #[error("the VM's monitor does not answer")]
    Silent,
    /// A field cannot be understood.
    #[error("{0}")]
    Field(FieldError),
    /// The store failed.
    #[error("what is declared cannot be read or written")]
    Api(#[from] ApiError),
    /// A thread ended.
    #[error("its thread ended")]
    Thread(#[from] tokio::task::JoinError),
}

/// A failure of the system.
pub(super) fn system(
    what: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.as_ref().to_owned();
    move |source| VolumeError::System { what, path, source }
}
