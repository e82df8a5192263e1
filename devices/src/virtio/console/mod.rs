//! virtio-console (virtio 1.3 §5.3) with one port.

mod input;
mod output;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::features;
use super::queue::QueueState;
use super::running::Running;
use super::served::Served;
use super::{QueueIndex, QueueStart, StartError, VirtioDevice};

/// Where a console's bytes come from and go to.
pub struct ConsoleIo {
    /// Read by the guest; none if nobody types.
    pub input: Option<OwnedFd>,
    /// Written by the guest; none if nobody looks.
    pub output: Option<OwnedFd>,
}

/// A console device.
pub struct Console {
    input: Option<Arc<OwnedFd>>,
    output: Option<Arc<OwnedFd>>,
    rx: Option<Running<Served<input::InputQueue>>>,
    tx: Option<Running<Served<output::OutputQueue>>>,
}

impl Console {
    /// A console on `io`.
    pub fn new(io: ConsoleIo) -> Console {
        Console {
            input: io.input.map(Arc::new),
            output: io.output.map(Arc::new),
            rx: None,
            tx: None,
        }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        3
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn features(&self) -> u64 {
        features::COMMON
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError> {
        match index {
            0 if self.rx.is_none() => {
                let fd = self.input.clone();
                self.rx = Some(Served::start(start, |queue| {
                    input::InputQueue::new(queue.chain(), fd)
                })?);
            }
            1 if self.tx.is_none() => {
                let fd = self.output.clone();
                self.tx = Some(Served::start(start, |queue| {
                    output::OutputQueue::new(queue.chain(), fd)
                })?);
            }
            _ => return Err(StartError::Index(index)),
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: QueueIndex) -> Option<QueueState> {
        match index {
            0 => Some(self.rx.take()?.stop()?.state()),
            1 => Some(self.tx.take()?.stop()?.state()),
            _ => None,
        }
    }
}
