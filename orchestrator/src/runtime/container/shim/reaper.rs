//! The shim's children, and those of others that the kernel makes its own: each end is told once.

use std::collections::VecDeque;
use std::fmt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

/// How many ends are kept that nobody has asked for.
const UNCLAIMED: usize = 4096;
/// How long to sleep while there are no children.
const IDLE: Duration = Duration::from_millis(100);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; 128 and the signal's number if a signal killed it.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal {
            Some(signal) => write!(out, "it was killed by signal {signal}"),
            None => write!(out, "it ended with exit code {}", self.code),
        }
    }
}

#[derive(Debug, Default)]
struct Ends {
    all: VecDeque<(i32, Ended)>,
}

/// Waits for all children on a thread of its own.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    shared: Arc<(Mutex<Ends>, Condvar)>,
}

impl Reaper {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Reaper> {
        let reaper = Reaper::default();
        let mine = reaper.clone();
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || mine.reap())?;
        Ok(reaper)
    }

    fn reap(&self) {
        let (ends, changed) = &*self.shared;
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    let ended = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Ended { code, signal: None },
                        (None, Some(signal)) => Ended {
                            code: 128 + signal,
                            signal: Some(signal),
                        },
                        // Stopped or continued: not asked for.
                        (None, None) => continue,
                    };
                    let mut ends = ends.lock();
                    if ends.all.len() == UNCLAIMED {
                        ends.all.pop_front();
                    }
                    ends.all.push_back((pid.as_raw_nonzero().get(), ended));
                    changed.notify_all();
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    // Nobody is there; whoever comes next tells.
                    changed.wait_for(&mut ends.lock(), IDLE);
                }
            }
        }
    }

    /// Starts a child.
    pub fn spawn(&self, command: &mut Command) -> std::io::Result<i32> {
        let child = command.spawn()?;
        self.shared.1.notify_all();
        Ok(child.id() as i32)
    }

    /// Waits for a child's end, which is told once. Nothing if it lasts longer.
    pub fn wait(&self, pid: i32, limit: Option<Duration>) -> Option<Ended> {
        let end = limit.map(|limit| Instant::now() + limit);
        let (ends, changed) = &*self.shared;
        let mut ends = ends.lock();
        loop {
            if let Some(place) = ends.all.iter().position(|(ended, _)| *ended == pid) {
                return ends.all.remove(place).map(|(_, ended)| ended);
            }
            match end {
                None => changed.wait(&mut ends),
                Some(end) => {
                    if changed.wait_until(&mut ends, end).timed_out() {
                        return None;
                    }
                }
            }
        }
    }

    /// Kills a child whose end was not told yet.
    pub fn kill(&self, pid: i32) {
        if let Some(pid) = Pid::from_raw(pid) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
