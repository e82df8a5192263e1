//! A virtio-blk queue on a worker: requests become io_uring operations, several at a time.
//!
//! Where a request's bytes are is looked up at once if it can be, and the kernel transfers them from
//! or to the guest's own memory. What takes more (a table that is not in memory, a cluster to
//! allocate, another layer to copy from) becomes a task.

use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use skerry_images::Result as ImageResult;
use skerry_images::chain::{Layer, Target, View, Volume};
use skerry_images::io::{Quick, Span};

use super::ID_LEN;
use super::request::{Extent, Limits, Request, Status, parse};
use super::ring::{RingTasks, Task};
use super::slot::{MAX_BOUNCE, Slot};
use crate::limit::{Limiter, Throttle};
use crate::virtio::Counter;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::served::{Serve, Side};
use crate::worker::Io;

/// Bytes of a request that the driver is shown at once.
const LONG: u64 = 16 << 10;
/// Failures of one queue that are logged: the guest decides how many there are.
const LOGGED: u32 = 3;
/// The task that waits for the volume's gate; requests' tasks have their slot's number.
const GATE: u32 = u32::MAX;
/// The tag of the wait for the rate limit; slots' numbers are smaller, tasks' operations larger.
const LIMIT: u32 = 1 << 30;

/// What one queue counted.
#[derive(Default)]
pub(super) struct BlkCounters {
    pub read_bytes: Counter,
    pub read_ops: Counter,
    pub write_bytes: Counter,
    pub write_ops: Counter,
}

/// Zeroes to write where a file system cannot zero a range by itself.
#[repr(align(4096))]
struct Zeroes([u8; 64 << 10]);
static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

pub(super) struct BlkQueue {
    volume: Arc<Volume>,
    /// The layers of requests under way: these never change while there are any.
    view: Arc<View>,
    generation: u64,
    id: [u8; ID_LEN],
    write_through: bool,
    counters: Arc<BlkCounters>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    tasks: RingTasks<ImageResult<()>>,
    quick: Quick,
    throttle: Throttle,
    /// A place or memory for a bounce buffer was lacking, or the gate is closed: look again later.
    starved: bool,
    /// A task waits for the gate.
    waits: bool,
    /// The volume knows of requests from here.
    entered: bool,
    /// It goes on knowing when none is under way.
    keep: bool,
    /// Requests under way.
    under_way: u32,
    /// Bytes of bounce buffers in flight.
    bounced: u64,
    /// Failures that were logged.
    failures: u32,
}

impl BlkQueue {
    pub fn new(
        volume: Arc<Volume>,
        id: [u8; ID_LEN],
        write_through: bool,
        counters: Arc<BlkCounters>,
        limiter: Option<Arc<Limiter>>,
    ) -> std::io::Result<Self> {
        Ok(BlkQueue {
            view: volume.view(),
            // Not that of any view: the first request looks.
            generation: u64::MAX,
            volume,
            id,
            write_through,
            counters,
            slots: Vec::new(),
            free: Vec::new(),
            tasks: RingTasks::new()?,
            quick: Quick::default(),
            throttle: Throttle::new(limiter),
            starved: false,
            waits: false,
            entered: false,
            keep: false,
            under_way: 0,
            bounced: 0,
            failures: 0,
        })
    }

    /// Takes a place for a request. Places are made when first needed, so that a queue that is
    /// never deep stays small.
    fn take_slot(&mut self, queue: &Queue) -> Option<u32> {
        if let Some(tag) = self.free.pop() {
            return Some(tag);
        }
        (self.slots.len() < usize::from(queue.size())).then(|| {
            self.slots.push(Slot::new(queue));
            self.slots.len() as u32 - 1
        })
    }

    /// Begins a request on the volume, or waits for its gate.
    ///
    /// All requests of the queue together are one for the volume: counting there costs a locked
    /// instruction, which waits until everything that was written for the driver has left the
    /// processor's store buffer.
    fn enter(&mut self) -> bool {
        if self.entered && self.volume.is_closed() {
            self.keep = false;
            self.leave();
        } else if self.entered || self.volume.begin() {
            self.entered = true;
            self.under_way += 1;
            self.volume.refresh(&mut self.view, &mut self.generation);
            return true;
        }
        self.starved = true;
        if !std::mem::replace(&mut self.waits, true) {
            let volume = self.volume.clone();
            let wait = async move {
                volume.opened().await;
                Ok(())
            };
            self.tasks.spawn(GATE, Box::pin(wait));
        }
        false
    }

    /// A request has ended, or never began.
    fn exit(&mut self) {
        self.under_way -= 1;
        self.leave();
    }

    /// Lets the volume know that no request is under way, unless the next one is expected soon.
    fn leave(&mut self) {
        if self.under_way == 0 && !self.keep && std::mem::take(&mut self.entered) {
            self.volume.end();
        }
    }

    fn begin(&mut self, queue: &mut Queue, io: &mut Io<'_>, tag: u32) -> Result<(), QueueError> {
        let slot = &mut self.slots[tag as usize];
        slot.status = slot.chain.take_back();
        if slot.status.is_none() {
            self.exit();
            return Err(QueueError::NoStatus);
        }
        slot.done = 0;
        slot.first = 0;
        slot.next_extent = 0;
        slot.by_writing = false;
        slot.zeroes_behind = false;
        slot.iov.clear();
        slot.extents.clear();
        let limits = Limits {
            size: self.volume.size(),
            readonly: self.volume.readonly(),
            block_size: self.volume.block_size(),
        };
        match parse(&mut slot.chain, &limits, &mut slot.extents) {
            Ok(request) => {
                slot.request = request;
                self.route(queue, io, tag);
                if !self.starved {
                    self.throttle.charge(request.bytes());
                }
            }
            Err(status) => {
                slot.request = Request::Flush;
                self.throttle.charge(0);
                self.finish(queue, tag, status);
            }
        }
        Ok(())
    }

    /// Finds the request's way: to a file, to nothing, or to a task.
    fn route(&mut self, queue: &mut Queue, io: &mut Io<'_>, tag: u32) {
        let slot = &mut self.slots[tag as usize];
        let (target, len) = match slot.request {
            Request::Id => {
                slot.chain.write(0, &self.id);
                slot.done = ID_LEN as u64;
                return self.finish(queue, tag, Status::Ok);
            }
            Request::Read { offset, len } => (self.view.read(offset, len), len),
            Request::Write { offset, len } => {
                // Write-through covers the tables, too: that takes a task.
                (self.view.write(offset, len, !self.write_through), len)
            }
            Request::Flush => {
                return match self.view.flush() {
                    Some(file) => {
                        slot.fd = file.raw_fd(false);
                        self.go_on(queue, io, tag);
                    }
                    None => self.start_task(tag),
                };
            }
            Request::Discard | Request::WriteZeroes => {
                return match self.view.stack.top() {
                    Layer::Raw(raw) if self.view.backup.is_none() => {
                        slot.fd = raw.file().raw_fd(false);
                        self.go_on(queue, io, tag);
                    }
                    _ => self.start_task(tag),
                };
            }
        };
        match target {
            Target::File(file, host, hold) => {
                slot.direct = file.is_direct();
                slot.fd = file.raw_fd(slot.direct);
                slot.host = host;
                slot.zeroes_behind =
                    !matches!(self.view.stack.layers()[hold.layer()], Layer::Raw(_));
                slot.hold = Some(hold);
                let room = MAX_BOUNCE - self.bounced;
                let block = self.volume.block_size();
                match slot.aim(file.memory_align(), block, len, room) {
                    Ok(bounced) => {
                        self.bounced += bounced;
                        self.go_on(queue, io, tag);
                    }
                    Err(Some(status)) => self.finish(queue, tag, status),
                    Err(None) => {
                        // Nothing was popped after it, so it goes back as it was.
                        self.let_go(tag, false);
                        self.exit();
                        queue.undo_pop();
                        self.free.push(tag);
                        self.starved = true;
                    }
                }
            }
            Target::Zeroes => {
                slot.iov.clear();
                slot.iov.extend_from_slice(slot.chain.writable());
                slot.zero_rest();
                slot.done = len;
                self.finish(queue, tag, Status::Ok);
            }
            Target::Unknown => self.start_task(tag),
        }
    }

    /// The layer that led a request to a file hears that it ended.
    fn let_go(&mut self, tag: u32, well: bool) {
        if let Some(hold) = self.slots[tag as usize].hold.take() {
            self.view.done(hold, well);
        }
    }

    /// Makes a task of the request.
    fn start_task(&mut self, tag: u32) {
        let slot = &self.slots[tag as usize];
        let (view, port) = (self.view.clone(), self.tasks.port().clone());
        // SAFETY: the buffers lie in guest RAM, which the slot's chain keeps mapped. The slot is kept
        // until the task has ended, and tasks await all operations that they began.
        let span = unsafe { Span::from_raw(slot.buffers()) };
        let through = self.write_through;
        let task: Task<_> = match slot.request {
            Request::Read { offset, .. } => {
                Box::pin(async move { view.read_slowly(&port, offset, &span).await })
            }
            Request::Write { offset, .. } => Box::pin(async move {
                view.write_slowly(&port, offset, &span).await?;
                if through {
                    view.stack.flush(&port).await
                } else {
                    Ok(())
                }
            }),
            Request::Flush | Request::Id => Box::pin(async move { view.stack.flush(&port).await }),
            kind @ (Request::Discard | Request::WriteZeroes) => {
                let extents: Vec<Extent> = slot.extents.clone();
                Box::pin(async move {
                    for e in extents {
                        if kind == Request::Discard {
                            view.discard(&port, e.offset, e.len).await?;
                        } else {
                            view.zero(&port, e.offset, e.len, e.unmap).await?;
                        }
                    }
                    if through {
                        view.stack.flush(&port).await
                    } else {
                        Ok(())
                    }
                })
            }
        };
        self.tasks.spawn(tag, task);
    }

    /// Submits the next operation of a request that was led to a file, or ends it.
    fn go_on(&mut self, queue: &mut Queue, io: &mut Io<'_>, tag: u32) {
        let write_flags = if self.write_through {
            libc::RWF_DSYNC
        } else {
            0
        };
        let slot = &mut self.slots[tag as usize];
        let fd = types::Fd(slot.fd);
        let rest = &slot.iov[slot.first.min(slot.iov.len())..];
        if slot.done == 0 && self.volume.memory_align() == 1 {
            let quick = &mut self.quick;
            let reads = matches!(slot.request, Request::Read { .. });
            let writes = matches!(slot.request, Request::Write { .. }) && !self.write_through;
            // SAFETY: the iovecs point into guest RAM, kept mapped by the slot's chain; the view
            // holds the file; without O_DIRECT no memory has to be aligned.
            let result = unsafe {
                match (reads, writes) {
                    (true, _) => quick.read(slot.fd, rest, slot.host),
                    (_, true) => quick.write(slot.fd, rest, slot.host),
                    _ => None,
                }
            };
            if let Some(result) = result {
                return self.completed(queue, io, tag, result);
            }
        }
        let entry: squeue::Entry = match slot.request {
            Request::Read { .. } => opcode::Readv::new(fd, rest.as_ptr(), rest.len() as u32)
                .offset(slot.host + slot.done)
                .build(),
            Request::Write { .. } => opcode::Writev::new(fd, rest.as_ptr(), rest.len() as u32)
                .offset(slot.host + slot.done)
                .rw_flags(write_flags)
                .build(),
            Request::Flush => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Request::Id => return self.finish(queue, tag, Status::Ok),
            Request::Discard | Request::WriteZeroes => {
                let Some(extent) = slot.extents.get(slot.next_extent) else {
                    // Write-through covers what is not written by write(2), too.
                    if self.write_through && !slot.extents.is_empty() {
                        slot.extents.clear();
                        slot.request = Request::Flush;
                        return self.go_on(queue, io, tag);
                    }
                    return self.finish(queue, tag, Status::Ok);
                };
                if slot.by_writing {
                    let n = extent.len.min(ZEROES.0.len() as u64);
                    opcode::Write::new(fd, ZEROES.0.as_ptr(), n as u32)
                        .offset(extent.offset)
                        .build()
                } else {
                    let hole = slot.request == Request::Discard || extent.unmap;
                    let mode = if hole {
                        libc::FALLOC_FL_PUNCH_HOLE
                    } else {
                        libc::FALLOC_FL_ZERO_RANGE
                    };
                    opcode::Fallocate::new(fd, extent.len)
                        .offset(extent.offset)
                        .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
                        .build()
                }
            }
        };
        // SAFETY: the iovecs are on the heap, in a vector that does not change until completion
        // (also when its slot moves because slots are added); they point into guest RAM, kept
        // mapped by the slot's chain, or into the slot's bounce buffer, which is on the heap too;
        // ZEROES is static. The file is held by `view`, which stays while a request is under way.
        unsafe { io.submit(tag, entry) };
    }

    fn completed(&mut self, queue: &mut Queue, io: &mut Io<'_>, tag: u32, result: i32) {
        let slot = &mut self.slots[tag as usize];
        match (slot.request, result) {
            (_, e) if e == -libc::EINTR || e == -libc::EAGAIN => self.go_on(queue, io, tag),
            (Request::Read { len, .. } | Request::Write { len, .. }, n) if n > 0 => {
                slot.advance(n as u64);
                if slot.done < len {
                    return self.go_on(queue, io, tag);
                }
                self.finish(queue, tag, Status::Ok);
            }
            (Request::Read { len, .. }, 0) if slot.zeroes_behind => {
                slot.zero_rest();
                slot.done = len;
                self.finish(queue, tag, Status::Ok);
            }
            (Request::Flush, 0) => self.finish(queue, tag, Status::Ok),
            (Request::Discard | Request::WriteZeroes, n) if n >= 0 => {
                let extent = &mut slot.extents[slot.next_extent];
                let (at, n) = match slot.by_writing {
                    true => (extent.offset, n as u64),
                    false => (extent.offset, extent.len),
                };
                extent.offset += n;
                extent.len -= n;
                if extent.len == 0 {
                    slot.next_extent += 1;
                    slot.by_writing = false;
                } else if n == 0 {
                    return self.finish(queue, tag, Status::IoErr);
                }
                self.view.written(at, n);
                self.go_on(queue, io, tag);
            }
            (Request::WriteZeroes, e) if e == -libc::EOPNOTSUPP && !slot.by_writing => {
                slot.by_writing = true;
                self.go_on(queue, io, tag);
            }
            (Request::Discard, e) if e == -libc::EOPNOTSUPP => {
                self.finish(queue, tag, Status::Unsupported)
            }
            (_, e) => {
                // 0 is a disk that became shorter underneath us.
                let e = std::io::Error::from_raw_os_error(-e);
                self.failed(&e.to_string());
                self.finish(queue, tag, Status::IoErr);
            }
        }
    }

    fn failed(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures <= LOGGED {
            log::warn!("disk I/O failed (logged {LOGGED} times at most): {why}");
        }
    }

    /// A request's task ended.
    fn task_ended(&mut self, queue: &mut Queue, tag: u32, result: ImageResult<()>) {
        let slot = &mut self.slots[tag as usize];
        match result {
            Ok(()) => {
                match slot.request {
                    Request::Read { len, .. } | Request::Write { len, .. } => slot.done = len,
                    _ => {
                        for e in &slot.extents {
                            self.view.written(e.offset, e.len);
                        }
                    }
                }
                self.finish(queue, tag, Status::Ok);
            }
            Err(e) => {
                let why = std::error::Error::source(&e).map(|s| format!("{e}: {s}"));
                self.failed(&why.unwrap_or_else(|| e.to_string()));
                // Some of it may have been done.
                for e in &self.slots[tag as usize].extents {
                    self.view.written(e.offset, e.len);
                }
                self.finish(queue, tag, Status::IoErr);
            }
        }
    }

    /// Answers a request and lets go of everything that it held.
    fn finish(&mut self, queue: &mut Queue, tag: u32, status: Status) {
        self.let_go(tag, status == Status::Ok);
        let slot = &mut self.slots[tag as usize];
        let (counters, done) = (&self.counters, slot.done);
        let mut written = 0;
        match slot.request {
            Request::Read { .. } if status == Status::Ok => {
                counters.read_ops.add(1);
                counters.read_bytes.add(done);
                if let Some(bounce) = &slot.bounce {
                    slot.chain.write(0, bounce.bytes());
                }
                written = done as u32;
            }
            Request::Write { offset, len } => {
                // Also a write that failed may have changed something.
                self.view.written(offset, len);
                if status == Status::Ok {
                    counters.write_ops.add(1);
                    counters.write_bytes.add(done);
                }
            }
            Request::Id if status == Status::Ok => written = ID_LEN as u32,
            _ => {}
        }
        if slot.bounce.take().is_some() {
            self.bounced -= slot.bounced;
        }
        if let Some(byte) = slot.status.take() {
            byte.write(&slot.chain, status as u8);
        }
        queue.push(slot.chain.head, written.saturating_add(1));
        match done {
            // Others need not wait for what takes long.
            LONG.. => queue.expose(),
            _ => queue.expose_some(),
        }
        self.free.push(tag);
        self.exit();
    }

    /// Runs tasks, and answers those that ended. True if the queue is to be looked at again.
    fn run_tasks(&mut self, side: &mut Side, io: &mut Io<'_>) -> bool {
        let mut some = false;
        self.tasks.run(io);
        while let Some((tag, result)) = self.tasks.ended() {
            some = true;
            if tag == GATE {
                self.waits = false;
            } else {
                self.task_ended(&mut side.queue, tag, result);
            }
        }
        if side.stopping() {
            self.tasks.stop(io);
        }
        some && self.starved && !self.waits
    }

    /// Takes what the driver offers, as much as fits.
    fn take(&mut self, side: &mut Side, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut budget = side.queue.size();
        self.starved = false;
        while !self.starved {
            side.queue.disable_notification();
            if !self.throttle.admits(io, LIMIT) {
                break;
            }
            let Some(tag) = self.take_slot(&side.queue) else {
                // Full: completions look again.
                self.starved = true;
                break;
            };
            // Requests may fail as fast as they come, so the queue's size does not bound them.
            if budget == 0 {
                self.free.push(tag);
                side.yield_turn();
                break;
            }
            budget -= 1;
            if !self.enter() {
                self.free.push(tag);
                break;
            }
            match side.queue.pop(&mut self.slots[tag as usize].chain) {
                Ok(true) => self.begin(&mut side.queue, io, tag)?,
                Ok(false) => {
                    self.exit();
                    self.free.push(tag);
                    if !side.rest()? {
                        break;
                    }
                }
                Err(e) => {
                    self.exit();
                    self.free.push(tag);
                    return Err(e);
                }
            }
        }
        Ok(())
    }
}

impl Serve for BlkQueue {
    fn run(&mut self, side: &mut Side, io: &mut Io<'_>) -> Result<(), QueueError> {
        self.keep = true;
        let taken = self.take(side, io);
        let goes_on = side.polled() && taken.is_ok() && !self.waits;
        // Also when it did not come as far as to ask: who closes the gate waits for this.
        self.keep = goes_on && !self.volume.is_closed();
        self.leave();
        // Also when the driver broke the queue: what was begun ends.
        if self.run_tasks(side, io) {
            // Tasks that ended at once left room.
            side.yield_turn();
        }
        taken
    }

    fn complete(&mut self, side: &mut Side, io: &mut Io<'_>, tag: u32, result: i32) -> bool {
        if tag == LIMIT {
            self.throttle.fired();
            return true;
        }
        if self.tasks.complete(tag, result) {
            return self.run_tasks(side, io);
        }
        self.completed(&mut side.queue, io, tag, result);
        self.starved && !self.waits
    }

    fn lost(&mut self) {
        if std::mem::take(&mut self.entered) {
            self.volume.end();
        }
    }

    /// What it lacks it is told of.
    fn has_work(&self, side: &Side) -> bool {
        let closing = self.entered && self.volume.is_closed();
        let wanted = !self.starved && !self.throttle.is_closed();
        closing || wanted && side.queue.available() != Ok(0)
    }

    fn stop(&mut self, _side: &mut Side, io: &mut Io<'_>) {
        self.keep = false;
        self.leave();
        self.throttle.cancel(io, LIMIT);
        self.tasks.stop(io);
    }
}
