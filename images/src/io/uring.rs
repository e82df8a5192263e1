//! The driver of tools that keep many requests under way: operations are carried out by io_uring.

use std::io;
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::{ImageFile, Kind, OpId, Port, Quick, Span, Tasks, carry_out};

/// In an operation's user data: it is not the port's.
const DIRECT: u64 = 1 << 63;

/// What ended.
#[derive(Debug)]
pub enum Ended<T> {
    /// A task, by its tag, with its result.
    Task(u32, T),
    /// A transfer that [`Driver::read`] or [`Driver::write`] began, by its tag: how many bytes were
    /// moved, or a negative errno.
    Transfer(u32, i32),
}

/// A transfer under way. What it needs is kept until it ends.
struct Transfer {
    tag: u32,
    /// Kept open.
    _file: Arc<ImageFile>,
    /// Kept in memory, and the list of pieces in its place.
    _span: Box<Span>,
}

/// A ring, and the port whose operations it carries out.
pub struct Driver {
    ring: IoUring,
    port: Port,
    transfers: Vec<Option<Transfer>>,
    free: Vec<u32>,
    in_flight: usize,
    quick: Quick,
}

impl Driver {
    /// A driver with room for so many submissions at a time. Any number may be under way.
    pub fn new(entries: u32, port: Port) -> io::Result<Driver> {
        let tuned = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries);
        let ring = match tuned {
            // Linux before 6.1 knows neither.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries)?,
            other => other?,
        };
        Ok(Driver {
            ring,
            port,
            transfers: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            quick: Quick::default(),
        })
    }

    /// Begins to read, past all tables: the caller knows where.
    pub fn read(
        &mut self,
        tag: u32,
        file: &Arc<ImageFile>,
        offset: u64,
        span: Span,
    ) -> io::Result<()> {
        self.transfer(tag, file, Kind::Read, offset, span)
    }

    /// Begins to write, past all tables: the caller knows where.
    pub fn write(
        &mut self,
        tag: u32,
        file: &Arc<ImageFile>,
        offset: u64,
        span: Span,
    ) -> io::Result<()> {
        self.transfer(tag, file, Kind::Write, offset, span)
    }

    fn transfer(
        &mut self,
        tag: u32,
        file: &Arc<ImageFile>,
        kind: Kind,
        offset: u64,
        span: Span,
    ) -> io::Result<()> {
        let direct = file.fits_direct(offset, &span);
        let span = Box::new(span);
        let entry = move_bytes(file.raw_fd(direct), kind, offset, &span);
        let transfer = Some(Transfer {
            tag,
            _file: file.clone(),
            _span: span,
        });
        let index = match self.free.pop() {
            Some(index) => {
                self.transfers[index as usize] = transfer;
                index
            }
            None => {
                self.transfers.push(transfer);
                self.transfers.len() as u32 - 1
            }
        };
        self.push(entry.user_data(DIRECT | u64::from(index)))
    }

    /// Runs tasks until none is left.
    pub fn run<T>(
        &mut self,
        tasks: &mut Tasks<T>,
        mut ended: impl FnMut(Ended<T>),
    ) -> io::Result<()> {
        while tasks.live() > 0 || self.in_flight > 0 {
            self.turn(tasks, &mut ended)?;
        }
        Ok(())
    }

    /// Runs tasks as far as they get, submits what they want done, and waits until something of it
    /// is, if anything is under way.
    pub fn turn<T>(
        &mut self,
        tasks: &mut Tasks<T>,
        mut ended: impl FnMut(Ended<T>),
    ) -> io::Result<()> {
        tasks.run(|tag, result| ended(Ended::Task(tag, result)));
        let mut inline = false;
        while let Some(id) = self.port.next() {
            inline |= self.submit(id)?;
        }
        // What was done at once lets tasks go on: they need not wait for the rest.
        let want = usize::from(self.in_flight > 0 && !inline);
        match self.ring.submit_and_wait(want) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            other => drop(other?),
        }
        while let Some((user_data, result)) = self.next_completion() {
            if user_data & DIRECT == 0 {
                self.complete(OpId(user_data as u32), result);
            } else if let Some(slot) = self.transfers.get_mut((user_data & !DIRECT) as usize)
                && let Some(transfer) = slot.take()
            {
                self.free.push((user_data & !DIRECT) as u32);
                ended(Ended::Transfer(transfer.tag, result));
            }
        }
        tasks.run(|tag, result| ended(Ended::Task(tag, result)));
        Ok(())
    }

    fn next_completion(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        Some((entry.user_data(), entry.result()))
    }

    /// Submits one of the port's operations. True if it is done already.
    fn submit(&mut self, id: OpId) -> io::Result<bool> {
        let quick = &mut self.quick;
        let entry = self.port.look(id, |op| {
            if let Some(result) = quick.carry_out(op) {
                return Err(result);
            }
            let fd = op.file.raw_fd(op.direct);
            let allocate = |mode: i32| {
                opcode::Fallocate::new(types::Fd(fd), op.len)
                    .offset(op.offset)
                    .mode(mode)
                    .build()
            };
            match op.kind {
                Kind::Read | Kind::Write => Ok(move_bytes(fd, op.kind, op.offset, &op.span)),
                Kind::Flush => Ok(opcode::Fsync::new(types::Fd(fd))
                    .flags(types::FsyncFlags::DATASYNC)
                    .build()),
                Kind::Punch => Ok(allocate(
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                )),
                Kind::Zero => Ok(allocate(libc::FALLOC_FL_ZERO_RANGE)),
                // The ring of older kernels cannot.
                Kind::SetLen => Err(carry_out(op)),
            }
        });
        match entry {
            Some(Ok(entry)) => self.push(entry.user_data(id.0.into())).map(|()| false),
            Some(Err(result)) => {
                self.port.complete(id, result);
                Ok(true)
            }
            None => Ok(true),
        }
    }

    fn complete(&self, id: OpId, result: i32) {
        // File systems that lack these get them done in another way.
        let again = result < 0
            && self
                .port
                .look(id, |op| matches!(op.kind, Kind::Punch | Kind::Zero))
                .unwrap_or(false);
        let result = if again {
            self.port.look(id, carry_out).unwrap_or(result)
        } else {
            result
        };
        self.port.complete(id, result);
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entry points to is kept by the port's operation or by the transfer until
        // its completion is reaped, and `drop` waits for all of them.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        self.in_flight += 1;
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The kernel may write to their memory until they end.
        while self.in_flight > 0 {
            if let Err(e) = self.ring.submit_and_wait(1)
                && e.raw_os_error() != Some(libc::EINTR)
            {
                // Rather leak the memory than have it written when it is somebody else's.
                std::mem::forget(std::mem::take(&mut self.transfers));
                std::mem::forget(self.port.clone());
                return;
            }
            while let Some((user_data, result)) = self.next_completion() {
                if user_data & DIRECT == 0 {
                    self.port.complete(OpId(user_data as u32), result);
                }
            }
        }
    }
}

fn move_bytes(fd: i32, kind: Kind, offset: u64, span: &Span) -> squeue::Entry {
    let fd = types::Fd(fd);
    match (kind, span.vecs()) {
        (Kind::Read, [one]) => opcode::Read::new(fd, one.iov_base.cast(), clamp(one.iov_len))
            .offset(offset)
            .build(),
        (Kind::Read, vecs) => opcode::Readv::new(fd, vecs.as_ptr(), count(vecs))
            .offset(offset)
            .build(),
        (_, [one]) => opcode::Write::new(fd, one.iov_base.cast(), clamp(one.iov_len))
            .offset(offset)
            .build(),
        (_, vecs) => opcode::Writev::new(fd, vecs.as_ptr(), count(vecs))
            .offset(offset)
            .build(),
    }
}

/// As much as one operation moves; the rest comes back as a short transfer.
fn clamp(len: usize) -> u32 {
    len.min(1 << 30) as u32
}

/// As many pieces as one operation takes (IOV_MAX).
fn count(vecs: &[libc::iovec]) -> u32 {
    vecs.len().min(1024) as u32
}
