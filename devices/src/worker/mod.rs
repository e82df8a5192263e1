//! I/O workers: threads with one io_uring each, to which queues of any device are attached.
//!
//! A worker knows [`Source`]s only: things that submit operations and are told of completions.
//! Whoever attached a source gets it back by detaching it, once nothing of it is in flight.
//! Every operation, also waiting for a doorbell, goes through the ring, so a batch of any mix of
//! them costs one system call.

mod ring;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

pub use ring::Io;
pub use wait::{FdWait, KickWait};

/// Something that runs on a worker: a virtqueue and what serves it.
///
/// The order of calls: `start`, then any number of `complete` and `flush`, then `stop`, then
/// `complete` until nothing is in flight, then `stopped`.
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
}

/// Names an attached source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceId(u64);

enum Command {
    Attach(SourceId, Box<dyn Source>),
    Detach(SourceId),
    Quit,
}

struct Mailbox {
    commands: Mutex<(VecDeque<Command>, u64)>,
    wake: EventFd,
}

/// A way to attach sources to a worker. Clones lead to the same worker.
#[derive(Clone)]
pub struct WorkerHandle(Arc<Mailbox>);

impl WorkerHandle {
    /// Hands `source` to the worker. Returns at once.
    pub fn attach(&self, source: Box<dyn Source>) -> SourceId {
        let id = {
            let mut commands = self.0.commands.lock();
            commands.1 += 1;
            let id = SourceId(commands.1);
            commands.0.push_back(Command::Attach(id, source));
            id
        };
        self.wake();
        id
    }

    /// Stops a source. Returns at once; [`Source::stopped`] is called when it has drained.
    pub fn detach(&self, id: SourceId) {
        self.0.commands.lock().0.push_back(Command::Detach(id));
        self.wake();
    }

    fn wake(&self) {
        // Only fails when the counter is about to overflow, and then the worker is awake anyway.
        let _ = self.0.wake.write(1);
    }
}

/// A worker thread. Dropping it ends the thread; sources are detached before.
pub struct Worker {
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
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Worker> {
        let mailbox = Arc::new(Mailbox {
            commands: Mutex::new((VecDeque::new(), 0)),
            wake: EventFd::new(0)?,
        });
        let inbox = mailbox.clone();
        let (ready, prepared) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let ring = ring::Ring::new().and_then(|ring| prepare().map(|()| ring));
                match ring {
                    Ok(ring) => {
                        let _ = ready.send(Ok(()));
                        run(ring, &inbox);
                    }
                    Err(e) => drop(ready.send(Err(e))),
                }
            })?;
        Ok(Worker {
            handle: WorkerHandle(mailbox),
            prepared,
            thread: Some(thread),
        })
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

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.0.commands.lock().0.push_back(Command::Quit);
        self.handle.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An attached source and what the worker knows of it.
struct Attached {
    id: SourceId,
    source: Box<dyn Source>,
    in_flight: u32,
    stopping: bool,
    touched: bool,
}

fn run(mut ring: ring::Ring, inbox: &Mailbox) {
    let mut sources: Vec<Option<Attached>> = Vec::new();
    let mut batch = Vec::with_capacity(ring::ENTRIES as usize * 2);
    let mut wake = KickWait::default();
    ring.wait_for_mail(&mut wake, &inbox.wake);
    loop {
        if let Err(e) = ring.submit_and_wait() {
            // Out of memory for requests, say: nothing was lost, and the next turn tries again.
            log::warn!("io_uring_enter: {e}");
            continue;
        }
        ring.take_completions(&mut batch);
        let mut mail = false;
        for completion in batch.drain(..) {
            let Some(slot) = completion.slot else {
                mail |= completion.tag == ring::MAIL;
                continue;
            };
            let Some(Some(attached)) = sources.get_mut(slot as usize) else {
                continue;
            };
            attached.in_flight -= 1;
            attached.touched = true;
            attached.source.complete(
                &mut ring.io(slot, &mut attached.in_flight),
                completion.tag,
                completion.result,
            );
        }
        if mail {
            let commands = std::mem::take(&mut inbox.commands.lock().0);
            for command in commands {
                match command {
                    Command::Attach(id, source) => attach(&mut ring, &mut sources, id, source),
                    Command::Detach(id) => detach(&mut ring, &mut sources, id),
                    Command::Quit => return quit(sources),
                }
            }
            ring.wait_for_mail(&mut wake, &inbox.wake);
        }
        for (slot, place) in sources.iter_mut().enumerate() {
            let Some(attached) = place else { continue };
            if std::mem::take(&mut attached.touched) {
                attached
                    .source
                    .flush(&mut ring.io(slot as u32, &mut attached.in_flight));
            }
            if attached.stopping
                && attached.in_flight == 0
                && let Some(attached) = place.take()
            {
                attached.source.stopped();
            }
        }
    }
}

/// Ends with the sources that nobody detached. What the kernel may still write to or read from is
/// kept for good: it is little, and freeing it would hand the kernel somebody else's memory.
fn quit(sources: Vec<Option<Attached>>) {
    for attached in sources.into_iter().flatten() {
        if attached.in_flight > 0 {
            std::mem::forget(attached);
        }
    }
}

fn attach(
    ring: &mut ring::Ring,
    sources: &mut Vec<Option<Attached>>,
    id: SourceId,
    source: Box<dyn Source>,
) {
    let slot = sources.iter().position(Option::is_none).unwrap_or_else(|| {
        sources.push(None);
        sources.len() - 1
    });
    let attached = sources[slot].insert(Attached {
        id,
        source,
        in_flight: 0,
        stopping: false,
        touched: true,
    });
    attached
        .source
        .start(&mut ring.io(slot as u32, &mut attached.in_flight));
}

fn detach(ring: &mut ring::Ring, sources: &mut [Option<Attached>], id: SourceId) {
    let found = sources
        .iter_mut()
        .enumerate()
        .find_map(|(slot, place)| Some((slot, place.as_mut().filter(|a| a.id == id)?)));
    if let Some((slot, attached)) = found {
        attached.stopping = true;
        attached.touched = true;
        attached
            .source
            .stop(&mut ring.io(slot as u32, &mut attached.in_flight));
    }
}
