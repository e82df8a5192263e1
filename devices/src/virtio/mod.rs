//! virtio 1.3 devices: queues, the PCI transport, one folder a device.

pub mod blk;
pub mod chain;
pub mod console;
pub mod features;
pub mod net;
pub mod queue;
mod relay;
pub mod rng;
mod running;
mod served;
pub mod transport;
pub mod vhost_user;
pub mod vsock;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::worker::WorkerHandle;
use queue::{Queue, QueueError, QueueState};
use vhost_user::VhostUserError;

/// A device's queue number.
pub type QueueIndex = u16;

/// What a device is told when one of its queues starts.
pub struct QueueStart {
    /// The rings, and where the device stood in them.
    pub state: QueueState,
    /// The features that the driver accepted.
    pub features: u64,
    /// The guest's RAM.
    pub memory: GuestRam,
    /// The doorbell (a blocking eventfd).
    pub kick: Arc<EventFd>,
    /// How the queue reaches its driver.
    pub notify: Arc<dyn Notify>,
    /// Where the queue runs.
    pub worker: WorkerHandle,
    /// What it is called there: the device and its number.
    pub name: Arc<str>,
}

impl QueueStart {
    /// The queue, its rings checked.
    pub fn queue(&self) -> Result<Queue, QueueError> {
        Queue::new(self.state, &self.memory, self.features)
    }
}

/// A device's way to its driver, for one queue.
pub trait Notify: Send + Sync {
    /// Used buffers are there.
    fn used(&self);
    /// The device's configuration changed.
    fn config_changed(&self);
    /// The device cannot go on (DEVICE_NEEDS_RESET), and why.
    fn needs_reset(&self, why: &str);
}

/// Why a queue could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The driver set the queue up wrongly.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The device has no such queue, or it runs already.
    #[error("queue {0} does not exist or runs already")]
    Index(QueueIndex),
    /// The host side refused.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What is kept of a device beside its queues and its transport.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Nothing.
    #[default]
    None,
    /// A network's.
    Net {
        /// Queue pairs that its driver uses.
        active_pairs: u16,
    },
    /// That of a device which another process serves.
    Served {
        /// It is a disk that the guest can only read.
        readonly: bool,
    },
}

/// What another process has of a device that it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing but its queues.
    Nothing,
    /// A disk that is written there.
    Disk,
    /// State, which it hands over.
    State,
    /// State, which it keeps to itself.
    Secret,
}

/// A virtio device behind any transport.
///
/// Everything that happens to its queues is built of `start_queue` and `stop_queue`: activation,
/// reset, pause, snapshot, and a move to another worker.
pub trait VirtioDevice: Send {
    /// virtio 1.3 §5.
    fn device_type(&self) -> u16;
    /// The largest size of each queue; its length is their number.
    fn queue_sizes(&self) -> &[u16];
    /// Offered feature bits.
    fn features(&self) -> u64;
    /// The device's configuration space, as its specification lays it out. It is read when the
    /// device is made and after [`Notify::config_changed`]; the guest cannot write it.
    fn config(&self) -> Vec<u8>;
    /// Runs a queue on a worker.
    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError>;
    /// Stops a queue, waits until nothing of it is in flight, and returns where it stood. None if
    /// it did not run. Never called from a vCPU.
    fn stop_queue(&mut self, index: QueueIndex) -> Option<QueueState>;
    /// Lets another worker serve a queue that runs, if that takes no stop. False if it does: then it is
    /// stopped and started.
    fn move_queue(&mut self, _index: QueueIndex, _worker: &WorkerHandle) -> bool {
        false
    }
    /// Its queues run on one worker, and go to another together.
    fn moves_whole(&self) -> bool {
        false
    }
    /// The queue whose driver waits for an answer by looking for it again and again. Its doorbell gives the
    /// worker the CPU first.
    fn spun_for(&self) -> Option<QueueIndex> {
        None
    }
    /// The driver reset the device: forget what it negotiated. All queues are stopped.
    fn reset(&mut self) {}
    /// What is to be kept of it. Its queues are stopped.
    fn save(&self) -> DeviceState {
        DeviceState::None
    }
    /// Takes what was kept, before a queue is started; says what stands in the way.
    fn restore(&mut self, state: &DeviceState) -> Result<(), String> {
        match state {
            DeviceState::None => Ok(()),
            other => Err(format!("{other:?} is another kind of device's")),
        }
    }
    /// What another process has of it; none if this one serves it.
    fn held(&self) -> Option<Held> {
        None
    }
    /// Lets the other process hand over the state that it has of the device. The queues are stopped, and
    /// nothing of them may be unfinished. None if it has no state.
    fn save_held(&mut self) -> Result<Option<Vec<u8>>, VhostUserError> {
        Ok(None)
    }
    /// Gives state to the other process that its predecessor handed over, before a queue is started.
    fn restore_held(&mut self, _state: Option<&[u8]>) -> Result<(), VhostUserError> {
        Ok(())
    }
    /// What the device counted, by Cloud Hypervisor's names.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A number that only grows, counted by a worker and read by anyone.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. One thread counts, so no locked instruction is needed.
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
