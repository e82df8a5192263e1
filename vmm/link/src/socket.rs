//! A socket on which nobody waits for ever, and what ends it from elsewhere.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::SILENCE;

/// A connected or listening socket.
pub(crate) struct Socket {
    pub fd: OwnedFd,
    limits: Mutex<Limits>,
}

/// Until when everything is over: what is under way, and all that follows.
#[derive(Clone, Copy, Default)]
struct Limits {
    step: Option<Instant>,
    whole: Option<Instant>,
}

impl Socket {
    pub fn new(fd: OwnedFd) -> Arc<Socket> {
        Arc::new(Socket {
            fd,
            limits: Mutex::default(),
        })
    }

    /// What follows is over within this.
    pub fn allow(&self, limit: Duration) {
        self.limits.lock().step = Some(Instant::now() + limit);
    }

    /// All that follows is over by then.
    pub fn bound(&self, end: Option<Instant>) {
        self.limits.lock().whole = end;
    }

    /// How long a call may take that is made now.
    fn left(&self) -> io::Result<Duration> {
        let limits = *self.limits.lock();
        let Some(end) = [limits.step, limits.whole].into_iter().flatten().min() else {
            return Ok(SILENCE);
        };
        let left = end.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left.min(SILENCE)),
        }
    }

    /// Nothing comes or goes any more.
    pub fn end(&self) {
        let _ = shutdown(&self.fd, Shutdown::Both);
    }
}

/// The bytes of a socket, every call of which ends in time.
pub(crate) struct Bytes(pub Arc<Socket>);

impl Bytes {
    /// Makes a call that does not wait as soon as it need not. (The kernel's own timeouts begin anew with every
    /// few bytes that the other side takes.)
    fn in_time<T>(
        &self,
        ready: PollFlags,
        mut call: impl FnMut(&OwnedFd) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let fd = &self.0.fd;
        loop {
            let left = self.0.left()?;
            match call(fd) {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                done => return Ok(done?),
            }
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(fd, ready)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let call = |fd: &OwnedFd| recv(fd, &mut *buffer, RecvFlags::DONTWAIT);
        self.in_time(PollFlags::IN, call).map(|(n, _)| n)
    }
}

impl Write for Bytes {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        self.in_time(PollFlags::OUT, |fd| send(fd, buffer, flags))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Ends what another thread waits for: somebody who comes, or what the other side says.
#[derive(Clone, Default)]
pub struct Hangup(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    is_hung_up: bool,
    socket: Weak<Socket>,
}

impl Hangup {
    /// Does so, now and for whatever it would hold later.
    pub fn hang_up(&self) {
        let mut held = self.0.lock();
        held.is_hung_up = true;
        if let Some(socket) = held.socket.upgrade() {
            socket.end();
        }
    }

    /// Whether that was done.
    pub fn is_hung_up(&self) -> bool {
        self.0.lock().is_hung_up
    }

    pub(crate) fn hold(&self, socket: &Arc<Socket>) {
        let mut held = self.0.lock();
        held.socket = Arc::downgrade(socket);
        if held.is_hung_up {
            socket.end();
        }
    }
}
