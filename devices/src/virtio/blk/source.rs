//! A virtio-blk queue on a worker: requests become io_uring operations, several at a time.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use libc::iovec;

use super::disk::Disk;
use super::request::{Extent, Request, Status, parse};
use super::{ID_LEN, MAX_SEGMENTS};
use crate::virtio::Counter;
use crate::virtio::chain::{Chain, StatusByte};
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::served::{Serve, Side};
use crate::worker::Io;

/// Bounce buffers of one queue together are at most this long. Requests wait for room; one that is
/// longer by itself fails.
const MAX_BOUNCE: u64 = 32 << 20;
/// Failures of one queue that are logged: the guest decides how many there are.
const LOGGED: u32 = 3;

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

/// A request's place while it is in flight; its index is its tag.
struct Slot {
    chain: Chain,
    status: Option<StatusByte>,
    request: Request,
    /// Bytes transferred so far.
    done: u64,
    /// What is left for the kernel to do: the chain's buffers, or the bounce buffer.
    iov: Vec<iovec>,
    first: usize,
    bounce: Option<Bounce>,
    bounced: u64,
    extents: Vec<Extent>,
    next_extent: usize,
    /// The current extent is zeroed by writing.
    by_writing: bool,
}

// SAFETY: the iovecs point into guest RAM, kept mapped by `chain`, or into `bounce`.
unsafe impl Send for Slot {}

pub(super) struct BlkQueue {
    disk: Arc<Disk>,
    id: [u8; ID_LEN],
    write_through: bool,
    counters: Arc<BlkCounters>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// A place or memory for a bounce buffer was lacking: the next completion looks again.
    starved: bool,
    /// Bytes of bounce buffers in flight.
    bounced: u64,
    /// Failures that were logged.
    failures: u32,
}

impl BlkQueue {
    pub fn new(
        disk: Arc<Disk>,
        id: [u8; ID_LEN],
        write_through: bool,
        counters: Arc<BlkCounters>,
    ) -> Self {
        BlkQueue {
            disk,
            id,
            write_through,
            counters,
            slots: Vec::new(),
            free: Vec::new(),
            starved: false,
            bounced: 0,
            failures: 0,
        }
    }

    /// Takes a place for a request. Places are made when first needed, so that a queue that is
    /// never deep stays small.
    fn take_slot(&mut self, queue: &Queue) -> Option<u32> {
        if let Some(tag) = self.free.pop() {
            return Some(tag);
        }
        (self.slots.len() < queue.size().into()).then(|| {
            self.slots.push(Slot {
                chain: queue.chain(),
                status: None,
                request: Request::Flush,
                done: 0,
                iov: Vec::new(),
                first: 0,
                bounce: None,
                bounced: 0,
                extents: Vec::with_capacity(MAX_SEGMENTS as usize),
                next_extent: 0,
                by_writing: false,
            });
            self.slots.len() as u32 - 1
        })
    }

    fn begin(&mut self, queue: &mut Queue, io: &mut Io<'_>, tag: u32) -> Result<(), QueueError> {
        let slot = &mut self.slots[tag as usize];
        slot.status = slot.chain.take_back();
        if slot.status.is_none() {
            return Err(QueueError::NoStatus);
        }
        match parse(&mut slot.chain, &self.disk, &mut slot.extents) {
            Ok(request) => {
                slot.request = request;
                slot.done = 0;
                slot.first = 0;
                slot.next_extent = 0;
                slot.by_writing = false;
                match request {
                    Request::Read { len, .. } | Request::Write { len, .. } => {
                        let room = MAX_BOUNCE - self.bounced;
                        match slot.aim(&self.disk, len, room) {
                            Ok(bounced) => self.bounced += bounced,
                            Err(Some(status)) => {
                                self.finish(queue, tag, status);
                                return Ok(());
                            }
                            Err(None) => {
                                // Nothing was popped after it, so it goes back as it was.
                                queue.undo_pop();
                                self.free.push(tag);
                                self.starved = true;
                                return Ok(());
                            }
                        }
                    }
                    Request::Id => {
                        slot.chain.write(0, &self.id);
                        slot.done = ID_LEN as u64;
                        self.finish(queue, tag, Status::Ok);
                        return Ok(());
                    }
                    _ => {}
                }
                self.go_on(queue, io, tag);
            }
            Err(status) => self.finish(queue, tag, status),
        }
        Ok(())
    }

    /// Submits the next operation of a request, or ends it.
    fn go_on(&mut self, queue: &mut Queue, io: &mut Io<'_>, tag: u32) {
        let fd = types::Fd(self.disk.file.as_raw_fd());
        let write_flags = if self.write_through {
            libc::RWF_DSYNC
        } else {
            0
        };
        let slot = &mut self.slots[tag as usize];
        let rest = &slot.iov[slot.first.min(slot.iov.len())..];
        let entry: squeue::Entry = match slot.request {
            Request::Read { offset, .. } => {
                opcode::Readv::new(fd, rest.as_ptr(), rest.len() as u32)
                    .offset(offset + slot.done)
                    .build()
            }
            Request::Write { offset, .. } => {
                opcode::Writev::new(fd, rest.as_ptr(), rest.len() as u32)
                    .offset(offset + slot.done)
                    .rw_flags(write_flags)
                    .build()
            }
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
        // ZEROES is static. The file is held by `disk`.
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
            (Request::Flush, 0) => self.finish(queue, tag, Status::Ok),
            (Request::Discard | Request::WriteZeroes, n) if n >= 0 => {
                let extent = &mut slot.extents[slot.next_extent];
                let n = if slot.by_writing {
                    n as u64
                } else {
                    extent.len
                };
                extent.offset += n;
                extent.len -= n;
                if extent.len == 0 {
                    slot.next_extent += 1;
                    slot.by_writing = false;
                } else if n == 0 {
                    return self.finish(queue, tag, Status::IoErr);
                }
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
                self.failures = self.failures.saturating_add(1);
                if self.failures <= LOGGED {
                    let e = std::io::Error::from_raw_os_error(-e);
                    log::warn!("disk I/O failed (logged {LOGGED} times at most): {e}");
                }
                self.finish(queue, tag, Status::IoErr);
            }
        }
    }

    fn finish(&mut self, queue: &mut Queue, tag: u32, status: Status) {
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
            Request::Write { .. } if status == Status::Ok => {
                counters.write_ops.add(1);
                counters.write_bytes.add(done);
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
        self.free.push(tag);
    }
}

impl Slot {
    /// Points `iov` at the memory that the kernel transfers: the guest's own, or a bounce buffer
    /// where O_DIRECT would refuse that. How long the latter is; an error if it can never be made,
    /// or (None) if there is no room for it now.
    fn aim(&mut self, disk: &Disk, len: u64, room: u64) -> Result<u64, Option<Status>> {
        let reads = matches!(self.request, Request::Read { .. });
        let buffers = if reads {
            self.chain.writable()
        } else {
            self.chain.readable()
        };
        let align = disk.memory_align as usize;
        let aligned = align == 1
            || buffers.iter().all(|b| {
                (b.iov_base as usize).is_multiple_of(align)
                    && b.iov_len.is_multiple_of(disk.block_size as usize)
            });
        self.iov.clear();
        if aligned {
            self.iov.extend_from_slice(buffers);
            return Ok(0);
        }
        if len > MAX_BOUNCE {
            return Err(Some(Status::IoErr));
        }
        if len > room {
            return Err(None);
        }
        let mut bounce = Bounce::new(len as usize);
        if !reads {
            self.chain.peek(bounce.bytes_mut());
        }
        self.iov.push(iovec {
            iov_base: bounce.bytes_mut().as_mut_ptr().cast(),
            iov_len: len as usize,
        });
        self.bounce = Some(bounce);
        self.bounced = len;
        Ok(len)
    }

    /// Skips `n` bytes that the kernel has transferred.
    fn advance(&mut self, mut n: u64) {
        self.done += n;
        while n > 0 && self.first < self.iov.len() {
            let part = &mut self.iov[self.first];
            let step = n.min(part.iov_len as u64) as usize;
            part.iov_base = part.iov_base.cast::<u8>().wrapping_add(step).cast();
            part.iov_len -= step;
            n -= step as u64;
            if part.iov_len == 0 {
                self.first += 1;
            }
        }
    }
}

/// Memory aligned to a page, for O_DIRECT.
struct Bounce(Vec<Page>, usize);

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "read and written as raw bytes")] [u8; 4096]);

impl Bounce {
    fn new(len: usize) -> Self {
        Bounce(vec![Page([0; 4096]); len.div_ceil(4096)], len)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `Page` is 4096 plain bytes without padding, and there are at least `len`.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.1) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.1) }
    }
}

impl Serve for BlkQueue {
    fn run(&mut self, side: &mut Side, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut budget = side.queue.size();
        self.starved = false;
        while !self.starved {
            side.queue.disable_notification();
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
            match side.queue.pop(&mut self.slots[tag as usize].chain) {
                Ok(true) => self.begin(&mut side.queue, io, tag)?,
                Ok(false) => {
                    self.free.push(tag);
                    if !side.queue.enable_notification()? {
                        break;
                    }
                }
                Err(e) => {
                    self.free.push(tag);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn complete(&mut self, side: &mut Side, io: &mut Io<'_>, tag: u32, result: i32) -> bool {
        self.completed(&mut side.queue, io, tag, result);
        self.starved
    }
}
