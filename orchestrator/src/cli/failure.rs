//! What a command that failed says.

use std::error::Error;
use std::path::PathBuf;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// An image cannot be used so.
    #[error(transparent)]
    Image(#[from] skerry_images::Error),
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
        eprintln!("skerry: {self}");
        let mut cause = self.source();
        while let Some(error) = cause {
            eprintln!("  because: {error}");
            cause = error.source();
        }
    }
}
