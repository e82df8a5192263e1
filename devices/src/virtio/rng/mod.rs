//! virtio-rng (virtio 1.3 §5.4): the host kernel's random numbers.

use rustix::rand::{GetRandomFlags, getrandom};

use super::chain::Chain;
use super::features;
use super::queue::{QueueError, QueueState};
use super::running::Running;
use super::served::{Serve, Served, Side};
use super::{QueueIndex, QueueStart, StartError, VirtioDevice};
use crate::worker::Io;

/// Bytes given for one request at most; a driver that wants more asks again.
const MAX_REQUEST: usize = 4096;

/// An entropy device.
#[derive(Default)]
pub struct Rng {
    running: Option<Running<Served<RngQueue>>>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        features::COMMON
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError> {
        if index != 0 || self.running.is_some() {
            return Err(StartError::Index(index));
        }
        self.running = Some(Served::start(start, |queue| RngQueue {
            chain: queue.chain(),
        })?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: QueueIndex) -> Option<QueueState> {
        Some(self.running.take()?.stop()?.state())
    }
}

struct RngQueue {
    chain: Chain,
}

fn fill(chain: &mut Chain) -> u32 {
    let mut bytes = [0; MAX_REQUEST];
    let want = (chain.writable_len() as usize).min(MAX_REQUEST);
    // With these flags it cannot fail once the host has booted.
    let got = getrandom(&mut bytes[..want], GetRandomFlags::empty()).unwrap_or(0);
    chain.write(0, &bytes[..got]) as u32
}

impl Serve for RngQueue {
    fn run(&mut self, side: &mut Side, _io: &mut Io<'_>) -> Result<(), QueueError> {
        side.each(&mut self.chain, fill)
    }

    fn complete(&mut self, _side: &mut Side, _io: &mut Io<'_>, _tag: u32, _result: i32) -> bool {
        false
    }
}
