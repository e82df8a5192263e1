//! Tap to guest: each frame is read straight into the driver's buffers.
//!
//! With mergeable buffers one read spans as many chains as the largest frame may need; the ones
//! that were not filled stay popped and wait for the next frame.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;

use libc::iovec;

use super::{NetCounters, Tap, VNET_HEADER};
use crate::virtio::QueueStart;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Queue, QueueError, QueueState};
use crate::virtio::running::Return;
use crate::worker::{FdWait, Io, KickWait, Source};

const KICK: u32 = 0;
const TAP: u32 = 1;

/// What readv takes.
const MAX_IOV: usize = 1024;
/// Offset of num_buffers in the vnet header.
const NUM_BUFFERS: usize = 10;

pub(super) struct RxSource {
    queue: Queue,
    start: QueueStart,
    tap: Arc<Tap>,
    mergeable: bool,
    /// The largest frame that may come, with its headers, in bytes.
    max_frame: u64,
    counters: Arc<NetCounters>,
    /// Chains that wait for a frame, in order.
    ready: VecDeque<Chain>,
    ready_len: u64,
    spare: Vec<Chain>,
    iov: Vec<iovec>,
    kick: KickWait,
    frame: FdWait,
    stopping: bool,
    home: Return<RxSource>,
}

// SAFETY: `iov` points into guest RAM, kept mapped by the chains, and is rebuilt for every read.
unsafe impl Send for RxSource {}

impl RxSource {
    pub fn new(
        queue: Queue,
        start: QueueStart,
        tap: Arc<Tap>,
        mergeable: bool,
        max_frame: u64,
        counters: Arc<NetCounters>,
        home: Return<RxSource>,
    ) -> Self {
        RxSource {
            queue,
            start,
            tap,
            mergeable,
            max_frame,
            counters,
            ready: VecDeque::new(),
            ready_len: 0,
            spare: Vec::new(),
            iov: Vec::new(),
            kick: KickWait::default(),
            frame: FdWait::default(),
            stopping: false,
            home,
        }
    }

    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Pops until the largest frame would fit. False if the driver has too few buffers.
    fn collect(&mut self) -> Result<bool, QueueError> {
        while !self.enough() {
            let mut chain = self.spare.pop().unwrap_or_else(|| self.queue.chain());
            if !self.queue.pop(&mut chain)? {
                self.spare.push(chain);
                return Ok(false);
            }
            self.ready_len += chain.writable_len();
            self.ready.push_back(chain);
        }
        Ok(true)
    }

    fn enough(&self) -> bool {
        if self.mergeable {
            // A ring too small for the largest frame takes what it can.
            self.ready_len >= self.max_frame
                || self.iov_full()
                || self.ready.len() >= self.queue.size().into()
        } else {
            !self.ready.is_empty()
        }
    }

    fn iov_full(&self) -> bool {
        self.ready.iter().map(|c| c.writable().len()).sum::<usize>() >= MAX_IOV
    }

    fn run(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut budget = self.queue.size();
        self.queue.disable_notification();
        loop {
            if !self.collect()? {
                // Too few buffers for the largest frame: wait for more of them. Until then the
                // host queues, and drops when its queue is full.
                if self.queue.enable_notification()? {
                    self.queue.disable_notification();
                    continue;
                }
                return Ok(());
            }
            if budget == 0 {
                let _ = self.start.kick.write(1);
                return Ok(());
            }
            budget -= 1;
            self.iov.clear();
            let chains = if self.mergeable { self.ready.len() } else { 1 };
            for chain in self.ready.iter().take(chains) {
                let room = MAX_IOV - self.iov.len();
                self.iov.extend(chain.writable().iter().take(room));
            }
            // SAFETY: the buffers are in guest RAM, which the chains keep mapped.
            match unsafe { self.tap.receive(&self.iov) } {
                Ok(Some(n)) => self.deliver(n),
                Ok(None) => {
                    self.frame.arm(io, TAP, self.tap.as_fd(), libc::POLLIN);
                    return Ok(());
                }
                // A frame that did not fit is lost.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EFAULT | libc::EINVAL)) => {}
                Err(e) => {
                    // The interface is down, or gone: look again when the driver does something.
                    log::debug!("tap: {e}");
                    return Ok(());
                }
            }
        }
    }

    /// Returns the chains that a frame of `len` bytes went into.
    fn deliver(&mut self, len: usize) {
        let mut left = len as u64;
        let mut used = 0u16;
        while used == 0 || left > 0 {
            let Some(chain) = self.ready.get(usize::from(used)) else {
                break;
            };
            left -= chain.writable_len().min(left);
            used += 1;
        }
        if let Some(first) = self.ready.front() {
            first.write(NUM_BUFFERS, &used.to_le_bytes());
        }
        let mut left = len as u64;
        for _ in 0..used {
            let Some(chain) = self.ready.pop_front() else {
                break;
            };
            let room = chain.writable_len();
            let n = room.min(left);
            left -= n;
            self.ready_len -= room;
            self.queue.push(chain.head, n as u32);
            self.spare.push(chain);
        }
        self.counters.frames.add(1);
        self.counters
            .bytes
            .add(len.saturating_sub(VNET_HEADER) as u64);
    }

    fn turn(&mut self, io: &mut Io<'_>) {
        match self.run(io) {
            Ok(()) => self.kick.arm(io, KICK, &self.start.kick),
            Err(e) => self.start.notify.needs_reset(&e.to_string()),
        }
    }
}

impl Source for RxSource {
    fn start(&mut self, io: &mut Io<'_>) {
        self.turn(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, _result: i32) {
        if tag == KICK {
            self.kick.fired();
        } else {
            self.frame.fired();
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
        self.frame.cancel(io, TAP);
        // Chains that wait for a frame go back to where they came from.
        for _ in self.ready.drain(..) {
            self.queue.undo_pop();
        }
        self.ready_len = 0;
    }

    fn stopped(self: Box<Self>) {
        let home = self.home.clone();
        home.give(self);
    }
}
