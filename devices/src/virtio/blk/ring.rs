//! Image tasks on a worker's ring: their operations become its entries.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use skerry_images::io::{Kind, Op, OpId, Port, Quick, Tasks, carry_out};
use vmm_sys_util::eventfd::EventFd;

use crate::worker::{Io, KickWait};

/// Tags of operations have this bit; a source's own do not.
pub(super) const OPERATION: u32 = 1 << 31;
/// The tag of the wait for a task that another thread or source woke.
pub(super) const BELL: u32 = u32::MAX - 1;

/// A task.
pub(super) type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Tasks of one source.
pub(super) struct RingTasks<T> {
    tasks: Tasks<T>,
    port: Port,
    bell: Arc<EventFd>,
    wait: KickWait,
    ended: Vec<(u32, T)>,
    quick: Quick,
}

impl<T> RingTasks<T> {
    pub fn new() -> std::io::Result<RingTasks<T>> {
        let bell = Arc::new(EventFd::new(0)?);
        let ring = bell.clone();
        Ok(RingTasks {
            // Fails only when the bell rings already.
            tasks: Tasks::new(Box::new(move || drop(ring.write(1)))),
            port: Port::new(),
            bell,
            wait: KickWait::default(),
            ended: Vec::new(),
            quick: Quick::default(),
        })
    }

    /// Where tasks put their operations.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Whether no task is under way.
    pub fn idle(&self) -> bool {
        self.tasks.live() == 0
    }

    /// Adds a task; [`run`](Self::run) begins it.
    pub fn spawn(&mut self, tag: u32, task: Task<T>) {
        self.tasks.spawn(tag, task);
    }

    /// Runs what can run, and submits what that asks for. Results are taken with
    /// [`ended`](Self::ended).
    pub fn run(&mut self, io: &mut Io<'_>) {
        if self.idle() {
            return;
        }
        self.tasks.attend();
        loop {
            let ended = &mut self.ended;
            self.tasks.run(|tag, result| ended.push((tag, result)));
            let mut inline = false;
            while let Some(id) = self.port.next() {
                inline |= self.begin(io, id);
            }
            if !inline && !self.tasks.leave() {
                break;
            }
            self.tasks.attend();
        }
        // While a task lives, somebody else may wake it; this also keeps the source attached.
        if !self.idle() {
            self.wait.arm(io, BELL, &self.bell);
        }
    }

    /// A task that ended, and its result.
    pub fn ended(&mut self) -> Option<(u32, T)> {
        self.ended.pop()
    }

    /// A completion that belongs here came in: [`run`](Self::run) goes on. False if it does not.
    pub fn complete(&mut self, tag: u32, result: i32) -> bool {
        if tag & OPERATION == 0 || tag == u32::MAX {
            return false;
        }
        // Whoever calls this runs the tasks next: no bell is needed.
        self.tasks.attend();
        if tag == BELL {
            self.wait.fired();
            return true;
        }
        let id = OpId(tag & !OPERATION);
        let unable = matches!(-result, libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS);
        let kind = self.port.look(id, |op| op.kind);
        let result = match kind {
            // Where the ring cannot, the blocking way may: it writes zeroes, or does nothing.
            Some(Kind::Punch | Kind::Zero) if unable => {
                self.port.look(id, carry_out).unwrap_or(result)
            }
            _ => result,
        };
        self.port.complete(id, result);
        true
    }

    /// Ends the wait for the bell, when nothing will ring it.
    pub fn stop(&mut self, io: &mut Io<'_>) {
        if self.idle() {
            self.wait.cancel(io, BELL);
        }
    }

    /// True if the operation ended at once.
    fn begin(&mut self, io: &mut Io<'_>, id: OpId) -> bool {
        let quick = &mut self.quick;
        let begun = self.port.look(id, |op| match quick.carry_out(op) {
            Some(result) => Err(result),
            None => entry(op).ok_or_else(|| carry_out(op)),
        });
        match begun {
            Some(Ok(entry)) => {
                // SAFETY: the pieces that the entry points to belong to the operation's span, which
                // the port keeps, list and memory, until `complete`; so it does the file. The port
                // lives with this source.
                unsafe { io.submit(OPERATION | id.0, entry) };
                false
            }
            Some(Err(result)) => {
                self.port.complete(id, result);
                true
            }
            None => false,
        }
    }
}

/// The ring's entry for an operation; none where it has no such thing.
fn entry(op: &Op) -> Option<squeue::Entry> {
    let fd = types::Fd(op.file.raw_fd(op.direct));
    let vecs = op.span.vecs();
    // As many pieces as one operation takes (IOV_MAX); the rest comes back as a short transfer.
    let count = vecs.len().min(1024) as u32;
    let allocate = |mode: i32| {
        opcode::Fallocate::new(fd, op.len)
            .offset(op.offset)
            .mode(mode)
            .build()
    };
    Some(match op.kind {
        Kind::Read => opcode::Readv::new(fd, vecs.as_ptr(), count)
            .offset(op.offset)
            .build(),
        Kind::Write => opcode::Writev::new(fd, vecs.as_ptr(), count)
            .offset(op.offset)
            .build(),
        Kind::Flush => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Kind::Punch => allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
        Kind::Zero => allocate(libc::FALLOC_FL_ZERO_RANGE),
        Kind::SetLen => return None,
    })
}
