//! What is typed goes into the driver's buffers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::virtio::chain::Chain;
use crate::virtio::queue::QueueError;
use crate::virtio::served::{Serve, Side};
use crate::worker::{FdWait, Io};

const READ: u32 = 0;

pub(super) struct InputQueue {
    pub chain: Chain,
    pub fd: Option<Arc<OwnedFd>>,
    typed: FdWait,
    /// The descriptor said that there is something to read.
    readable: bool,
    ended: bool,
}

impl InputQueue {
    pub fn new(chain: Chain, fd: Option<Arc<OwnedFd>>) -> Self {
        InputQueue {
            chain,
            fd,
            typed: FdWait::default(),
            readable: false,
            ended: false,
        }
    }
}

impl Serve for InputQueue {
    fn run(&mut self, side: &mut Side, io: &mut Io<'_>) -> Result<(), QueueError> {
        let Some(fd) = self.fd.clone().filter(|_| !self.ended) else {
            return Ok(());
        };
        // One read a turn, and only into a buffer that is there: what is not read stays with the
        // host, which stops whoever types too fast.
        if self.readable {
            // A chain may have come between the look and the wish for a doorbell.
            let popped = side.queue.pop(&mut self.chain)?
                || (side.rest()? && side.queue.pop(&mut self.chain)?);
            if !popped {
                return Ok(());
            }
            self.readable = false;
            let mut bytes = [0; 256];
            let room = (self.chain.writable_len() as usize).min(bytes.len());
            match rustix::io::read(&*fd, &mut bytes[..room]) {
                Ok(n) if n > 0 => {
                    self.chain.write(0, &bytes[..n]);
                    side.queue.push(self.chain.head, n as u32);
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => side.queue.undo_pop(),
                _ => {
                    side.queue.undo_pop();
                    self.ended = true;
                    return Ok(());
                }
            }
        }
        self.typed.arm(io, READ, fd.as_fd(), libc::POLLIN);
        Ok(())
    }

    fn complete(&mut self, _side: &mut Side, _io: &mut Io<'_>, _tag: u32, _result: i32) -> bool {
        self.typed.fired();
        self.readable = true;
        true
    }

    fn stop(&mut self, _side: &mut Side, io: &mut Io<'_>) {
        self.typed.cancel(io, READ);
    }
}
