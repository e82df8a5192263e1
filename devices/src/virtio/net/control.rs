//! The control queue: how many queue pairs the driver uses (virtio 1.3 §5.1.6.5.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::Tap;

use crate::virtio::QueueStart;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Queue, QueueError, QueueState};
use crate::virtio::running::Return;
use crate::worker::{Io, KickWait, Source};

const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
const OK: u8 = 0;
const ERR: u8 = 1;

pub(super) struct ControlSource {
    queue: Queue,
    chain: Chain,
    start: QueueStart,
    taps: Vec<Arc<Tap>>,
    /// Doorbells of the receive queues: one whose tap queue was attached has to look again.
    kicks: Vec<Option<Arc<EventFd>>>,
    active: Arc<AtomicU16>,
    kick: KickWait,
    stopping: bool,
    home: Return<ControlSource>,
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

impl ControlSource {
    pub fn new(
        queue: Queue,
        start: QueueStart,
        taps: Vec<Arc<Tap>>,
        kicks: Vec<Option<Arc<EventFd>>>,
        active: Arc<AtomicU16>,
        home: Return<ControlSource>,
    ) -> Self {
        ControlSource {
            chain: queue.chain(),
            queue,
            start,
            taps,
            kicks,
            active,
            kick: KickWait::default(),
            stopping: false,
            home,
        }
    }

    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    fn run(&mut self) -> Result<(), QueueError> {
        let mut budget = self.queue.size();
        loop {
            while self.queue.pop(&mut self.chain)? {
                let answer = self.command();
                let status = self.chain.take_back();
                if let Some(byte) = status {
                    byte.write(&self.chain, answer);
                }
                self.queue.push(self.chain.head, status.is_some().into());
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

    fn command(&mut self) -> u8 {
        let mut command = [0; 4];
        if !self.chain.take_front(&mut command) || command[..2] != [CLASS_MQ, MQ_VQ_PAIRS_SET] {
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

    fn turn(&mut self, io: &mut Io<'_>) {
        match self.run() {
            Ok(()) => self.kick.arm(io, 0, &self.start.kick),
            Err(e) => self.start.notify.needs_reset(&e.to_string()),
        }
    }
}

impl Source for ControlSource {
    fn start(&mut self, io: &mut Io<'_>) {
        self.turn(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, _tag: u32, _result: i32) {
        self.kick.fired();
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
        self.kick.cancel(io, 0);
    }

    fn stopped(self: Box<Self>) {
        let home = self.home.clone();
        home.give(self);
    }
}
