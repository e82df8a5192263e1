//! Guest to tap: each chain is one frame with its vnet header, written from guest memory as it is.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::{NetCounters, Tap, VNET_HEADER};
use crate::virtio::QueueStart;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Queue, QueueError, QueueState};
use crate::virtio::running::Return;
use crate::worker::{FdWait, Io, KickWait, Source};

const KICK: u32 = 0;
const TAP: u32 = 1;

pub(super) struct TxSource {
    queue: Queue,
    chain: Chain,
    start: QueueStart,
    tap: Arc<Tap>,
    counters: Arc<NetCounters>,
    kick: KickWait,
    room: FdWait,
    stopping: bool,
    home: Return<TxSource>,
}

impl TxSource {
    pub fn new(
        queue: Queue,
        start: QueueStart,
        tap: Arc<Tap>,
        counters: Arc<NetCounters>,
        home: Return<TxSource>,
    ) -> Self {
        TxSource {
            chain: queue.chain(),
            queue,
            start,
            tap,
            counters,
            kick: KickWait::default(),
            room: FdWait::default(),
            stopping: false,
            home,
        }
    }

    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    fn run(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut budget = self.queue.size();
        loop {
            self.queue.disable_notification();
            while self.queue.pop(&mut self.chain)? {
                if !self.send() {
                    // The host has no room: look again when it has.
                    self.queue.undo_pop();
                    self.room.arm(io, TAP, self.tap.as_fd(), libc::POLLOUT);
                    return Ok(());
                }
                self.queue.push(self.chain.head, 0);
                budget -= 1;
                if budget == 0 {
                    let _ = self.start.kick.write(1);
                    return Ok(());
                }
            }
            if !self.queue.enable_notification()? {
                return Ok(());
            }
        }
    }

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

    fn turn(&mut self, io: &mut Io<'_>) {
        match self.run(io) {
            Ok(()) => self.kick.arm(io, KICK, &self.start.kick),
            Err(e) => self.start.notify.needs_reset(&e.to_string()),
        }
    }
}

impl Source for TxSource {
    fn start(&mut self, io: &mut Io<'_>) {
        self.turn(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, _result: i32) {
        if tag == KICK {
            self.kick.fired();
        } else {
            self.room.fired();
        }
        if !self.stopping {
            self.turn(io);
        }
    }

    fn flush(&mut self, _io: &mut Io<'_>) {
        if self.queue.publish() {
            self.start.notify.used();
        }
    }

    fn stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.kick.cancel(io, KICK);
        self.room.cancel(io, TAP);
    }

    fn stopped(self: Box<Self>) {
        let home = self.home.clone();
        home.give(self);
    }
}
