//! What the driver prints is written from its buffers, one write in flight, so that a slow reader
//! slows the guest's console down and nothing else.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, types};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::virtio::QueueStart;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Queue, QueueError, QueueState};
use crate::virtio::running::Return;
use crate::worker::{Io, KickWait, Source};

const KICK: u32 = 0;
const WRITE: u32 = 1;

pub(super) struct OutputSource {
    queue: Queue,
    chain: Chain,
    start: QueueStart,
    fd: Option<Arc<OwnedFd>>,
    kick: KickWait,
    busy: bool,
    /// Some of the chain was written already.
    begun: bool,
    /// The descriptor does not block: what it cannot take is lost, like on a wire. (The ring would
    /// wait for room all the same, which on a pty that nobody reads is for ever.)
    lossy: bool,
    stopping: bool,
    home: Return<OutputSource>,
}

impl OutputSource {
    pub fn new(
        queue: Queue,
        start: QueueStart,
        fd: Option<Arc<OwnedFd>>,
        home: Return<OutputSource>,
    ) -> Self {
        let flags = fd.as_ref().and_then(|fd| fcntl_getfl(fd).ok());
        OutputSource {
            begun: false,
            lossy: flags.is_some_and(|f| f.contains(OFlags::NONBLOCK)),
            chain: queue.chain(),
            queue,
            start,
            fd,
            kick: KickWait::default(),
            busy: false,
            stopping: false,
            home,
        }
    }

    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    fn run(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut budget = self.queue.size();
        while !self.busy {
            if !self.queue.pop(&mut self.chain)? {
                if self.queue.enable_notification()? {
                    continue;
                }
                return Ok(());
            }
            if budget == 0 {
                self.queue.undo_pop();
                let _ = self.start.kick.write(1);
                return Ok(());
            }
            budget -= 1;
            self.begun = false;
            if !self.write(io) {
                self.queue.push(self.chain.head, 0);
            }
        }
        Ok(())
    }

    /// Writes what is left of the chain; false if there is nothing to do.
    fn write(&mut self, io: &mut Io<'_>) -> bool {
        const MAX_IOV: usize = 1024;
        let buffers = self.chain.readable();
        let Some(fd) = self.fd.as_ref().filter(|_| !buffers.is_empty()) else {
            return false;
        };
        if self.lossy {
            // SAFETY: the buffers are in guest RAM, which the chain keeps mapped.
            unsafe {
                libc::writev(
                    fd.as_raw_fd(),
                    buffers.as_ptr(),
                    buffers.len().min(MAX_IOV) as i32,
                )
            };
            return false;
        }
        let count = buffers.len().min(MAX_IOV) as u32;
        let entry = opcode::Writev::new(types::Fd(fd.as_raw_fd()), buffers.as_ptr(), count)
            .offset(u64::MAX)
            .build();
        self.busy = true;
        // SAFETY: the buffers are in guest RAM and their list is on the heap; the chain keeps
        // both until completion, since nothing is popped or taken while busy.
        unsafe { io.submit(WRITE, entry) };
        true
    }

    fn turn(&mut self, io: &mut Io<'_>) {
        match self.run(io) {
            Ok(()) => self.kick.arm(io, KICK, &self.start.kick),
            Err(e) => self.start.notify.needs_reset(&e.to_string()),
        }
    }
}

impl Source for OutputSource {
    fn start(&mut self, io: &mut Io<'_>) {
        self.turn(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, result: i32) {
        if tag == KICK {
            self.kick.fired();
        } else {
            self.busy = false;
            match result {
                // Stopped before anything was written: the next worker writes it.
                e if [-libc::ECANCELED, -libc::EINTR].contains(&e)
                    && self.stopping
                    && !self.begun =>
                {
                    self.queue.undo_pop();
                }
                e if e == -libc::EINTR && !self.stopping => {
                    self.write(io);
                    return;
                }
                // Short: take the part away and write the rest.
                n if n > 0 && (n as u64) < self.chain.readable_len() && !self.stopping => {
                    self.chain.skip_front(n as u64);
                    self.begun = true;
                    self.write(io);
                    return;
                }
                // Also when nobody reads (EAGAIN of a pty, EPIPE): a wire without an end.
                _ => self.queue.push(self.chain.head, 0),
            }
        }
        if !self.stopping {
            self.turn(io);
        }
    }

    fn flush(&mut self, _io: &mut Io<'_>) {
        if self.queue.publish() {
            self.start.notify.used();
        }
    }

    fn stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.kick.cancel(io, KICK);
        if self.busy {
            io.cancel(WRITE);
        }
    }

    fn stopped(self: Box<Self>) {
        let home = self.home.clone();
        home.give(self);
    }
}
