//! The control queue: how many queue pairs the driver uses (virtio 1.3 §5.1.6.5.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::Tap;

use crate::virtio::chain::Chain;
use crate::virtio::queue::QueueError;
use crate::virtio::served::{Serve, Side};
use crate::worker::Io;

const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
const OK: u8 = 0;
const ERR: u8 = 1;

pub(super) struct ControlQueue {
    pub chain: Chain,
    pub pairs: PairSwitch,
}

/// What switching queue pairs on and off takes.
pub(super) struct PairSwitch {
    pub taps: Vec<Arc<Tap>>,
    /// Doorbells of the receive queues: one whose tap queue was attached has to look again.
    pub kicks: Vec<Option<Arc<EventFd>>>,
    pub active: Arc<AtomicU16>,
}

/// Lets the host spread frames over the first `pairs` queues of a tap: a pair that the driver does
/// not use would swallow its share (§5.1.6.5.6).
pub(super) fn attach_queues(taps: &[Arc<Tap>], active: &AtomicU16, pairs: u16) {
    let before = active.swap(pairs, Ordering::Relaxed);
    for (i, tap) in (0..).zip(taps) {
        let (was, is) = (i < before, i < pairs);
        if was != is
            && let Err(e) = tap.set_attached(is)
        {
            log::warn!("tap queue {i}: {e}");
        }
    }
}

impl PairSwitch {
    /// Carries out one command; its answer.
    fn command(&self, chain: &mut Chain) -> u8 {
        let mut command = [0; 4];
        if !chain.take_front(&mut command) || command[..2] != [CLASS_MQ, MQ_VQ_PAIRS_SET] {
            return ERR;
        }
        let pairs = u16::from_le_bytes([command[2], command[3]]);
        if pairs == 0 || usize::from(pairs) > self.taps.len() {
            return ERR;
        }
        attach_queues(&self.taps, &self.active, pairs);
        for kick in self.kicks.iter().take(pairs.into()).flatten() {
            let _ = kick.write(1);
        }
        OK
    }
}

impl Serve for ControlQueue {
    fn run(&mut self, side: &mut Side, _io: &mut Io<'_>) -> Result<(), QueueError> {
        side.each(&mut self.chain, |chain| {
            let answer = self.pairs.command(chain);
            let status = chain.take_back();
            if let Some(byte) = status {
                byte.write(chain, answer);
            }
            status.is_some().into()
        })
    }

    fn complete(&mut self, _side: &mut Side, _io: &mut Io<'_>, _tag: u32, _result: i32) -> bool {
        false
    }
}
