//! Long work on images beside the queues: a task with a worker to itself for as long as it takes.

use std::future::Future;
use std::pin::Pin;

use skerry_images::io::Port;

use super::ring::RingTasks;
use crate::worker::{Io, Source, SourceId, WorkerHandle};

/// What is called with a job's result.
type Ended<T> = Box<dyn FnOnce(T) + Send>;

struct Job<T> {
    tasks: RingTasks<T>,
    ended: Option<Ended<T>>,
}

/// Runs a task on the worker; `ended` is called there with its result. Detach the source then. A
/// task that is detached earlier goes on to its end.
pub fn run_on<T: Send + 'static>(
    worker: &WorkerHandle,
    task: impl FnOnce(Port) -> Pin<Box<dyn Future<Output = T> + Send>>,
    ended: impl FnOnce(T) + Send + 'static,
) -> std::io::Result<SourceId> {
    let mut tasks = RingTasks::new()?;
    let task = task(tasks.port().clone());
    tasks.spawn(0, task);
    Ok(worker.attach(Box::new(Job {
        tasks,
        ended: Some(Box::new(ended)),
    })))
}

impl<T: Send> Job<T> {
    fn go_on(&mut self, io: &mut Io<'_>) {
        self.tasks.run(io);
        if let Some((_, result)) = self.tasks.ended() {
            self.tasks.stop(io);
            if let Some(ended) = self.ended.take() {
                ended(result);
            }
        }
    }
}

impl<T: Send> Source for Job<T> {
    fn start(&mut self, io: &mut Io<'_>) {
        self.go_on(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, result: i32) {
        self.tasks.complete(tag, result);
        self.go_on(io);
    }

    fn flush(&mut self, _io: &mut Io<'_>) {}

    fn stop(&mut self, io: &mut Io<'_>) {
        self.tasks.stop(io);
    }

    fn stopped(self: Box<Self>) {}

    /// Whoever waits for the end learns by its closure's end that none will come.
    fn lost(mut self: Box<Self>, _why: &str, in_flight: bool) {
        self.ended = None;
        if in_flight {
            std::mem::forget(self);
        }
    }
}
