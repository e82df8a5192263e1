//! Tap to guest: each frame is read straight into the driver's buffers.
//!
//! With mergeable buffers one read spans as many chains as the largest frame may need, or as there
//! are; the ones that were not filled stay popped and wait for the next frame. Behind them comes
//! memory of our own, so that a frame is never cut: one that did not fit is held until the driver
//! has added buffers.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;

use libc::iovec;

use super::{NetCounters, Tap, VNET_HEADER};
use crate::limit::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::served::{Serve, Side};
use crate::worker::{FdWait, Io};

const TAP: u32 = 0;
const LIMIT: u32 = 1;

/// Bytes of the largest frame that a tap gives, with Ethernet header, VLAN tag and vnet header.
const LARGEST: usize = 65536 + 14 + 4 + VNET_HEADER;
/// What readv takes.
const MAX_IOV: usize = 1024;
/// Offset of num_buffers in the vnet header.
const NUM_BUFFERS: usize = 10;

pub(super) struct RxQueue {
    tap: Arc<Tap>,
    mergeable: bool,
    /// The largest frame that is likely to come, with its headers, in bytes.
    max_frame: u64,
    counters: Arc<NetCounters>,
    /// The chain of the usual case: one buffer that takes any frame.
    single: Chain,
    /// It was popped, and waits for a frame. Then none is `ready`.
    popped: bool,
    /// Chains that wait for a frame, in order.
    ready: VecDeque<Chain>,
    ready_len: u64,
    spare: Vec<Chain>,
    iov: Vec<iovec>,
    /// Takes what does not fit into the chains. Touched by the kernel only when needed.
    spill: Vec<u8>,
    /// A frame that did not fit, with its vnet header.
    held: Vec<u8>,
    frame: FdWait,
    /// The tap gives nothing: only the driver's doorbell leads here again.
    closed: bool,
    throttle: Throttle,
}

// SAFETY: `iov` points into guest RAM, kept mapped by the chains, and into `spill`; it is rebuilt
// for every read.
unsafe impl Send for RxQueue {}

impl RxQueue {
    pub fn new(
        single: Chain,
        tap: Arc<Tap>,
        mergeable: bool,
        max_frame: u64,
        counters: Arc<NetCounters>,
        throttle: Throttle,
    ) -> Self {
        RxQueue {
            single,
            popped: false,
            tap,
            mergeable,
            max_frame,
            counters,
            ready: VecDeque::new(),
            ready_len: 0,
            spare: Vec::new(),
            iov: Vec::new(),
            spill: vec![0; LARGEST],
            held: Vec::new(),
            frame: FdWait::default(),
            closed: false,
            throttle,
        }
    }

    /// Pops until `wanted` bytes fit, or there is nothing more to pop.
    fn collect(&mut self, queue: &mut Queue, wanted: u64) -> Result<(), QueueError> {
        // Chains without room add to neither of the others, and a driver may send them for ever.
        let most = usize::from(queue.size());
        while !self.fits(wanted) && self.buffers() < MAX_IOV - 1 && self.ready.len() < most {
            let mut chain = self.spare.pop().unwrap_or_else(|| queue.chain());
            if !queue.pop(&mut chain)? {
                self.spare.push(chain);
                return Ok(());
            }
            self.ready_len += chain.writable_len();
            self.ready.push_back(chain);
        }
        Ok(())
    }

    /// Whether a frame of `len` bytes fits into the chains that are ready. A driver that cannot
    /// merge gave one chain a frame, of the size it wants.
    fn fits(&self, len: u64) -> bool {
        if self.mergeable {
            self.ready_len >= len
        } else {
            self.ready.front().is_some_and(|c| c.writable_len() >= len)
        }
    }

    fn buffers(&self) -> usize {
        self.ready.iter().map(|c| c.writable().len()).sum()
    }

    /// More buffers will not come for the frame that is held.
    fn exhausted(&self, queue: &Queue) -> bool {
        let all = self.ready.len() >= usize::from(queue.size()) || self.buffers() >= MAX_IOV - 1;
        !self.held.is_empty() && (all || (!self.mergeable && !self.ready.is_empty()))
    }

    fn receive(&mut self) -> std::io::Result<Option<usize>> {
        self.iov.clear();
        let chains = if self.mergeable { self.ready.len() } else { 1 };
        for chain in self.ready.iter().take(chains) {
            let room = MAX_IOV - 1 - self.iov.len();
            self.iov.extend(chain.writable().iter().take(room));
        }
        self.iov.push(iovec {
            iov_base: self.spill.as_mut_ptr().cast(),
            iov_len: self.spill.len(),
        });
        // SAFETY: the buffers are in guest RAM, which the chains keep mapped, and in `spill`.
        unsafe { self.tap.receive(&self.iov) }
    }

    /// Keeps a frame of `len` bytes that reached into the spill.
    fn hold(&mut self, len: usize) {
        self.held.clear();
        let chains = if self.mergeable { self.ready.len() } else { 1 };
        for chain in self.ready.iter().take(chains) {
            chain.read_back(&mut self.held);
        }
        let spilled = len.saturating_sub(self.held.len()).min(self.spill.len());
        self.held.extend_from_slice(&self.spill[..spilled]);
    }

    fn deliver_held(&mut self, queue: &mut Queue) {
        let mut rest = self.held.as_slice();
        for chain in &self.ready {
            let n = chain.write(0, rest);
            rest = &rest[n..];
            if rest.is_empty() {
                break;
            }
        }
        let len = self.held.len();
        self.held.clear();
        self.deliver(queue, len);
    }

    /// Returns the chains that a frame of `len` bytes went into.
    fn deliver(&mut self, queue: &mut Queue, len: usize) {
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
            queue.push(chain.head, n as u32);
            self.spare.push(chain);
        }
        queue.expose();
        self.count(len);
    }
}

/// How a pass over the usual case ended.
enum Pass {
    /// There is nothing more to do now.
    Over,
    /// It is not the usual case.
    Unusual,
}

impl RxQueue {
    /// Frames into chains of one buffer that takes any of them: a plain read each, and nothing is moved.
    ///
    /// Should a buffer come back full, its frame may have been larger. That one is lost, and from then on
    /// there is always a spill behind the buffers.
    fn usual(
        &mut self,
        side: &mut Side,
        io: &mut Io<'_>,
        budget: &mut u16,
    ) -> Result<Pass, QueueError> {
        loop {
            if !self.popped && !side.queue.pop(&mut self.single)? {
                if side.rest()? {
                    side.queue.disable_notification();
                    continue;
                }
                return Ok(Pass::Over);
            }
            self.popped = true;
            let room = match self.single.writable() {
                [one] if one.iov_len as u64 > self.max_frame => one.iov_len,
                _ => return Ok(Pass::Unusual),
            };
            if *budget == 0 {
                side.yield_turn();
                return Ok(Pass::Over);
            }
            *budget -= 1;
            if !self.throttle.admits(io, LIMIT) {
                return Ok(Pass::Over);
            }
            // SAFETY: the buffer is in guest RAM, which the chain keeps mapped.
            match unsafe { self.tap.receive(self.single.writable()) } {
                Ok(Some(n)) if n < room => {
                    self.single.write(NUM_BUFFERS, &1u16.to_le_bytes());
                    side.queue.push(self.single.head, n as u32);
                    self.popped = false;
                    self.count(n);
                    side.queue.expose_some();
                }
                Ok(Some(_)) => {
                    self.max_frame = LARGEST as u64;
                    return Ok(Pass::Unusual);
                }
                other => {
                    if self.silent(side, io, other)? {
                        return Ok(Pass::Over);
                    }
                }
            }
        }
    }

    /// The tap gave no frame. False if it may at once.
    fn silent(
        &mut self,
        side: &mut Side,
        io: &mut Io<'_>,
        received: std::io::Result<Option<usize>>,
    ) -> Result<bool, QueueError> {
        match received {
            // It will look for a frame again.
            Ok(_) if side.polled() => Ok(true),
            Ok(_) => {
                self.frame.arm(io, TAP, self.tap.as_fd(), libc::POLLIN);
                // Fewer buffers than the largest frame needs are enough to wait with, but
                // new ones are to be noticed when one comes that does not fit.
                Ok(true)
            }
            // A frame that was refused is lost.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EFAULT | libc::EINVAL)) => Ok(false),
            Err(e) => {
                // The interface is down, gone, or this queue of it is detached: look again when
                // the driver does something.
                log::debug!("tap: {e}");
                self.closed = true;
                side.queue.enable_notification()?;
                Ok(true)
            }
        }
    }

    /// A frame of `len` bytes, with its vnet header, was delivered.
    fn count(&self, len: usize) {
        let bytes = len.saturating_sub(VNET_HEADER) as u64;
        self.throttle.charge(bytes);
        self.counters.frames.add(1);
        self.counters.bytes.add(bytes);
    }
}

impl Serve for RxQueue {
    fn run(&mut self, side: &mut Side, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut budget = side.queue.size();
        self.closed = false;
        side.queue.disable_notification();
        loop {
            if self.held.is_empty() && self.ready.is_empty() {
                if let Pass::Over = self.usual(side, io, &mut budget)? {
                    return Ok(());
                }
                self.popped = false;
                let other = self.spare.pop().unwrap_or_else(|| side.queue.chain());
                let chain = std::mem::replace(&mut self.single, other);
                self.ready_len += chain.writable_len();
                self.ready.push_back(chain);
            }
            let wanted = if self.held.is_empty() {
                self.max_frame
            } else {
                self.held.len() as u64
            };
            self.collect(&mut side.queue, wanted)?;
            let usable = if self.held.is_empty() {
                !self.ready.is_empty()
            } else {
                self.fits(wanted)
            };
            if !usable {
                if self.exhausted(&side.queue) {
                    // All of the ring, or the one chain that counts, is too small for this frame.
                    self.held.clear();
                    continue;
                }
                // Until the driver adds buffers the host queues, and drops when its queue is full.
                if side.rest()? {
                    side.queue.disable_notification();
                    continue;
                }
                return Ok(());
            }
            if budget == 0 {
                side.yield_turn();
                return Ok(());
            }
            budget -= 1;
            if !self.held.is_empty() {
                self.deliver_held(&mut side.queue);
                continue;
            }
            if !self.throttle.admits(io, LIMIT) {
                return Ok(());
            }
            match self.receive() {
                Ok(Some(n)) if self.fits(n as u64) => self.deliver(&mut side.queue, n),
                Ok(Some(n)) => self.hold(n),
                other => {
                    if self.silent(side, io, other)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn complete(&mut self, _side: &mut Side, _io: &mut Io<'_>, tag: u32, _result: i32) -> bool {
        match tag {
            LIMIT => self.throttle.fired(),
            _ => self.frame.fired(),
        }
        true
    }

    /// Polling means asking the tap.
    fn has_work(&self, side: &Side) -> bool {
        !self.closed
            && !self.throttle.is_closed()
            && (self.popped || !self.ready.is_empty() || side.queue.available() != Ok(0))
    }

    fn stop(&mut self, side: &mut Side, io: &mut Io<'_>) {
        self.frame.cancel(io, TAP);
        self.throttle.cancel(io, LIMIT);
        // Chains that wait for a frame go back to where they came from.
        if std::mem::take(&mut self.popped) {
            side.queue.undo_pop();
        }
        for _ in self.ready.drain(..) {
            side.queue.undo_pop();
        }
        self.ready_len = 0;
    }
}
