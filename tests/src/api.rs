//! The API as a test drives it: blocking, and loud about what it did not expect.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use skerry_vmm_api::VmConfig;
use skerry_vmm_api::client::{Client, ClientError};
use skerry_vmm_api::endpoints::{ENDPOINTS, Operation, ROOT};
use skerry_vmm_api::requests::{
    DiskJobInfo, DiskJobState, DiskSnapshotInfo, VmCounters, VmDiskCommit, VmDiskSnapshot,
    VmDiskStream, VmInfo, VmState,
};
use skerry_vmm_api::snapshots::{VmPrepare, VmRestore, VmRestoreInfo, VmSnapshot, VmSnapshotInfo};
use tokio::runtime::Runtime;

use crate::eventually;

/// A monitor's API.
pub struct Api {
    socket: PathBuf,
    client: Client,
    runtime: Runtime,
}

/// A request whose answer is waited for later, or never.
pub struct Begun(UnixStream);

impl Begun {
    /// The status and the body. None if the monitor ends before it answers.
    pub fn answer(mut self) -> Option<(u16, String)> {
        let mut answer = Vec::new();
        self.0.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }
}

impl Api {
    /// Waits until the monitor answers.
    pub fn connect(socket: &Path) -> Api {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let api = Api {
            socket: socket.to_owned(),
            client: Client::new(socket),
            runtime: runtime.expect("a runtime"),
        };
        eventually("the API answers", Duration::from_secs(20), || {
            api.runtime.block_on(api.client.ping()).ok()
        });
        api
    }

    /// Runs a request of the client.
    pub fn with<T>(&self, request: impl AsyncFnOnce(&Client) -> T) -> T {
        self.runtime.block_on(request(&self.client))
    }

    /// Sends a request and does not wait for its answer.
    pub fn begin(&self, operation: Operation, body: &impl Serialize) -> Begun {
        let row = ENDPOINTS.iter().find(|e| e.operation == operation);
        let (method, path) = row.map(|e| (e.method, e.path)).expect("an endpoint");
        let body = serde_json::to_string(body).expect("JSON");
        let request = format!(
            "{method} {ROOT}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(&self.socket).expect("the monitor listens");
        stream.write_all(request.as_bytes()).expect("sent");
        Begun(stream)
    }

    /// Creates a VM.
    pub fn create(&self, config: &VmConfig) {
        self.with(async |c| c.create(config).await)
            .expect("vm.create");
    }

    /// An operation that must be carried out.
    pub fn act(&self, operation: Operation) {
        self.with(async |c| c.act(operation).await)
            .unwrap_or_else(|e| panic!("{operation:?}: {e}"));
    }

    /// An operation that must be refused, with `status` and causes that have all `words`.
    pub fn refused(&self, operation: Operation, body: &str, status: u16, words: &[&str]) {
        let (got, answer) = self
            .with(async |c| c.raw(operation, body.into()).await)
            .expect("an answer");
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(got, status, "{operation:?} {body}: {text}");
        let causes: Vec<String> = serde_json::from_slice(&answer).expect("a list of causes");
        assert!(!causes.is_empty());
        for word in words {
            assert!(
                text.contains(word),
                "{operation:?}: `{word}` is not in {text}"
            );
        }
    }

    /// vm.info.
    pub fn info(&self) -> VmInfo {
        self.with(async |c| c.info().await).expect("vm.info")
    }

    /// vm.counters.
    pub fn counters(&self) -> VmCounters {
        self.with(async |c| c.counters().await)
            .expect("vm.counters")
    }

    /// Waits until a disk's job is over, and says how it ended.
    pub fn expect_job(&self, job: &DiskJobInfo, limit: Duration) -> DiskJobInfo {
        eventually(&format!("job {} ends", job.job), limit, || {
            let jobs = self
                .with(async |c| c.disk_jobs().await)
                .expect("vm.disk-jobs");
            let job = jobs
                .into_iter()
                .find(|j| j.job == job.job)
                .expect("the job");
            (job.state != DiskJobState::Running).then_some(job)
        })
    }

    /// Puts a new layer on top of a disk.
    pub fn snapshot(&self, id: &str, path: &Path) -> DiskSnapshotInfo {
        let (id, path) = (id.to_owned(), path.to_owned());
        self.with(async |c| c.disk_snapshot(&VmDiskSnapshot { id, path }).await)
            .expect("vm.disk-snapshot")
    }

    /// Begins to merge a layer into the one below it.
    pub fn commit(&self, id: &str, layer: usize) -> DiskJobInfo {
        let id = id.to_owned();
        self.with(async |c| c.disk_commit(&VmDiskCommit { id, layer }).await)
            .expect("vm.disk-commit")
    }

    /// Begins to draw layers up into the top one.
    pub fn stream(&self, id: &str, base: Option<usize>) -> DiskJobInfo {
        let id = id.to_owned();
        self.with(async |c| c.disk_stream(&VmDiskStream { id, base }).await)
            .expect("vm.disk-stream")
    }

    /// Keeps the VM in a snapshot.
    pub fn keep(&self, snapshot: &VmSnapshot) -> VmSnapshotInfo {
        self.with(async |c| c.snapshot(snapshot).await)
            .expect("vm.snapshot")
    }

    /// Makes a VM of a snapshot.
    pub fn restore(&self, restore: &VmRestore) -> VmRestoreInfo {
        self.with(async |c| c.restore(restore).await)
            .expect("vm.restore")
    }

    /// Makes a VM ready for what will run in it.
    pub fn prepare(&self, prepare: &VmPrepare) {
        self.with(async |c| c.prepare(prepare).await)
            .expect("vm.prepare");
    }

    /// How many layers a disk has.
    pub fn layers(&self, id: &str) -> usize {
        let disks = self.with(async |c| c.disks().await).expect("vm.disks");
        let disk = disks.into_iter().find(|d| d.id == id).expect("the disk");
        disk.layers.len()
    }

    /// Waits until the VM is in `state`.
    pub fn expect_state(&self, state: VmState, limit: Duration) {
        eventually(&format!("the VM is {state:?}"), limit, || {
            (self.info().state == state).then_some(())
        });
    }

    /// Whether an error is a refusal with this status.
    pub fn is_refusal(error: &ClientError, expected: u16) -> bool {
        matches!(error, ClientError::Refused { status, .. } if *status == expected)
    }
}
