//! Long work on disks: started on the I/O worker, watched from outside.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use skerry_devices::virtio::blk::run_on;
use skerry_devices::worker::{SourceId, WorkerHandle};
use skerry_images::chain::live::Progress;
use skerry_images::io::Port;
use skerry_images::{Error, Result};
use skerry_vmm_api::requests::{DiskJobInfo, DiskJobState};

use super::DiskError;

/// A task for the worker.
pub(super) type Task<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;
/// What is to be done when a job has ended, well or not.
type After = Box<dyn FnOnce(bool) -> Result<()> + Send>;
/// Jobs that ended and are still shown.
const SHOWN: usize = 32;

#[derive(Default)]
struct Watched {
    progress: Arc<Progress>,
    result: Mutex<Option<Result<()>>>,
    ended: Condvar,
}

struct Job {
    number: u64,
    disk: String,
    kind: &'static str,
    watched: Arc<Watched>,
    source: Option<SourceId>,
    after: Option<After>,
}

/// The jobs of a machine.
#[derive(Default)]
pub(super) struct Jobs {
    list: Vec<Job>,
    last: u64,
}

impl Jobs {
    /// Starts a job.
    pub fn start(
        &mut self,
        disk: &str,
        kind: &'static str,
        worker: &WorkerHandle,
        task: impl FnOnce(Port, Arc<Progress>) -> Task<()>,
    ) -> std::result::Result<DiskJobInfo, DiskError> {
        let watched = Arc::new(Watched::default());
        let (progress, ended) = (watched.progress.clone(), watched.clone());
        let source = run_on(
            worker,
            |port| task(port, progress),
            move |result| {
                *ended.result.lock() = Some(result);
                ended.ended.notify_all();
            },
        )
        .map_err(|source| DiskError::System {
            what: "begin work on a disk",
            source,
        })?;
        self.last += 1;
        let over = self.list.iter().filter(|j| j.source.is_none()).count();
        if over >= SHOWN
            && let Some(i) = self.list.iter().position(|j| j.source.is_none())
        {
            self.list.remove(i);
        }
        let job = Job {
            number: self.last,
            disk: disk.to_owned(),
            kind,
            watched,
            source: Some(source),
            after: None,
        };
        let info = job.info();
        self.list.push(job);
        Ok(info)
    }

    /// What is to be done when a job has ended.
    pub fn when_done(&mut self, number: u64, after: After) {
        if let Some(job) = self.list.iter_mut().find(|j| j.number == number) {
            job.after = Some(after);
        }
    }

    /// The number of the job under way on a disk.
    pub fn running(&self, disk: &str) -> Option<u64> {
        let job = self
            .list
            .iter()
            .find(|j| j.disk == disk && j.source.is_some());
        job.map(|j| j.number)
    }

    /// Tidies up after what has ended.
    pub fn reap(&mut self, worker: &WorkerHandle) {
        for job in &mut self.list {
            if job.watched.result.lock().is_some() {
                if let Some(source) = job.source.take() {
                    worker.detach(source);
                }
                job.finish();
            }
        }
    }

    /// All jobs, the oldest first.
    pub fn list(&self) -> Vec<DiskJobInfo> {
        self.list.iter().map(Job::info).collect()
    }

    /// Asks a job to end early. False if there is no such job.
    pub fn cancel(&mut self, number: u64) -> bool {
        let job = self.list.iter().find(|j| j.number == number);
        if let Some(job) = job {
            job.watched.progress.cancel();
        }
        job.is_some()
    }

    /// Ends all jobs and waits for it. The worker still runs.
    pub fn end(&mut self) {
        self.end_where(|_| true);
    }

    /// Ends a disk's jobs and waits for it.
    pub fn end_of(&mut self, disk: &str) {
        self.end_where(|job| job.disk == disk);
    }

    fn end_where(&mut self, is_meant: impl Fn(&Job) -> bool) {
        for job in self.list.iter().filter(|job| is_meant(job)) {
            job.watched.progress.cancel();
        }
        for job in self.list.iter_mut().filter(|job| is_meant(job)) {
            {
                let mut result = job.watched.result.lock();
                while result.is_none() {
                    job.watched.ended.wait(&mut result);
                }
            }
            job.finish();
        }
    }
}

impl Job {
    /// Does what was to be done after the job.
    fn finish(&mut self) {
        let mut result = self.watched.result.lock();
        if let (Some(after), Some(ended)) = (self.after.take(), &mut *result) {
            let tidied = after(ended.is_ok());
            if ended.is_ok() {
                *ended = tidied;
            }
        }
    }

    fn info(&self) -> DiskJobInfo {
        let result = self.watched.result.lock();
        // It counts as over when what follows it was done, too.
        let over = result.as_ref().filter(|_| self.after.is_none());
        let (state, error) = match over {
            None => (DiskJobState::Running, Vec::new()),
            Some(Ok(())) => (DiskJobState::Done, Vec::new()),
            Some(Err(Error::Cancelled)) => (DiskJobState::Cancelled, Vec::new()),
            Some(Err(e)) => (DiskJobState::Failed, crate::monitor::chain(e)),
        };
        DiskJobInfo {
            job: self.number,
            id: self.disk.clone(),
            kind: self.kind.to_owned(),
            state,
            done: self.watched.progress.done(),
            total: self.watched.progress.total(),
            error,
        }
    }
}
