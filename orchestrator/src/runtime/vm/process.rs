//! A process that outlives us, and whose end is seen whoever started it.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process.
#[derive(Clone)]
pub struct Process(Arc<Watched>);

struct Watched {
    pid: Pid,
    /// Readable once it has ended.
    handle: AsyncFd<OwnedFd>,
    /// Ours to be waited for, if we started it.
    child: Mutex<Option<Child>>,
    status: Mutex<Option<ExitStatus>>,
}

impl Process {
    /// Watches one that we have started.
    pub fn of_child(child: Child) -> std::io::Result<Process> {
        Process::of(Pid::from_child(&child), Some(child))
    }

    /// Watches one that somebody else has started.
    pub fn of_pid(pid: Pid) -> std::io::Result<Process> {
        Process::of(pid, None)
    }

    fn of(pid: Pid, child: Option<Child>) -> std::io::Result<Process> {
        let handle = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` names the same descriptor and keeps it open as long as it lives, which is as
        // long as the `AsyncFd` that owns it.
        let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?;
        Ok(Process(Arc::new(Watched {
            pid,
            handle,
            child: Mutex::new(child),
            status: Mutex::new(None),
        })))
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0.pid.as_raw_nonzero().get()
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        while !self.has_ended() {
            // It stays readable from then on.
            if self.0.handle.readable().await.is_err() {
                return;
            }
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.0.handle, PollFlags::IN)];
        let ended = poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0);
        if ended && let Some(mut child) = self.0.child.lock().take() {
            *self.0.status.lock() = child.wait().ok();
        }
        ended
    }

    /// Ends it, whatever it does.
    pub fn kill(&self) {
        // It may be gone, which is as well.
        let _ = pidfd_send_signal(self.0.handle.get_ref().as_fd(), Signal::KILL);
    }

    /// How it ended, if we started it.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.0.status.lock()
    }
}
