//! What the driver prints is written from its buffers, one write in flight, so that a slow reader
//! slows the guest's console down and nothing else.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, types};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::virtio::chain::Chain;
use crate::virtio::queue::QueueError;
use crate::virtio::served::{Serve, Side};
use crate::worker::Io;

const WRITE: u32 = 0;

pub(super) struct OutputQueue {
    chain: Chain,
    fd: Option<Arc<OwnedFd>>,
    busy: bool,
    /// Some of the chain was written already.
    begun: bool,
    /// The descriptor does not block: what it cannot take is lost, like on a wire. (The ring would
    /// wait for room all the same, which on a pty that nobody reads is for ever.)
    lossy: bool,
}

impl OutputQueue {
    pub fn new(chain: Chain, fd: Option<Arc<OwnedFd>>) -> Self {
        let flags = fd.as_ref().and_then(|fd| fcntl_getfl(fd).ok());
        let lossy = flags.is_some_and(|f| f.contains(OFlags::NONBLOCK));
        OutputQueue {
            chain,
            fd,
            busy: false,
            begun: false,
            lossy,
        }
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
}

impl Serve for OutputQueue {
    fn run(&mut self, side: &mut Side, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut budget = side.queue.size();
        while !self.busy {
            if !side.queue.pop(&mut self.chain)? {
                if side.rest()? {
                    continue;
                }
                return Ok(());
            }
            if budget == 0 {
                side.queue.undo_pop();
                side.yield_turn();
                return Ok(());
            }
            budget -= 1;
            self.begun = false;
            if !self.write(io) {
                side.queue.push(self.chain.head, 0);
            }
        }
        Ok(())
    }

    fn complete(&mut self, side: &mut Side, io: &mut Io<'_>, _tag: u32, result: i32) -> bool {
        self.busy = false;
        match result {
            // Stopped before anything was written: the next worker writes it.
            e if [-libc::ECANCELED, -libc::EINTR].contains(&e)
                && side.stopping()
                && !self.begun =>
            {
                side.queue.undo_pop();
            }
            e if e == -libc::EINTR && !side.stopping() => {
                self.write(io);
                return false;
            }
            // Short: take the part away and write the rest.
            n if n > 0 && (n as u64) < self.chain.readable_len() && !side.stopping() => {
                self.chain.skip_front(n as u64);
                self.begun = true;
                self.write(io);
                return false;
            }
            // Also when nobody reads (EAGAIN of a pty, EPIPE): a wire without an end.
            _ => side.queue.push(self.chain.head, 0),
        }
        true
    }

    fn stop(&mut self, _side: &mut Side, io: &mut Io<'_>) {
        if self.busy {
            io.cancel(WRITE);
        }
    }
}
