//! What sources wait for: doorbells, file descriptors, and moments.

use std::os::fd::{AsRawFd, BorrowedFd};

use std::time::Duration;

use io_uring::{opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::Io;

/// A wait for an eventfd. Reading it through the ring both waits and rearms it, so that a
/// doorbell costs no system call of its own. The eventfd must be a blocking one.
#[derive(Default)]
pub struct KickWait {
    value: Box<u64>,
    armed: bool,
}

impl KickWait {
    pub(super) fn entry(&mut self, event: &EventFd) -> squeue::Entry {
        let buffer: *mut u64 = &mut *self.value;
        opcode::Read::new(types::Fd(event.as_raw_fd()), buffer.cast(), 8).build()
    }

    /// Starts waiting unless it does already. The completion has `tag`; call
    /// [`fired`](Self::fired) then.
    pub fn arm(&mut self, io: &mut Io<'_>, tag: u32, event: &EventFd) {
        if !std::mem::replace(&mut self.armed, true) {
            let entry = self.entry(event);
            // SAFETY: the value is boxed and owned by the source, which lives until completion.
            unsafe { io.submit(tag, entry) };
        }
    }

    /// The wait completed.
    pub fn fired(&mut self) {
        self.armed = false;
    }

    /// Ends the wait, if there is one.
    pub fn cancel(&mut self, io: &mut Io<'_>, tag: u32) {
        if self.armed {
            io.cancel(tag);
        }
    }
}

/// A wait for a file descriptor to become ready.
#[derive(Default)]
pub struct FdWait {
    armed: bool,
}

impl FdWait {
    /// Starts waiting for `events` unless it does already.
    pub fn arm(&mut self, io: &mut Io<'_>, tag: u32, fd: BorrowedFd<'_>, events: i16) {
        if !std::mem::replace(&mut self.armed, true) {
            io.poll(tag, fd, events);
        }
    }

    /// The wait completed.
    pub fn fired(&mut self) {
        self.armed = false;
    }

    /// Ends the wait, if there is one.
    pub fn cancel(&mut self, io: &mut Io<'_>, tag: u32) {
        if self.armed {
            io.cancel(tag);
        }
    }
}

/// A wait for a time to pass.
#[derive(Default)]
pub struct TimerWait {
    time: Box<types::Timespec>,
    armed: bool,
}

impl TimerWait {
    /// Starts waiting for `time` unless it waits already.
    pub fn arm(&mut self, io: &mut Io<'_>, tag: u32, time: Duration) {
        if !std::mem::replace(&mut self.armed, true) {
            *self.time = types::Timespec::from(time);
            let entry = opcode::Timeout::new(&*self.time).build();
            // SAFETY: the time is boxed and owned by the source, which lives until completion.
            unsafe { io.submit(tag, entry) };
        }
    }

    /// The wait completed.
    pub fn fired(&mut self) {
        self.armed = false;
    }

    /// Ends the wait, if there is one.
    pub fn cancel(&mut self, io: &mut Io<'_>, tag: u32) {
        if self.armed {
            io.cancel(tag);
        }
    }
}
