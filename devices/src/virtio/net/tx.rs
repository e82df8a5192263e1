//! Guest to tap: each chain is one frame with its vnet header, written from guest memory as it is.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::{NetCounters, Tap, VNET_HEADER};
use crate::limit::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::queue::QueueError;
use crate::virtio::served::{Serve, Side};
use crate::worker::{FdWait, Io};

const TAP: u32 = 0;
const LIMIT: u32 = 1;

pub(super) struct TxQueue {
    pub chain: Chain,
    pub tap: Arc<Tap>,
    pub counters: Arc<NetCounters>,
    pub room: FdWait,
    /// The host had no room: it says when it has.
    pub full: bool,
    pub throttle: Throttle,
}

impl TxQueue {
    /// False if the frame has to wait. A frame that the host refuses is dropped, as on a wire.
    fn send(&mut self) -> bool {
        if self.chain.readable_len() <= VNET_HEADER as u64 {
            return true;
        }
        // SAFETY: the chain's buffers are in guest RAM, which it keeps mapped.
        match unsafe { self.tap.send(self.chain.readable()) } {
            Ok(None) => return false,
            Ok(Some(n)) => {
                self.counters.frames.add(1);
                self.counters
                    .bytes
                    .add(n.saturating_sub(VNET_HEADER) as u64);
            }
            Err(e) => log::debug!("tap refused a frame: {e}"),
        }
        true
    }
}

impl Serve for TxQueue {
    fn run(&mut self, side: &mut Side, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut budget = side.queue.size();
        self.full = false;
        loop {
            side.queue.disable_notification();
            loop {
                if !self.throttle.admits(io, LIMIT) {
                    return Ok(());
                }
                if !side.queue.pop(&mut self.chain)? {
                    break;
                }
                let bytes = self.chain.readable_len().saturating_sub(VNET_HEADER as u64);
                if !self.send() {
                    // The host has no room: look again when it has.
                    side.queue.undo_pop();
                    self.full = true;
                    self.room.arm(io, TAP, self.tap.as_fd(), libc::POLLOUT);
                    return Ok(());
                }
                self.throttle.charge(bytes);
                side.queue.push(self.chain.head, 0);
                side.queue.expose_some();
                budget -= 1;
                if budget == 0 {
                    side.yield_turn();
                    return Ok(());
                }
            }
            if !side.rest()? {
                return Ok(());
            }
        }
    }

    fn complete(&mut self, _side: &mut Side, _io: &mut Io<'_>, tag: u32, _result: i32) -> bool {
        match tag {
            LIMIT => self.throttle.fired(),
            _ => self.room.fired(),
        }
        true
    }

    fn has_work(&self, side: &Side) -> bool {
        !self.full && !self.throttle.is_closed() && side.queue.available() != Ok(0)
    }

    fn stop(&mut self, _side: &mut Side, io: &mut Io<'_>) {
        self.room.cancel(io, TAP);
        self.throttle.cancel(io, LIMIT);
    }
}
