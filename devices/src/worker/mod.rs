//! I/O workers: threads with one io_uring each, to which queues of any device are attached.
//!
//! A worker knows [`Source`]s only: things that submit operations and are told of completions.
//! Whoever attached a source gets it back by detaching it, once nothing of it is in flight.
//! Every operation, also waiting for a doorbell, goes through the ring, so a batch of any mix of
//! them costs one system call. Sources that usually have work soon are looked into without any
//! (`polling.rs`); `turn.rs` is what a worker does all day.

mod polling;
mod ring;
mod turn;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

pub use polling::PollCap;
pub(crate) use polling::now;
pub use ring::Io;
pub use wait::{FdWait, KickWait, TimerWait};

/// The tag of a source's doorbell: when it rings, the worker learns how soon work comes.
pub const KICK: u32 = u32::MAX;

/// Something that runs on a worker: a virtqueue and what serves it.
///
/// The order of calls: `start`, then any number of `set_polled`, `poll`, `complete` and `flush`, then
/// `stop`, then `complete` until nothing is in flight, then `stopped`. Or `lost`, at any time.
pub trait Source: Send {
    /// The source was attached: wait for whatever it waits for, and look for work.
    fn start(&mut self, io: &mut Io<'_>);
    /// The operation submitted with `tag` ended with `result` (a negative errno on failure).
    fn complete(&mut self, io: &mut Io<'_>, tag: u32, result: i32);
    /// A batch of completions is over: raise interrupts now, once.
    fn flush(&mut self, io: &mut Io<'_>);
    /// Submit nothing more and cancel what waits; requests in flight will complete.
    fn stop(&mut self, io: &mut Io<'_>);
    /// Nothing is in flight any more: hand the state back to the device.
    fn stopped(self: Box<Self>);
    /// From now on the worker looks into it by itself (`true`): its driver need not ring. Or it does no
    /// more: look for work once more, after having asked the driver to ring. False if it cannot.
    fn set_polled(&mut self, _io: &mut Io<'_>, _polled: bool) -> bool {
        false
    }
    /// Looks for work; true if there was some. Also called after [`Io::come_back`].
    fn poll(&mut self, _io: &mut Io<'_>) -> bool {
        false
    }
    /// The worker broke down, and with it everything that is in flight. Nothing of the source is used
    /// again; while `in_flight`, the kernel may still write to what it submitted.
    fn lost(self: Box<Self>, why: &str, in_flight: bool);
    /// What it is called in [`WorkerHandle::report`]; nothing if it is not to be seen there.
    fn name(&self) -> Option<Arc<str>> {
        None
    }
}

/// Names an attached source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceId(u64);

enum Command {
    Attach(SourceId, Box<dyn Source>),
    Detach(SourceId),
    Report(SyncSender<Vec<SourceReport>>),
    Quit,
}

/// What a worker says of a source.
#[derive(Debug, Clone)]
pub struct SourceReport {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the worker looks into it by itself.
    pub polled: bool,
    /// For how long it would without work, in nanoseconds.
    pub budget_ns: u64,
}

#[derive(Default)]
struct Commands {
    queue: VecDeque<Command>,
    last_id: u64,
    /// The thread broke down: what to say of it.
    dead: Option<Arc<str>>,
}

struct Mailbox {
    commands: Mutex<Commands>,
    /// There are commands. Looked at in every turn, since a worker that polls does not sleep.
    mail: AtomicBool,
    wake: EventFd,
    poll_max: AtomicU64,
    cap: Arc<PollCap>,
    stats: Stats,
    /// The ring's descriptor, for tests that break it.
    #[cfg(test)]
    ring: std::sync::atomic::AtomicI32,
}

/// What a worker counted, in its own thread.
#[derive(Default)]
struct Stats {
    sleeps: AtomicU64,
    polled_ns: AtomicU64,
    capped: AtomicU64,
}

/// What a worker counted.
#[derive(Debug, Clone, Copy)]
pub struct WorkerStats {
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Nanoseconds that it looked for work and found none.
    pub polled_ns: u64,
    /// Times that the cap on polling sent it to sleep.
    pub capped: u64,
}

/// How a worker polls.
#[derive(Clone)]
pub struct PollSettings {
    /// The longest time that a source is looked into without work, in nanoseconds; 0: never,
    /// `u64::MAX`: for ever.
    pub max_ns: u64,
    /// What all workers of the process share.
    pub cap: Arc<PollCap>,
}

impl PollSettings {
    /// Only events, no polling.
    pub fn events() -> PollSettings {
        PollSettings {
            max_ns: 0,
            cap: Arc::new(PollCap::new(None)),
        }
    }
}

/// A way to attach sources to a worker. Clones lead to the same worker.
#[derive(Clone)]
pub struct WorkerHandle(Arc<Mailbox>);

impl WorkerHandle {
    /// Hands `source` to the worker. Returns at once.
    pub fn attach(&self, source: Box<dyn Source>) -> SourceId {
        let mut commands = self.0.commands.lock();
        commands.last_id += 1;
        let id = SourceId(commands.last_id);
        if let Some(why) = commands.dead.clone() {
            drop(commands);
            source.lost(&why, false);
            return id;
        }
        commands.queue.push_back(Command::Attach(id, source));
        drop(commands);
        self.wake();
        id
    }

    /// Stops a source. Returns at once; [`Source::stopped`] is called when it has drained.
    pub fn detach(&self, id: SourceId) {
        self.send(Command::Detach(id));
    }

    /// How long sources are polled from now on.
    pub fn set_poll_max(&self, ns: u64) {
        self.0.poll_max.store(ns, Ordering::Relaxed);
        // One that polls for ever, or sleeps, looks at it now.
        self.wake();
    }

    /// The longest time that a source is polled.
    pub fn poll_max(&self) -> u64 {
        self.0.poll_max.load(Ordering::Relaxed)
    }

    /// What the worker serves now; nothing if it does not answer.
    pub fn report(&self) -> Vec<SourceReport> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let (send, receive) = sync_channel(1);
        if !self.send(Command::Report(send)) {
            return Vec::new();
        }
        receive.recv_timeout(PATIENCE).unwrap_or_default()
    }

    /// What the worker counted.
    pub fn stats(&self) -> WorkerStats {
        let stats = &self.0.stats;
        WorkerStats {
            sleeps: stats.sleeps.load(Ordering::Relaxed),
            polled_ns: stats.polled_ns.load(Ordering::Relaxed),
            capped: stats.capped.load(Ordering::Relaxed),
        }
    }

    /// Whether its thread still serves.
    pub fn is_alive(&self) -> bool {
        self.0.commands.lock().dead.is_none()
    }

    /// False if nobody will read it.
    fn send(&self, command: Command) -> bool {
        {
            let mut commands = self.0.commands.lock();
            if commands.dead.is_some() {
                return false;
            }
            commands.queue.push_back(command);
        }
        self.wake();
        true
    }

    fn wake(&self) {
        self.0.mail.store(true, Ordering::Release);
        // Only fails when the counter is about to overflow, and then the worker is awake anyway.
        let _ = self.0.wake.write(1);
    }
}

/// A worker thread. Dropping it ends the thread; sources are detached before.
pub struct Worker {
    name: String,
    handle: WorkerHandle,
    prepared: Receiver<io::Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker thread called `name` (at most 15 bytes show up in the system's tools).
    /// Returns at once: sources may be attached, and [`wait_prepared`](Self::wait_prepared) tells
    /// whether they will run.
    ///
    /// `prepare` runs on the new thread first: pinning, the sandbox. The ring is made before it,
    /// because the sandbox forbids that.
    pub fn start(
        name: &str,
        polling: PollSettings,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Worker> {
        let mailbox = Arc::new(Mailbox {
            commands: Mutex::default(),
            mail: AtomicBool::new(false),
            wake: EventFd::new(0)?,
            poll_max: AtomicU64::new(polling.max_ns),
            cap: polling.cap,
            stats: Stats::default(),
            #[cfg(test)]
            ring: std::sync::atomic::AtomicI32::new(-1),
        });
        let (prepared, thread) = spawn(name, mailbox.clone(), prepare)?;
        Ok(Worker {
            name: name.to_owned(),
            handle: WorkerHandle(mailbox),
            prepared,
            thread: Some(thread),
        })
    }

    /// Starts the thread anew after it broke down; its handles lead to the new one. Does nothing while
    /// it serves.
    pub fn revive(
        &mut self,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        if self.handle.is_alive() {
            return Ok(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Before there is a thread that could break down again.
        let dead = self.handle.0.commands.lock().dead.take();
        let again = spawn(&self.name, self.handle.0.clone(), prepare).and_then(|spawned| {
            let (prepared, thread) = spawned;
            (self.prepared, self.thread) = (prepared, Some(thread));
            self.wait_prepared()
        });
        if again.is_err() {
            let mut commands = self.handle.0.commands.lock();
            commands.dead = dead;
            let waiting = std::mem::take(&mut commands.queue);
            drop(commands);
            turn::refuse(waiting, "its I/O worker did not start again");
        }
        again
    }

    /// Waits until the thread runs. Called once.
    pub fn wait_prepared(&self) -> io::Result<()> {
        let prepared = self.prepared.recv();
        prepared.map_err(|_| io::Error::other("the worker's thread ended at once"))?
    }

    /// A handle to attach sources with.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

type Spawned = (Receiver<io::Result<()>>, JoinHandle<()>);

fn spawn(
    name: &str,
    inbox: Arc<Mailbox>,
    prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<Spawned> {
    let (ready, prepared) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let ring = ring::Ring::new().and_then(|ring| prepare().map(|()| ring));
            match ring {
                Ok(ring) => {
                    #[cfg(test)]
                    inbox.ring.store(ring.fd(), Ordering::Release);
                    let _ = ready.send(Ok(()));
                    turn::run(ring, &inbox);
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        })?;
    Ok((prepared, thread))
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.send(Command::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
