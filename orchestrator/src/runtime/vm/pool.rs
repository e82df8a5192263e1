//! The warm pool: monitors that wait for a clone, each in a folder of its own. A VM gets one with its folder, by
//! one change of a name; so there is no moment at which nobody knows whose it is. Whoever is still in the pool
//! when an agent starts or ends is ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use skerry_vmm_api::client::Client;
use skerry_vmm_api::snapshots::VmPrepare;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::KILLED;
use super::home::{self, Home};
use super::monitor::{Monitor, Vmm};
use crate::runtime::RuntimeError;

/// It is filled when nobody has asked for so long, since filling takes the time of those who do.
const QUIET: Duration = Duration::from_millis(100);
/// Who asks without end gets those that are started for them, but the pool is filled all the same after this.
const BUSY: Duration = Duration::from_secs(2);
/// How often is looked whether those that wait are well, and whether the host has memory for them.
const ROUND: Duration = Duration::from_secs(60);
/// After an attempt to fill it that failed, twice this; twice as long after each more.
const REST: Duration = Duration::from_millis(500);
/// Bytes of memory that the host must have left: with less, nobody waits.
const LEFT: u64 = 512 << 20;

/// Monitors that wait. It may be of none.
pub struct Pool {
    root: PathBuf,
    vmm: Arc<Vmm>,
    size: usize,
    state: Mutex<State>,
    bell: Notify,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// What the last clone was like; the next one most likely is, too.
    like: Option<VmPrepare>,
}

struct Waiting {
    home: Home,
    monitor: Monitor,
    /// What it has ready.
    like: Option<VmPrepare>,
}

impl Pool {
    /// One of `size` monitors in `root`.
    pub fn new(root: &Path, vmm: Arc<Vmm>, size: usize) -> Pool {
        Pool {
            root: root.to_owned(),
            vmm,
            size,
            state: Mutex::new(State::default()),
            bell: Notify::new(),
        }
    }

    /// Gives a VM that has no folder yet one with a monitor in it; none if nobody waits.
    pub fn take(&self, home: &Home, like: &VmPrepare) -> Option<Monitor> {
        if self.size == 0 {
            return None;
        }
        self.bell.notify_one();
        loop {
            let waiting = {
                let mut state = self.state.lock();
                if state.like.as_ref() != Some(like) {
                    state.like = Some(like.clone());
                }
                let fits = |waiting: &Waiting| waiting.like.as_ref() == Some(like);
                // One of another size saves the start of a process.
                let at = state.waiting.iter().position(fits).unwrap_or(0);
                if state.waiting.is_empty() {
                    return None;
                }
                state.waiting.swap_remove(at)
            };
            let (from, to) = (waiting.home.folder(), home.folder());
            if waiting.monitor.has_ended() {
                waiting.forget();
            } else if renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).is_ok() {
                return Some(waiting.monitor);
            } else {
                // The VM has a folder, of a run before.
                self.state.lock().waiting.push(waiting);
                return None;
            }
        }
    }

    /// Keeps it full, for ever.
    pub async fn keep(&self) {
        self.clear().await;
        let mut failed = 0;
        loop {
            let wait = match self.fill().await {
                Ok(()) => {
                    failed = 0;
                    ROUND
                }
                Err(e) => {
                    log::warn!("the pool of monitors is not full: {e}");
                    failed += 1;
                    ROUND.min(REST * 2u32.saturating_pow(failed))
                }
            };
            if timeout(wait, self.bell.notified()).await.is_ok() {
                let busy = Instant::now() + BUSY;
                let more = |until: Instant| timeout_at(until, self.bell.notified());
                while Instant::now() < busy
                    && more((Instant::now() + QUIET).min(busy)).await.is_ok()
                {}
            }
        }
    }

    /// Ends those that should not wait, and lets as many wait as should.
    async fn fill(&self) -> Result<(), RuntimeError> {
        let wanted = wanted(self.size, available());
        let over = {
            let mut state = self.state.lock();
            let (mut over, well): (Vec<_>, Vec<_>) = state
                .waiting
                .drain(..)
                .partition(|waiting| waiting.monitor.has_ended());
            state.waiting = well;
            let first = state.waiting.len().min(wanted);
            over.extend(state.waiting.drain(first..));
            over
        };
        for waiting in over {
            waiting.end().await;
        }
        loop {
            let (next, like) = {
                let mut state = self.state.lock();
                let like = state.like.clone();
                let missing = state.waiting.len() < wanted;
                let bare = |waiting: &Waiting| waiting.like.is_none() && like.is_some();
                let bare = state.waiting.iter().position(bare);
                match bare {
                    Some(at) => (Some(state.waiting.swap_remove(at)), like),
                    None if missing => (None, like),
                    None => return Ok(()),
                }
            };
            let mut waiting = match next {
                Some(waiting) => waiting,
                None => self.begin().await?,
            };
            if let Some(like) = like {
                let prepared = Client::new(&waiting.home.socket()).prepare(&like).await;
                if let Err(e) = prepared {
                    waiting.end().await;
                    return Err(RuntimeError::Unfit(format!(
                        "a monitor cannot prepare a VM: {e}"
                    )));
                }
                waiting.like = Some(like);
            }
            self.state.lock().waiting.push(waiting);
        }
    }

    /// Starts one.
    async fn begin(&self) -> Result<Waiting, RuntimeError> {
        let mut bytes = [0; 8];
        // It fails only where the kernel's generator is not ready yet, which is over long before.
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        let home = Home::new(&self.root, &format!("{:016x}", u64::from_ne_bytes(bytes)));
        let monitor = self.vmm.start_empty(&home).await?;
        Ok(Waiting {
            home,
            monitor,
            like: None,
        })
    }

    /// Ends all that wait, also those of an agent before.
    pub async fn clear(&self) {
        let ours = std::mem::take(&mut self.state.lock().waiting);
        for waiting in ours {
            waiting.end().await;
        }
        for name in home::all(&self.root).unwrap_or_default() {
            let home = Home::new(&self.root, &name);
            // One that was just started does not listen yet.
            let until = Instant::now() + KILLED;
            while home.is_taken() && Instant::now() < until {
                match Monitor::adopt(&home.socket()) {
                    Some(monitor) => {
                        monitor.kill();
                        let _ = timeout(KILLED, monitor.ended()).await;
                    }
                    None => sleep(Duration::from_millis(2)).await,
                }
            }
            let folder = home.folder().display();
            if home.is_taken() {
                // By its folder it is found again.
                log::warn!("the monitor of {folder} does not end: the next agent tries again");
            } else if let Err(e) = home.remove() {
                log::warn!("{folder} stays: {e}");
            }
        }
    }
}

impl Waiting {
    async fn end(self) {
        self.monitor.kill();
        let _ = timeout(KILLED, self.monitor.ended()).await;
        self.forget();
    }

    /// It has ended: removes its folder.
    fn forget(&self) {
        if let Err(e) = self.home.remove() {
            log::warn!("{} stays: {e}", self.home.folder().display());
        }
    }
}

/// How many are to wait on a host that has so much memory left.
fn wanted(size: usize, available: u64) -> usize {
    match available < LEFT {
        true => 0,
        false => size,
    }
}

/// Bytes that programs can get without others losing theirs; more than enough if nobody tells.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_on_a_host_without_memory() {
        assert_eq!(wanted(4, LEFT), 4);
        assert_eq!(wanted(4, LEFT - 1), 0);
        assert!(available() > 0);
    }
}
