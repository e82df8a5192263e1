//! Byte streams between the guest's consoles and the host, run by a worker: a vCPU that writes a
//! byte never waits for whoever reads it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use io_uring::{opcode, types};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::worker::{FdWait, Io, KickWait, Source, SourceId, WorkerHandle};

/// Bytes kept for a reader that is slow; what comes beyond is dropped and counted.
const BACKLOG: usize = 1 << 20;

#[derive(Default)]
struct Backlog {
    bytes: VecDeque<u8>,
    dropped: u64,
    /// The worker knows that there is something to write.
    announced: bool,
}

struct Shared {
    backlog: Mutex<Backlog>,
    kick: EventFd,
}

/// The writing end: bytes go into a bounded backlog that a worker writes out.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

/// An [`Output`]'s other end on a worker. Dropping it writes out the backlog first, for at most a
/// second.
pub struct OutputGuard {
    worker: WorkerHandle,
    id: SourceId,
    done: Receiver<()>,
}

impl Output {
    /// Everything written goes to `fd`.
    pub fn start(fd: OwnedFd, worker: &WorkerHandle) -> io::Result<(Output, OutputGuard)> {
        let shared = Arc::new(Shared {
            backlog: Mutex::default(),
            kick: EventFd::new(0)?,
        });
        let (home, done) = sync_channel(1);
        let lossy = rustix::fs::fcntl_getfl(&fd)?.contains(rustix::fs::OFlags::NONBLOCK);
        let id = worker.attach(Box::new(Drain {
            lossy,
            shared: shared.clone(),
            fd,
            kick: KickWait::default(),
            writing: Vec::new(),
            written: 0,
            busy: false,
            stopping: false,
            broken: false,
            home,
        }));
        Ok((
            Output(shared),
            OutputGuard {
                worker: worker.clone(),
                id,
                done,
            },
        ))
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let announce = {
            let mut backlog = self.0.backlog.lock();
            let n = data.len().min(BACKLOG.saturating_sub(backlog.bytes.len()));
            backlog.bytes.extend(&data[..n]);
            backlog.dropped += (data.len() - n) as u64;
            !std::mem::replace(&mut backlog.announced, true)
        };
        if announce {
            self.0.kick.write(1)?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OutputGuard {
    fn drop(&mut self) {
        self.worker.detach(self.id);
        // A reader that does not read must not keep the monitor from ending.
        let _ = self.done.recv_timeout(Duration::from_secs(1));
    }
}

const KICK: u32 = 0;
const IO: u32 = 1;

struct Drain {
    shared: Arc<Shared>,
    fd: OwnedFd,
    kick: KickWait,
    writing: Vec<u8>,
    written: usize,
    busy: bool,
    /// The descriptor does not block (a pty): what it cannot take now is lost, like on a wire.
    lossy: bool,
    stopping: bool,
    broken: bool,
    home: SyncSender<()>,
}

impl Drain {
    fn go_on(&mut self, io: &mut Io<'_>) {
        if self.busy {
            return;
        }
        if self.written == self.writing.len() {
            self.written = 0;
            self.writing.clear();
            let mut backlog = self.shared.backlog.lock();
            self.writing.extend(backlog.bytes.drain(..));
            if self.writing.is_empty() {
                backlog.announced = false;
                if backlog.bytes.capacity() > 4096 {
                    backlog.bytes = VecDeque::new();
                }
                return;
            }
            let dropped = std::mem::take(&mut backlog.dropped);
            if dropped > 0 {
                log::warn!(
                    "{dropped} bytes of console output were dropped: its reader is too slow"
                );
            }
        }
        if self.broken {
            self.written = self.writing.len();
            return self.go_on(io);
        }
        let rest = &self.writing[self.written..];
        if self.lossy {
            let _ = rustix::io::write(&self.fd, rest);
            self.written = self.writing.len();
            return self.go_on(io);
        }
        let entry = opcode::Write::new(
            types::Fd(self.fd.as_raw_fd()),
            rest.as_ptr(),
            rest.len() as u32,
        )
        .offset(u64::MAX)
        .build();
        self.busy = true;
        // SAFETY: `writing` is on the heap and changes only when nothing is in flight.
        unsafe { io.submit(IO, entry) };
    }
}

impl Source for Drain {
    fn start(&mut self, io: &mut Io<'_>) {
        self.kick.arm(io, KICK, &self.shared.kick);
        self.go_on(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, result: i32) {
        if tag == KICK {
            self.kick.fired();
            if !self.stopping {
                self.kick.arm(io, KICK, &self.shared.kick);
            }
        } else {
            self.busy = false;
            match result {
                n if n >= 0 => self.written += n as usize,
                e if e == -libc::EINTR => {}
                e => {
                    log::warn!("console output: {}", io::Error::from_raw_os_error(-e));
                    self.broken = true;
                }
            }
        }
        self.go_on(io);
    }

    fn flush(&mut self, _io: &mut Io<'_>) {}

    fn stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.kick.cancel(io, KICK);
        self.go_on(io);
    }

    fn stopped(self: Box<Self>) {
        let _ = self.home.send(());
    }

    fn lost(self: Box<Self>, _why: &str, in_flight: bool) {
        let _ = self.home.send(());
        if in_flight {
            std::mem::forget(self);
        }
    }
}

/// What takes input: how many of the bytes it took. When it did not take all, it is asked again
/// after it has rung the doorbell that it was started with.
pub type Sink = Box<dyn FnMut(&[u8]) -> usize + Send>;

/// The reading end: a worker reads a descriptor and hands the bytes to a sink.
pub struct Input {
    worker: WorkerHandle,
    id: SourceId,
    done: Receiver<()>,
}

impl Input {
    /// Everything read from `fd` goes to `sink`, which rings `resume` when it has room again.
    pub fn start(fd: OwnedFd, sink: Sink, resume: Arc<EventFd>, worker: &WorkerHandle) -> Input {
        let (home, done) = sync_channel(1);
        let id = worker.attach(Box::new(Feed {
            fd,
            sink,
            kick: KickWait::default(),
            resume,
            wait: FdWait::default(),
            pending: Vec::with_capacity(64),
            stopping: false,
            ended: false,
            home,
        }));
        Input {
            worker: worker.clone(),
            id,
            done,
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.worker.detach(self.id);
        let _ = self.done.recv_timeout(Duration::from_secs(1));
    }
}

struct Feed {
    fd: OwnedFd,
    sink: Sink,
    kick: KickWait,
    resume: Arc<EventFd>,
    wait: FdWait,
    pending: Vec<u8>,
    stopping: bool,
    ended: bool,
    home: SyncSender<()>,
}

impl Feed {
    fn deliver(&mut self, io: &mut Io<'_>) {
        let taken = if self.pending.is_empty() {
            0
        } else {
            (self.sink)(&self.pending)
        };
        self.pending.drain(..taken);
        if self.pending.is_empty() && !self.stopping && !self.ended {
            self.wait.arm(io, IO, self.fd.as_fd(), libc::POLLIN);
        }
    }

    fn read(&mut self) {
        let mut bytes = [0; 64];
        match rustix::io::read(&self.fd, &mut bytes) {
            // End of file: a closed pipe, or /dev/null.
            Ok(0) => self.ended = true,
            Ok(n) => self.pending.extend_from_slice(&bytes[..n]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // EIO: the other side of a pty is closed; wait until the sink asks again.
            Err(_) => self.ended = true,
        }
    }
}

impl Source for Feed {
    fn start(&mut self, io: &mut Io<'_>) {
        self.kick.arm(io, KICK, &self.resume);
        self.deliver(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, _result: i32) {
        if tag == KICK {
            self.kick.fired();
            if !self.stopping {
                self.kick.arm(io, KICK, &self.resume);
            }
        } else {
            self.wait.fired();
            if !self.stopping {
                self.read();
            }
        }
        self.deliver(io);
    }

    fn flush(&mut self, _io: &mut Io<'_>) {}

    fn stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.kick.cancel(io, KICK);
        self.wait.cancel(io, IO);
    }

    fn stopped(self: Box<Self>) {
        let _ = self.home.send(());
    }

    fn lost(self: Box<Self>, _why: &str, in_flight: bool) {
        let _ = self.home.send(());
        if in_flight {
            std::mem::forget(self);
        }
    }
}
