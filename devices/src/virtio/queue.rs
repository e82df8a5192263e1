//! Split virtqueues (virtio 1.3 §2.7), the device's side.
//!
//! The rings' host addresses are checked and resolved once, when the queue starts; afterwards a
//! pop or a push is a few volatile accesses. The state that survives a stop is [`QueueState`].

use std::cell::Cell;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::chain::Chain;
use super::features;
use crate::memory::GuestRam;

/// Sizes are powers of two up to this (virtio 1.3 §2.7 allows 32768).
pub const MAX_QUEUE_SIZE: u16 = 1024;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Everything that must be kept of a queue while it does not run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Guest address of the descriptor table (16-byte aligned).
    pub desc: u64,
    /// Guest address of the available ring (2-byte aligned).
    pub avail: u64,
    /// Guest address of the used ring (4-byte aligned).
    pub used: u64,
    /// The next entry of the available ring to look at.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

/// What a driver did wrong with a queue. The device stops and asks to be reset.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    /// The size is zero, too large or no power of two.
    #[error("queue size {0} is not a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// A ring is misaligned or not in RAM.
    #[error("the {ring} at {addr:#x} is misaligned or not in guest RAM")]
    Ring {
        /// Which of the three.
        ring: &'static str,
        /// Where the driver said it is.
        addr: u64,
    },
    /// The available index ran ahead of what the ring can hold.
    #[error("available index {avail} is more than {size} ahead of {next}")]
    AvailIndex {
        /// What the driver wrote.
        avail: u16,
        /// Where the device is.
        next: u16,
        /// The queue's size.
        size: u16,
    },
    /// A descriptor index is outside its table.
    #[error("descriptor {index} is outside the table of {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries in the table.
        size: u32,
    },
    /// A descriptor points outside RAM.
    #[error("a buffer at {addr:#x}+{len:#x} is not in guest RAM")]
    Buffer {
        /// Guest address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// More buffers than the queue has descriptors, or a loop.
    #[error("a descriptor chain is longer than the queue ({0})")]
    TooLong(u16),
    /// A readable buffer after a writable one.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// A request without a byte for its status.
    #[error("a request has no room for its status")]
    NoStatus,
    /// An indirect table that is malformed or not allowed here.
    #[error("an indirect descriptor table is not valid: {0}")]
    Indirect(&'static str),
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// The index of an available or a used ring at a guest address, for queues that are served elsewhere.
pub(super) fn ring_index(ring: u64, memory: &GuestRam) -> Option<u16> {
    let field = memory.host_range(ring, 4)?.cast::<u16>();
    // SAFETY: the index is the ring's second field, and both are in guest RAM, which `memory` keeps mapped;
    // rings are aligned (checked when the queue was started).
    let index = unsafe { field.add(1).read_volatile() };
    fence(Ordering::Acquire);
    Some(index)
}

/// A running queue.
pub struct Queue {
    memory: GuestRam,
    state: QueueState,
    desc: *const Descriptor,
    avail: *mut u16,
    used: *mut u16,
    event_idx: bool,
    indirect: bool,
    /// The available index when it was read last.
    seen: Cell<u16>,
    /// The used index that the driver can see.
    exposed: u16,
    /// The used index when an interrupt was decided on last.
    published: u16,
    /// The wish for doorbells that the driver can see.
    wish: Wish,
    /// No interrupt was decided on since the start: the driver may have been waiting since before
    /// the queue last stopped, so the first one is always sent.
    fresh: bool,
}

/// What the driver was told of doorbells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Nothing that is known of.
    Unknown,
    /// To ring for the next chain.
    Ring,
    /// Not to ring. With EVENT_IDX: what the index was then.
    Quiet(u16),
}

// SAFETY: the pointers lead into guest RAM, which `memory` keeps mapped and which no thread owns.
unsafe impl Send for Queue {}

impl Queue {
    /// Resolves the rings of `state` in guest RAM.
    pub fn new(state: QueueState, memory: &GuestRam, negotiated: u64) -> Result<Queue, QueueError> {
        let n = u64::from(state.size);
        if state.size > MAX_QUEUE_SIZE || !state.size.is_power_of_two() {
            return Err(QueueError::Size(state.size));
        }
        let ring = |ring, addr: u64, align: u64, len: u64| {
            addr.is_multiple_of(align)
                .then(|| memory.host_range(addr, len as usize))
                .flatten()
                .ok_or(QueueError::Ring { ring, addr })
        };
        // Sizes: virtio 1.3 §2.7, each ring with its trailing event field.
        let desc = ring("descriptor table", state.desc, 16, 16 * n)?;
        let avail = ring("available ring", state.avail, 2, 6 + 2 * n)?;
        let used = ring("used ring", state.used, 4, 6 + 8 * n)?;
        Ok(Queue {
            memory: memory.clone(),
            state,
            desc: desc.cast(),
            avail: avail.cast(),
            used: used.cast(),
            event_idx: features::has(negotiated, features::RING_EVENT_IDX),
            indirect: features::has(negotiated, features::RING_INDIRECT_DESC),
            seen: Cell::new(state.next_avail),
            exposed: state.next_used,
            published: state.next_used,
            wish: Wish::Unknown,
            fresh: true,
        })
    }

    /// What to keep when the queue stops.
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.state.size
    }

    /// A chain to pop into, sized for this queue.
    pub fn chain(&self) -> Chain {
        Chain::new(self.memory.clone(), self.state.size)
    }

    /// The RAM that the queue lives in.
    pub fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// How many chains the driver has made available that were not popped.
    pub fn available(&self) -> Result<u16, QueueError> {
        // SAFETY: the available ring was checked to be in RAM; field 1 is its index.
        let avail = unsafe { self.avail.add(1).read_volatile() };
        // The entries are read only after the index that announced them.
        fence(Ordering::Acquire);
        let ahead = avail.wrapping_sub(self.state.next_avail);
        if ahead > self.state.size {
            return Err(QueueError::AvailIndex {
                avail,
                next: self.state.next_avail,
                size: self.state.size,
            });
        }
        self.seen.set(avail);
        Ok(ahead)
    }

    /// Takes the next available chain into `chain`; false if there is none.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        // The index is the driver's cache line: it is read again only when all that it announced was
        // taken.
        if self.seen.get() == self.state.next_avail && self.available()? == 0 {
            return Ok(false);
        }
        let entry = usize::from(self.state.next_avail & (self.state.size - 1));
        // SAFETY: `entry` < size, and the ring's `size` entries start at field 2.
        let head = unsafe { self.avail.add(2 + entry).read_volatile() };
        self.walk(head, chain)?;
        self.state.next_avail = self.state.next_avail.wrapping_add(1);
        self.look_ahead();
        Ok(true)
    }

    /// Lets the processor fetch the next chain's first descriptor, which the driver's has written, while
    /// this one is served.
    #[inline]
    fn look_ahead(&self) {
        let next = self.state.next_avail;
        if self.seen.get() == next {
            return;
        }
        let entry = usize::from(next & (self.state.size - 1));
        // SAFETY: as in `pop`.
        let head = unsafe { self.avail.add(2 + entry).read_volatile() };
        let descriptor = self.desc.wrapping_add(usize::from(head));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which reads nothing.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(descriptor.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = descriptor;
    }

    /// Gives back the chain popped last, as if it had not been popped.
    pub fn undo_pop(&mut self) {
        self.state.next_avail = self.state.next_avail.wrapping_sub(1);
    }

    fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        let mut table = self.desc;
        let mut entries = u32::from(self.state.size);
        let mut index = head;
        let mut left = self.state.size;
        let mut nested = false;
        chain.clear(head);
        loop {
            if u32::from(index) >= entries {
                return Err(QueueError::DescriptorIndex {
                    index,
                    size: entries,
                });
            }
            if left == 0 {
                return Err(QueueError::TooLong(self.state.size));
            }
            // SAFETY: `index` < `entries`, and the table of that many entries is in RAM.
            let d = unsafe { table.add(index.into()).read_volatile() };
            if d.flags & INDIRECT != 0 {
                if !self.indirect || nested || d.flags & NEXT != 0 {
                    return Err(QueueError::Indirect("not negotiated, nested or chained"));
                }
                if d.len == 0 || d.len % 16 != 0 || d.len / 16 > 0xffff || d.addr % 16 != 0 {
                    return Err(QueueError::Indirect("bad size or alignment"));
                }
                let host = self.memory.host_range(d.addr, d.len as usize);
                table = host.ok_or(QueueError::Indirect("not in guest RAM"))?.cast();
                entries = d.len / 16;
                index = 0;
                nested = true;
                continue;
            }
            left -= 1;
            if d.len != 0 {
                let host = self.memory.host_range(d.addr, d.len as usize);
                let host = host.ok_or(QueueError::Buffer {
                    addr: d.addr,
                    len: d.len,
                })?;
                if !chain.push(host, d.len, d.flags & WRITE != 0) {
                    return Err(QueueError::Order);
                }
            }
            if d.flags & NEXT == 0 {
                return Ok(());
            }
            index = d.next;
        }
    }

    /// Returns a chain to the driver with `len` bytes written into it. The driver sees it after
    /// the next [`publish`](Self::publish).
    pub fn push(&mut self, head: u16, len: u32) {
        let entry = usize::from(self.state.next_used & (self.state.size - 1));
        // SAFETY: the used ring's entries of two 32-bit words start at its field 2 (in 16-bit
        // units) and `entry` < size; the ring is 4-byte aligned and in RAM.
        unsafe {
            let slot = self.used.add(2 + 4 * entry).cast::<u32>();
            slot.write_volatile(head.into());
            slot.add(1).write_volatile(len);
        }
        self.state.next_used = self.state.next_used.wrapping_add(1);
    }

    /// Shows the driver what was pushed. Whether it wants an interrupt for it is decided in
    /// [`publish`](Self::publish), which must follow; a driver that polls goes on at once.
    pub fn expose(&mut self) {
        let new = self.state.next_used;
        if new == self.exposed {
            return;
        }
        self.exposed = new;
        // The entries must be visible before the index.
        fence(Ordering::Release);
        // SAFETY: field 1 of the used ring is its index.
        unsafe { self.used.add(1).write_volatile(new) };
    }

    /// The same once in a few chains. The index shares a cache line with what a driver that polls looks at:
    /// to pass it to and fro for every small request takes longer than the request.
    #[inline]
    pub fn expose_some(&mut self) {
        const SOME: u16 = 8;
        if self.state.next_used.wrapping_sub(self.exposed) >= SOME {
            self.expose();
        }
    }

    /// Shows the driver what was pushed; true if it wants an interrupt for what it was shown since the
    /// last time.
    pub fn publish(&mut self) -> bool {
        self.expose();
        let new = self.state.next_used;
        if new == self.published {
            return false;
        }
        // The index must be visible before the driver's wish is read (virtio 1.3 §2.7.7.2).
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.published, new);
        if std::mem::take(&mut self.fresh) {
            return true;
        }
        if self.event_idx {
            // SAFETY: used_event follows the available ring's entries.
            let event = unsafe {
                self.avail
                    .add(2 + usize::from(self.state.size))
                    .read_volatile()
            };
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            // SAFETY: field 0 of the available ring is its flags.
            let flags = unsafe { self.avail.read_volatile() };
            flags & AVAIL_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver not to notify. It may do so all the same.
    ///
    /// With EVENT_IDX there is no such flag: the event index is kept far away, about half the index
    /// space, so this must be called again at least every 16384 chains (each pass does). It costs
    /// nothing while the driver was told already: the wish shares a cache line with what it polls.
    pub fn disable_notification(&mut self) {
        const FAR: u16 = 0x4000;
        match self.wish {
            Wish::Quiet(at) if !self.event_idx || self.state.next_avail.wrapping_sub(at) < FAR => {
                return;
            }
            _ => self.wish = Wish::Quiet(self.state.next_avail),
        }
        if self.event_idx {
            self.set_avail_event(self.state.next_avail.wrapping_sub(0x8000));
        } else {
            // SAFETY: field 0 of the used ring is its flags.
            unsafe { self.used.write_volatile(USED_NO_NOTIFY) };
        }
    }

    /// Asks the driver to notify from the next chain on. True if chains came in meanwhile: the
    /// caller looks again, since the driver may not notify for those.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.wish = Wish::Ring;
        if self.event_idx {
            self.set_avail_event(self.state.next_avail);
        } else {
            // SAFETY: field 0 of the used ring is its flags.
            unsafe { self.used.write_volatile(0) };
        }
        // The wish must be visible before the index is read again.
        fence(Ordering::SeqCst);
        Ok(self.available()? != 0)
    }

    /// Whether the driver has offered more than `n` chains that were not popped; asks it to say when it does.
    pub fn offers_more_than(&mut self, n: u16) -> Result<bool, QueueError> {
        self.wish = Wish::Ring;
        if self.event_idx {
            self.set_avail_event(self.state.next_avail.wrapping_add(n));
        } else {
            // SAFETY: field 0 of the used ring is its flags.
            unsafe { self.used.write_volatile(0) };
        }
        // As above.
        fence(Ordering::SeqCst);
        Ok(self.available()? > n)
    }

    fn set_avail_event(&mut self, event: u16) {
        // SAFETY: avail_event follows the used ring's entries of four 16-bit units each.
        unsafe {
            self.used
                .add(2 + 4 * usize::from(self.state.size))
                .write_volatile(event);
        }
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
