//! Why something cannot be done with a container.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::image::ImageError;

/// Why something cannot be done with a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// An image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A container's name cannot be one.
    #[error(
        "{id:?} cannot name a container: give 1 to 128 of the characters a-z, A-Z, 0-9, '.', '_' and '-', the first a letter or a digit"
    )]
    Name {
        /// The name.
        id: String,
    },
    /// There is no such container.
    #[error("there is no container {id}: create it first")]
    None {
        /// Its name.
        id: String,
    },
    /// There is one already.
    #[error("container {id} is there already: delete it first, or start it again")]
    Exists {
        /// Its name.
        id: String,
    },
    /// It does not run.
    #[error("container {id} is not running: it is {state}")]
    NotRunning {
        /// Its name.
        id: String,
        /// What it is instead.
        state: &'static str,
    },
    /// It runs.
    #[error("container {id} is running: stop it first")]
    Running {
        /// Its name.
        id: String,
    },
    /// What it is to be contradicts itself, or cannot be had.
    #[error("the container's {field} cannot be {value:?}: {remedy}")]
    Spec {
        /// The field of the specification.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        remedy: String,
    },
    /// The process that looks after it did not start it.
    #[error("container {id} did not start: {why}")]
    Start {
        /// Its name.
        id: String,
        /// What the process said.
        why: String,
    },
    /// The runtime refused.
    #[error("the runtime cannot {what}: {why}")]
    Runtime {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        why: String,
    },
    /// The process that looks after it refused.
    #[error("container {id}: {why}")]
    Refused {
        /// Its name.
        id: String,
        /// What it said.
        why: String,
    },
    /// Something took too long.
    #[error("{what} took more than {} s", limit.as_secs_f32())]
    Slow {
        /// What took long.
        what: String,
        /// How long it may take.
        limit: Duration,
    },
    /// A bundle cannot be made.
    #[error("cannot describe the container to its runtime")]
    Bundle(#[from] oci_spec::OciSpecError),
    /// The system refused.
    #[error("cannot {what} {path}", path = path.display())]
    System {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ContainerError {
    /// The system's refusal to do something with a file.
    pub fn system(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> ContainerError {
        let path = path.into();
        move |source| ContainerError::System { what, path, source }
    }

    /// A specification that cannot be met.
    pub fn spec(
        field: &'static str,
        value: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ContainerError {
        ContainerError::Spec {
            field,
            value: value.into(),
            remedy: remedy.into(),
        }
    }

    /// The error and its causes, on one line.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line
    }
}
