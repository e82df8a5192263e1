//! What is typed goes into the driver's buffers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::virtio::QueueStart;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Queue, QueueError, QueueState};
use crate::virtio::running::Return;
use crate::worker::{FdWait, Io, KickWait, Source};

const KICK: u32 = 0;
const READ: u32 = 1;

pub(super) struct InputSource {
    queue: Queue,
    chain: Chain,
    start: QueueStart,
    fd: Option<Arc<OwnedFd>>,
    kick: KickWait,
    typed: FdWait,
    /// The descriptor said that there is something to read.
    readable: bool,
    ended: bool,
    stopping: bool,
    home: Return<InputSource>,
}

impl InputSource {
    pub fn new(
        queue: Queue,
        start: QueueStart,
        fd: Option<Arc<OwnedFd>>,
        home: Return<InputSource>,
    ) -> Self {
        InputSource {
            chain: queue.chain(),
            queue,
            start,
            fd,
            kick: KickWait::default(),
            typed: FdWait::default(),
            readable: false,
            ended: false,
            stopping: false,
            home,
        }
    }

    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    fn run(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        let Some(fd) = self.fd.clone().filter(|_| !self.ended) else {
            return Ok(());
        };
        // One read a turn, and only into a buffer that is there: what is not read stays with the
        // host, which stops whoever types too fast.
        if self.readable {
            // A chain may have come between the look and the wish for a doorbell.
            let popped = self.queue.pop(&mut self.chain)?
                || (self.queue.enable_notification()? && self.queue.pop(&mut self.chain)?);
            if !popped {
                return Ok(());
            }
            self.readable = false;
            let mut bytes = [0; 256];
            let room = (self.chain.writable_len() as usize).min(bytes.len());
            match rustix::io::read(&*fd, &mut bytes[..room]) {
                Ok(n) if n > 0 => {
                    self.chain.write(0, &bytes[..n]);
                    self.queue.push(self.chain.head, n as u32);
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => self.queue.undo_pop(),
                _ => {
                    self.queue.undo_pop();
                    self.ended = true;
                    return Ok(());
                }
            }
        }
        self.typed.arm(io, READ, fd.as_fd(), libc::POLLIN);
        Ok(())
    }

    fn turn(&mut self, io: &mut Io<'_>) {
        match self.run(io) {
            Ok(()) => self.kick.arm(io, KICK, &self.start.kick),
            Err(e) => self.start.notify.needs_reset(&e.to_string()),
        }
    }
}

impl Source for InputSource {
    fn start(&mut self, io: &mut Io<'_>) {
        self.turn(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, _result: i32) {
        if tag == KICK {
            self.kick.fired();
        } else {
            self.typed.fired();
            self.readable = true;
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
        self.typed.cancel(io, READ);
    }

    fn stopped(self: Box<Self>) {
        let home = self.home.clone();
        home.give(self);
    }
}
