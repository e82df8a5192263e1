//! The control queue: how many queue pairs the driver uses (virtio 1.3 §5.1.6.5.6), and that it announced
//! its address (§5.1.6.5.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::Tap;

use crate::virtio::chain::Chain;
use crate::virtio::queue::QueueError;
use crate::virtio::served::{Serve, Side};
use crate::worker::Io;

const CLASS_ANNOUNCE: u8 = 3;
const ANNOUNCE_ACK: u8 = 0;
const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
const OK: u8 = 0;
const ERR: u8 = 1;

pub(super) struct ControlQueue {
    pub chain: Chain,
    pub pairs: PairSwitch,
    /// The driver is asked to announce its address.
    pub announce: Arc<AtomicBool>,
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
    /// Uses as many pairs as the command says; its answer.
    fn switch(&self, chain: &mut Chain) -> u8 {
        let mut pairs = [0; 2];
        if !chain.take_front(&mut pairs) {
            return ERR;
        }
        let pairs = u16::from_le_bytes(pairs);
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

/// Carries out one command; its answer.
fn command(pairs: &PairSwitch, announce: &AtomicBool, chain: &mut Chain) -> u8 {
    let mut command = [0; 2];
    if !chain.take_front(&mut command) {
        return ERR;
    }
    match command {
        [CLASS_MQ, MQ_VQ_PAIRS_SET] => pairs.switch(chain),
        [CLASS_ANNOUNCE, ANNOUNCE_ACK] => {
            announce.store(false, Ordering::Relaxed);
            OK
        }
        _ => ERR,
    }
}

impl Serve for ControlQueue {
    fn run(&mut self, side: &mut Side, _io: &mut Io<'_>) -> Result<(), QueueError> {
        side.each(&mut self.chain, |chain| {
            let answer = command(&self.pairs, &self.announce, chain);
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
