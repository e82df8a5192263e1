//! A client of the API socket: one connection a request, typed answers, refusals with all causes.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::config::{DiskConfig, NetConfig, VmConfig};
use crate::endpoints::{ENDPOINTS, Operation, ROOT};
use crate::requests::{
    DiskInfo, DiskJobInfo, DiskSnapshotInfo, ErrorBody, PciDeviceInfo, VmCounters, VmDiskBackup,
    VmDiskBitmap, VmDiskCancel, VmDiskCommit, VmDiskSnapshot, VmDiskStream, VmInfo, VmRemoveDevice,
    VmResizeDisk, VmUsage, VmmPingResponse,
};
use crate::snapshots::{
    VmMigrationInfo, VmPrepare, VmReceiveMigration, VmRestore, VmRestoreInfo, VmSendMigration,
    VmSnapshot, VmSnapshotInfo, VmWorkingSetInfo,
};
use crate::workers::{PollMax, VmMoveQueues, VmSetWorker, WorkerInfo};

/// Bytes of an answer that are read at most.
const MAX_ANSWER: usize = 4 << 20;

/// Why a request brought no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach the monitor at {path}")]
    Connect {
        /// The API socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the monitor's answer to {operation:?} was cut off")]
    Http {
        /// What was asked.
        operation: Operation,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The monitor refused.
    #[error("{operation:?} was refused ({status}): {}", .causes.join(": "))]
    Refused {
        /// What was asked.
        operation: Operation,
        /// The HTTP status.
        status: u16,
        /// The error and its causes.
        causes: ErrorBody,
    },
    /// The answer is not what this version expects.
    #[error("the monitor's answer to {operation:?} is not understood")]
    Answer {
        /// What was asked.
        operation: Operation,
        /// Where the JSON differs.
        source: serde_json::Error,
    },
}

/// A monitor, by its API socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The monitor that listens on `socket`. Nothing is sent yet.
    pub fn new(socket: &Path) -> Client {
        Client {
            socket: socket.to_owned(),
        }
    }

    /// Asks whether the monitor is there.
    pub async fn ping(&self) -> Result<VmmPingResponse, ClientError> {
        self.get(Operation::VmmPing).await
    }

    /// Configures a VM.
    pub async fn create(&self, config: &VmConfig) -> Result<(), ClientError> {
        self.put(Operation::VmCreate, Some(config)).await
    }

    /// The VM's configuration and state.
    pub async fn info(&self) -> Result<VmInfo, ClientError> {
        self.get(Operation::VmInfo).await
    }

    /// What the VM's devices counted.
    pub async fn counters(&self) -> Result<VmCounters, ClientError> {
        self.get(Operation::VmCounters).await
    }

    /// All that is counted of the VM.
    pub async fn usage(&self) -> Result<VmUsage, ClientError> {
        self.get(Operation::VmUsage).await
    }

    /// An operation that takes nothing and answers nothing: boot, pause, resume, shutdown, reboot,
    /// power button, delete, and ending the monitor.
    pub async fn act(&self, operation: Operation) -> Result<(), ClientError> {
        self.put(operation, None::<&()>).await
    }

    /// Adds a disk. The device's place is answered if the VM runs.
    pub async fn add_disk(&self, disk: &DiskConfig) -> Result<Option<PciDeviceInfo>, ClientError> {
        self.put_for(Operation::VmAddDisk, disk).await
    }

    /// Adds a network device. Its place is answered if the VM runs.
    pub async fn add_net(&self, net: &NetConfig) -> Result<Option<PciDeviceInfo>, ClientError> {
        self.put_for(Operation::VmAddNet, net).await
    }

    /// Removes a device. If the VM runs, its guest is asked for it, and it is there until it was given back.
    pub async fn remove_device(&self, id: &str) -> Result<(), ClientError> {
        self.put(
            Operation::VmRemoveDevice,
            Some(&VmRemoveDevice { id: id.to_owned() }),
        )
        .await
    }

    /// The running VM's disks, with their layers and bitmaps.
    pub async fn disks(&self) -> Result<Vec<DiskInfo>, ClientError> {
        self.get(Operation::VmDisks).await
    }

    /// Puts a new layer on top of a disk.
    pub async fn disk_snapshot(
        &self,
        snapshot: &VmDiskSnapshot,
    ) -> Result<DiskSnapshotInfo, ClientError> {
        self.put_and_get(Operation::VmDiskSnapshot, snapshot).await
    }

    /// Begins to merge a disk's layer into the one below it.
    pub async fn disk_commit(&self, commit: &VmDiskCommit) -> Result<DiskJobInfo, ClientError> {
        self.put_and_get(Operation::VmDiskCommit, commit).await
    }

    /// Begins to draw a disk's layers up into the top one.
    pub async fn disk_stream(&self, stream: &VmDiskStream) -> Result<DiskJobInfo, ClientError> {
        self.put_and_get(Operation::VmDiskStream, stream).await
    }

    /// Begins to copy a disk as it is now.
    pub async fn disk_backup(&self, backup: &VmDiskBackup) -> Result<DiskJobInfo, ClientError> {
        self.put_and_get(Operation::VmDiskBackup, backup).await
    }

    /// Long work on disks.
    pub async fn disk_jobs(&self) -> Result<Vec<DiskJobInfo>, ClientError> {
        self.get(Operation::VmDiskJobs).await
    }

    /// Ends a disk's job early.
    pub async fn disk_cancel(&self, job: u64) -> Result<(), ClientError> {
        self.put(Operation::VmDiskCancel, Some(&VmDiskCancel { job }))
            .await
    }

    /// Keeps the VM in a snapshot.
    pub async fn snapshot(&self, snapshot: &VmSnapshot) -> Result<VmSnapshotInfo, ClientError> {
        self.put_and_get(Operation::VmSnapshot, snapshot).await
    }

    /// Makes a VM of a snapshot, or finds out what stands in the way.
    pub async fn restore(&self, restore: &VmRestore) -> Result<VmRestoreInfo, ClientError> {
        self.put_and_get(Operation::VmRestore, restore).await
    }

    /// Records what a restored guest has touched.
    pub async fn working_set(&self) -> Result<VmWorkingSetInfo, ClientError> {
        self.put_and_get(Operation::VmWorkingSet, &()).await
    }

    /// Lets the VM go on in another monitor; returns when it does.
    pub async fn send_migration(
        &self,
        request: &VmSendMigration,
    ) -> Result<VmMigrationInfo, ClientError> {
        self.put_and_get(Operation::VmSendMigration, request).await
    }

    /// Waits for a VM; returns when it goes on here.
    pub async fn receive_migration(&self, request: &VmReceiveMigration) -> Result<(), ClientError> {
        self.put(Operation::VmReceiveMigration, Some(request)).await
    }

    /// Makes a VM ready for what will run in it.
    pub async fn prepare(&self, prepare: &VmPrepare) -> Result<(), ClientError> {
        self.put(Operation::VmPrepare, Some(prepare)).await
    }

    /// The workers, and what each serves.
    pub async fn workers(&self) -> Result<Vec<WorkerInfo>, ClientError> {
        self.get(Operation::VmWorkers).await
    }

    /// Lets another worker serve queues of a device; all of them if none are named.
    pub async fn move_queues(
        &self,
        id: &str,
        queues: Option<Vec<u16>>,
        worker: &str,
    ) -> Result<(), ClientError> {
        let (id, worker) = (id.to_owned(), worker.to_owned());
        let queues = VmMoveQueues { id, queues, worker };
        self.put(Operation::VmMoveQueues, Some(&queues)).await
    }

    /// Changes how long a worker looks for work by itself.
    pub async fn set_worker(&self, name: &str, poll_max_ns: PollMax) -> Result<(), ClientError> {
        let name = name.to_owned();
        let set = VmSetWorker { name, poll_max_ns };
        self.put(Operation::VmSetWorker, Some(&set)).await
    }

    /// Changes a disk's size.
    pub async fn resize_disk(&self, id: &str, desired_size: u64) -> Result<(), ClientError> {
        let id = id.to_owned();
        let resize = VmResizeDisk { id, desired_size };
        self.put(Operation::VmResizeDisk, Some(&resize)).await
    }

    /// Adds, clears or removes a disk's bitmap.
    pub async fn disk_bitmap(
        &self,
        operation: Operation,
        bitmap: &VmDiskBitmap,
    ) -> Result<(), ClientError> {
        self.put(operation, Some(bitmap)).await
    }

    /// Sends any body to an endpoint: the status and the answer's body.
    pub async fn raw(
        &self,
        operation: Operation,
        body: Vec<u8>,
    ) -> Result<(u16, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ClientError::Connect {
            path: self.socket.clone(),
            source,
        })?;
        let broken = |source| ClientError::Http { operation, source };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(e.into()))?;
        let (method, path) = place(operation);
        let request = Request::builder()
            .method(method)
            .uri(format!("{ROOT}{path}"))
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| broken(e.into()))?;
        let exchange = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|e| broken(e.into()))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await;
            Ok((status, body.map_err(broken)?.to_bytes()))
        };
        tokio::pin!(exchange);
        // The connection does the work while the exchange waits for it.
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(e) => Err(broken(e.into())),
            },
        }
    }

    async fn send(&self, operation: Operation, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let (status, answer) = self.raw(operation, body).await?;
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let causes = serde_json::from_slice(&answer);
        let causes = causes.unwrap_or_else(|_| vec![String::from_utf8_lossy(&answer).into_owned()]);
        Err(ClientError::Refused {
            operation,
            status,
            causes,
        })
    }

    async fn get<T: DeserializeOwned>(&self, operation: Operation) -> Result<T, ClientError> {
        let answer = self.send(operation, Vec::new()).await?;
        serde_json::from_slice(&answer).map_err(|source| ClientError::Answer { operation, source })
    }

    async fn put(
        &self,
        operation: Operation,
        body: Option<&impl Serialize>,
    ) -> Result<(), ClientError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|source| ClientError::Answer { operation, source })?;
        self.send(operation, body.unwrap_or_default())
            .await
            .map(drop)
    }

    async fn put_and_get<T: DeserializeOwned>(
        &self,
        operation: Operation,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let json = |source| ClientError::Answer { operation, source };
        let body = serde_json::to_vec(body).map_err(json)?;
        let answer = self.send(operation, body).await?;
        serde_json::from_slice(&answer).map_err(json)
    }

    async fn put_for<T: DeserializeOwned>(
        &self,
        operation: Operation,
        body: &impl Serialize,
    ) -> Result<Option<T>, ClientError> {
        let json = |source| ClientError::Answer { operation, source };
        let answer = self
            .send(operation, serde_json::to_vec(body).map_err(json)?)
            .await?;
        if answer.is_empty() {
            Ok(None)
        } else {
            serde_json::from_slice(&answer).map(Some).map_err(json)
        }
    }
}

/// The method and path of an operation. Every one has a row in the table; a test sees to that.
fn place(operation: Operation) -> (&'static str, &'static str) {
    let row = ENDPOINTS.iter().find(|e| e.operation == operation);
    row.map_or(("GET", "/"), |e| (e.method, e.path))
}
