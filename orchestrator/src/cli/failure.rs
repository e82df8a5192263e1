//! What a command that failed says.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use super::output::on_a_line;

/// A command's exit code, or why it failed.
pub type Outcome = Result<u8, Failure>;

/// What the process ends with: `failed`, if the command failed, which is printed then.
pub fn exit_code(outcome: Outcome, failed: u8) -> ExitCode {
    ExitCode::from(outcome.unwrap_or_else(|failure| {
        failure.print();
        failed
    }))
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// An image cannot be used so.
    #[error(transparent)]
    Image(#[from] skerry_images::Error),
    /// The image store does not do it.
    #[error(transparent)]
    Images(#[from] skerry_images::store::StoreError),
    /// An OCI image cannot be used.
    #[error(transparent)]
    Oci(#[from] crate::runtime::container::ImageError),
    /// Something cannot be had from the network.
    #[error(transparent)]
    Fetch(#[from] super::image::FetchError),
    /// A snapshot cannot be used so.
    #[error(transparent)]
    Snapshot(#[from] skerry_snapshot::SnapshotError),
    /// A host does not answer, or refuses.
    #[error(transparent)]
    Client(#[from] super::remote::ClientError),
    /// A host does not run.
    #[error(transparent)]
    Up(#[from] crate::up::UpError),
    /// There is no connection.
    #[error(transparent)]
    Link(#[from] skerry_link::LinkError),
    /// A simulation cannot be.
    #[error(transparent)]
    Simulation(#[from] super::simulate::SimulateError),
    /// What was asked for contradicts itself, or lacks something.
    #[error("{0}")]
    Asked(String),
    /// The system refused.
    #[error("cannot {what} {path}", path = path.display())]
    System {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The answer cannot be written as JSON.
    #[error("cannot write the answer")]
    Json(#[from] serde_json::Error),
}

impl Failure {
    /// Prints the failure and its causes, one a line.
    pub fn print(&self) {
        eprintln!("skerry: {}", on_a_line(&self.to_string()));
        let mut cause = self.source();
        while let Some(error) = cause {
            eprintln!("  because: {}", on_a_line(&error.to_string()));
            cause = error.source();
        }
    }
}
