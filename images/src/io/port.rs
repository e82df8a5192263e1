//! Where tasks put their operations and drivers take them.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::{ImageFile, Span};
use crate::{Error, Result};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Fill the span. What lies beyond the file's end reads as zeroes.
    Read,
    /// Write the span.
    Write,
    /// Make everything written before durable (fdatasync).
    Flush,
    /// Free the range's space; it reads as zeroes then. Where a file system cannot, nothing happens.
    Punch,
    /// Make the range read as zeroes. Where a file system cannot, zeroes are written.
    Zero,
    /// Make `offset` the file's length.
    SetLen,
}

/// One operation.
pub struct Op {
    /// The file.
    pub file: Arc<ImageFile>,
    /// What to do with it.
    pub kind: Kind,
    /// Where, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// The memory of a read or write.
    pub span: Span,
    /// Through the descriptor that bypasses the page cache, if the file has one.
    pub direct: bool,
}

/// Names an operation that a driver took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u32);

enum Slot {
    Free,
    /// Queued, or with the driver.
    Pending {
        op: Box<Op>,
        waker: Option<Waker>,
        abandoned: bool,
    },
    Done(i32),
}

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    queued: VecDeque<u32>,
}

/// The operations of one group of tasks. Clones are the same port.
#[derive(Clone, Default)]
pub struct Port(Arc<Mutex<Table>>);

impl Port {
    /// An empty port.
    pub fn new() -> Port {
        Port::default()
    }

    fn put(&self, op: Op) -> OpFuture {
        let (file, kind) = (op.file.clone(), op.kind);
        let mut table = self.0.lock();
        let slot = Slot::Pending {
            op: Box::new(op),
            waker: None,
            abandoned: false,
        };
        let id = match table.free.pop() {
            Some(id) => {
                table.slots[id as usize] = slot;
                id
            }
            None => {
                table.slots.push(slot);
                table.slots.len() as u32 - 1
            }
        };
        table.queued.push_back(id);
        drop(table);
        OpFuture {
            port: self.clone(),
            id: Some(id),
            file,
            kind,
        }
    }

    fn op(&self, file: &Arc<ImageFile>, kind: Kind, offset: u64, len: u64) -> Op {
        Op {
            file: file.clone(),
            kind,
            offset,
            len,
            span: Span::default(),
            direct: false,
        }
    }

    /// Begins to fill `span` from `offset`.
    pub fn read(&self, file: &Arc<ImageFile>, offset: u64, span: Span) -> OpFuture {
        let direct = file.fits_direct(offset, &span);
        self.put(Op {
            span: span.clone(),
            direct,
            ..self.op(file, Kind::Read, offset, span.len())
        })
    }

    /// Begins to write `span` at `offset`.
    pub fn write(&self, file: &Arc<ImageFile>, offset: u64, span: Span) -> OpFuture {
        let direct = file.fits_direct(offset, &span);
        self.put(Op {
            span: span.clone(),
            direct,
            ..self.op(file, Kind::Write, offset, span.len())
        })
    }

    /// Begins to make what was written durable.
    pub fn flush(&self, file: &Arc<ImageFile>) -> OpFuture {
        self.put(self.op(file, Kind::Flush, 0, 0))
    }

    /// Begins to free a range.
    pub fn punch(&self, file: &Arc<ImageFile>, offset: u64, len: u64) -> OpFuture {
        self.put(self.op(file, Kind::Punch, offset, len))
    }

    /// Begins to zero a range.
    pub fn zero(&self, file: &Arc<ImageFile>, offset: u64, len: u64) -> OpFuture {
        self.put(self.op(file, Kind::Zero, offset, len))
    }

    /// Begins to set the file's length.
    pub fn set_len(&self, file: &Arc<ImageFile>, len: u64) -> OpFuture {
        self.put(self.op(file, Kind::SetLen, len, 0))
    }

    /// For drivers: the next operation to carry out.
    pub fn next(&self) -> Option<OpId> {
        self.0.lock().queued.pop_front().map(OpId)
    }

    /// For drivers: puts an operation back that could not be carried out now.
    pub fn put_back(&self, id: OpId) {
        self.0.lock().queued.push_front(id.0);
    }

    /// For drivers: looks at an operation that was taken and not completed. What the answer points
    /// to (the span's list of pieces) stays where it is until completion.
    pub fn look<R>(&self, id: OpId, look: impl FnOnce(&Op) -> R) -> Option<R> {
        match self.0.lock().slots.get(id.0 as usize) {
            Some(Slot::Pending { op, .. }) => Some(look(op)),
            _ => None,
        }
    }

    /// For drivers: an operation ended with the number of bytes, 0, or a negative errno. One that
    /// was cut short is queued again for its rest.
    pub fn complete(&self, id: OpId, result: i32) {
        let mut table = self.0.lock();
        let table = &mut *table;
        let Some(slot) = table.slots.get_mut(id.0 as usize) else {
            return;
        };
        let Slot::Pending {
            op,
            waker,
            abandoned,
        } = slot
        else {
            return;
        };
        let result = match (op.kind, result) {
            (_, e) if e == -libc::EINTR || e == -libc::EAGAIN => {
                table.queued.push_back(id.0);
                return;
            }
            (Kind::Read, 0) if !op.span.is_empty() => {
                op.span.zero(0);
                0
            }
            (Kind::Write, 0) if !op.span.is_empty() => -libc::EIO,
            (Kind::Read | Kind::Write, n) if n >= 0 => {
                if op.kind == Kind::Write {
                    op.file.grew(op.offset + n as u64);
                }
                op.offset += n as u64;
                op.span.advance(n as u64);
                // The rest of an aligned transfer need not be aligned.
                op.direct &= op.file.fits_direct(op.offset, &op.span);
                if !op.span.is_empty() {
                    table.queued.push_back(id.0);
                    return;
                }
                0
            }
            (Kind::SetLen, 0) => {
                op.file.set_end(op.offset);
                0
            }
            (_, n) => n.min(0),
        };
        let abandoned = *abandoned;
        let waker = waker.take();
        if abandoned {
            *slot = Slot::Free;
            table.free.push(id.0);
        } else {
            *slot = Slot::Done(result);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// An operation under way. Dropped, it goes on, and nobody hears how it ended.
#[must_use = "an operation's result is an error or not"]
pub struct OpFuture {
    port: Port,
    id: Option<u32>,
    file: Arc<ImageFile>,
    kind: Kind,
}

impl Future for OpFuture {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(id) = self.id else {
            return Poll::Ready(Ok(()));
        };
        let result = {
            let mut table = self.port.0.lock();
            match &mut table.slots[id as usize] {
                Slot::Pending { waker, .. } => {
                    *waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Slot::Done(result) => {
                    let result = *result;
                    table.slots[id as usize] = Slot::Free;
                    table.free.push(id);
                    result
                }
                Slot::Free => 0,
            }
        };
        self.id = None;
        if result >= 0 {
            return Poll::Ready(Ok(()));
        }
        let source = io::Error::from_raw_os_error(-result);
        let what = match self.kind {
            Kind::Read => "read",
            Kind::Write => "write to",
            Kind::Flush => "flush",
            Kind::Punch => "free space in",
            Kind::Zero => "zero a range of",
            Kind::SetLen => "set the length of",
        };
        Poll::Ready(Err(self.file.io_error(what, source)))
    }
}

impl Drop for OpFuture {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut table = self.port.0.lock();
        match &mut table.slots[id as usize] {
            Slot::Pending { abandoned, .. } => *abandoned = true,
            Slot::Done(_) => {
                table.slots[id as usize] = Slot::Free;
                table.free.push(id);
            }
            Slot::Free => {}
        }
    }
}

/// Waits for all of them, also when one fails; the first error wins.
pub async fn join(ops: impl IntoIterator<Item = OpFuture>) -> Result<()> {
    let mut result = Ok(());
    for op in ops {
        let ended: std::result::Result<(), Error> = op.await;
        if result.is_ok() {
            result = ended;
        }
    }
    result
}
