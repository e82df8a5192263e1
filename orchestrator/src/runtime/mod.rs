//! How workloads run: microVMs by monitors, containers by shims. What runs goes on without us, and is found
//! again by its folder alone.

mod claims;
pub mod container;
mod containers;
mod guest;
mod images;
mod ports;
mod shared;
pub mod usage;
mod vm;
mod volumes;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use skerry_exec::ExecSpec;
use tokio::net::UnixStream;

pub use claims::Claims;
pub use containers::Shims;
pub use images::Images;
pub(crate) use images::start_from;
pub use ports::Ports;
pub use usage::Usage;
pub use vm::{Pool, Shares, Vmm, Vms, monitor_of};
pub use volumes::Volumes;

use crate::firstboot::SeedError;
use crate::model::{FieldError, Object};
use crate::network::NetworkError;
use crate::volumes::VolumeError;

/// What is with a workload on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Nothing of it runs.
    Absent,
    /// It runs.
    Running,
    /// It ran, and ended.
    Ended(End),
}

/// How a workload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// It ended well: by itself, and without an error.
    pub well: bool,
    /// How, in a few words.
    pub how: String,
}

/// Why something could not be done with a workload.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// What it is to be cannot be here.
    #[error("{0}")]
    Unfit(String),
    /// A field cannot be understood.
    #[error("{0}")]
    Field(FieldError),
    /// The system refused.
    #[error("cannot {what}")]
    System {
        /// What was tried, as a verb.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// An image cannot be used.
    #[error("disk `{disk}` cannot be used")]
    Disk {
        /// The disk.
        disk: String,
        /// Why not.
        source: skerry_images::Error,
    },
    /// An image of the store cannot be used.
    #[error(transparent)]
    Image(#[from] skerry_images::store::StoreError),
    /// What a clone is to be made of cannot be used.
    #[error("no clone can be made of {path}: give the directory of a snapshot on this host")]
    Snapshot {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: skerry_snapshot::SnapshotError,
    },
    /// A monitor does not do what it is asked for.
    #[error("its monitor does not do it")]
    Monitor(#[source] skerry_vmm_api::client::ClientError),
    /// A container cannot be so.
    #[error(transparent)]
    Container(container::ContainerError),
    /// Its network cannot be.
    #[error("its network cannot be made")]
    Network(#[source] NetworkError),
    /// Something else has to happen first; it is tried again.
    #[error("{0}")]
    Waits(String),
    /// Its volumes cannot be used.
    #[error("its volumes cannot be used")]
    Volumes(#[source] VolumeError),
    /// It cannot be told what it is.
    #[error("what it is told at its first boot cannot be written")]
    FirstBoot(#[from] SeedError),
    /// It ended before it ran.
    #[error("it ended at once: {0}")]
    Stillborn(String),
}

/// A failure of the system.
fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> RuntimeError {
    let what = what.into();
    move |source| RuntimeError::System { what, source }
}

/// A connection that was made by something that waits, for tasks.
fn streaming(connection: std::os::unix::net::UnixStream) -> std::io::Result<UnixStream> {
    connection.set_nonblocking(true)?;
    UnixStream::from_std(connection)
}

/// Something that runs workloads of a kind. They are known by their uids.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Starts one that does not run; its addresses. Its disks are what they were if it ran before.
    async fn start(&self, object: &Object) -> Result<Vec<String>, RuntimeError>;

    /// What is with one.
    async fn life(&self, uid: &str) -> Life;

    /// Waits until one that runs has ended.
    async fn ended(&self, uid: &str);

    /// Asks one to end, and ends it after `grace`.
    async fn stop(&self, uid: &str, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes all that is left of one that does not run.
    async fn remove(&self, uid: &str) -> Result<(), RuntimeError>;

    /// Runs a command in one that runs; why it did not end well within `limit`, if it did not.
    async fn attempt(
        &self,
        _uid: &str,
        _command: &[String],
        _limit: Duration,
    ) -> Result<(), String> {
        Err("no commands run in it".to_owned())
    }

    /// The socket by which the vsock of one that runs is reached, if it can have one.
    fn vsock(&self, _uid: &str) -> Option<PathBuf> {
        None
    }

    /// What one says: a file, if it says anything.
    fn log(&self, uid: &str) -> Option<PathBuf>;

    /// Runs a command in one that runs. Its streams go over the connection, as `skerry_exec` says, and whoever
    /// closes it ends the command.
    async fn exec(&self, uid: &str, spec: ExecSpec) -> Result<UnixStream, RuntimeError> {
        let _ = (uid, spec);
        let what = "no command can be run in it: that is for microvms and containers";
        Err(RuntimeError::Unfit(what.to_owned()))
    }

    /// A connection to the console of one that runs: what it said last, then what it says and is told.
    async fn console(&self, uid: &str) -> Result<UnixStream, RuntimeError> {
        let _ = uid;
        let what = "it has no console: microvms have one. Look at what it says with `skerry logs`, or run a \
                    shell in it with `skerry exec -it`";
        Err(RuntimeError::Unfit(what.to_owned()))
    }

    /// What those use that run, of these, by their uids.
    async fn usage(&self, uids: Vec<String>) -> HashMap<String, Usage> {
        let _ = uids;
        HashMap::new()
    }

    /// The uids of all that left something here.
    async fn found(&self) -> Result<Vec<String>, RuntimeError>;
}
