//! A request's place while it is in flight, and the memory that the kernel transfers for it.

use std::sync::atomic::{AtomicU8, Ordering};

use libc::iovec;
use skerry_images::chain::Hold;

use super::MAX_SEGMENTS;
use super::request::{Extent, Request, Status};
use crate::virtio::chain::{Chain, StatusByte};
use crate::virtio::queue::Queue;

/// Bounce buffers of one queue together are at most this long. Requests wait for room; one that is
/// longer by itself fails.
pub(super) const MAX_BOUNCE: u64 = 32 << 20;

/// A request in flight; its index is its tag.
pub(super) struct Slot {
    pub chain: Chain,
    pub status: Option<StatusByte>,
    pub request: Request,
    /// Bytes transferred so far.
    pub done: u64,
    /// The descriptor of the file that is transferred from or to, and where in it.
    pub fd: i32,
    pub host: u64,
    /// The kernel transfers to and from the guest's pages themselves, and not through the page cache.
    pub direct: bool,
    /// The layer that led there.
    pub hold: Option<Hold>,
    /// What lies behind the file's end reads as zeroes.
    pub zeroes_behind: bool,
    /// What is left for the kernel to do: the chain's buffers, or the bounce buffer.
    pub iov: Vec<iovec>,
    pub first: usize,
    pub bounce: Option<Bounce>,
    pub bounced: u64,
    pub extents: Vec<Extent>,
    pub next_extent: usize,
    /// The current extent is zeroed by writing.
    pub by_writing: bool,
}

// SAFETY: the iovecs point into guest RAM, kept mapped by `chain`, or into `bounce`.
unsafe impl Send for Slot {}

impl Slot {
    pub fn new(queue: &Queue) -> Slot {
        Slot {
            chain: queue.chain(),
            status: None,
            request: Request::Flush,
            done: 0,
            fd: -1,
            host: 0,
            direct: false,
            hold: None,
            zeroes_behind: false,
            iov: Vec::new(),
            first: 0,
            bounce: None,
            bounced: 0,
            extents: Vec::with_capacity(MAX_SEGMENTS as usize),
            next_extent: 0,
            by_writing: false,
        }
    }

    /// The data's buffers: those that are filled by a read, or written by a write.
    pub fn buffers(&self) -> &[iovec] {
        match self.request {
            Request::Read { .. } => self.chain.writable(),
            _ => self.chain.readable(),
        }
    }

    /// Points `iov` at the memory that the kernel transfers: the guest's own, or a bounce buffer
    /// where O_DIRECT would refuse that. How long the latter is; an error if it can never be made,
    /// or (None) if there is no room for it now.
    pub fn aim(
        &mut self,
        align: u32,
        block: u32,
        len: u64,
        room: u64,
    ) -> Result<u64, Option<Status>> {
        // The list of a request before is reused.
        let mut iov = std::mem::take(&mut self.iov);
        iov.clear();
        let buffers = self.buffers();
        let aligned = align == 1
            || buffers.iter().all(|b| {
                (b.iov_base as usize).is_multiple_of(align as usize)
                    && b.iov_len.is_multiple_of(block as usize)
            });
        if aligned {
            iov.extend_from_slice(buffers);
            self.iov = iov;
            return Ok(0);
        }
        self.iov = iov;
        if len > MAX_BOUNCE {
            return Err(Some(Status::IoErr));
        }
        if len > room {
            return Err(None);
        }
        let mut bounce = Bounce::new(len as usize);
        if !matches!(self.request, Request::Read { .. }) {
            self.chain.peek(bounce.bytes_mut());
        }
        self.iov.push(iovec {
            iov_base: bounce.bytes_mut().as_mut_ptr().cast(),
            iov_len: len as usize,
        });
        self.bounce = Some(bounce);
        self.bounced = len;
        Ok(len)
    }

    /// Writes to the pages that a device has just filled, without changing them: whoever keeps note of what is
    /// written (by page faults) saw only the moment at which the transfer began.
    fn note_filled(&self, mut n: u64) {
        const PAGE: usize = 4096;
        for part in &self.iov[self.first.min(self.iov.len())..] {
            let len = n.min(part.iov_len as u64) as usize;
            let start = part.iov_base as usize;
            let pages = (start / PAGE * PAGE..start + len).step_by(PAGE);
            for at in pages {
                // SAFETY: the byte is one of the transfer's, which lies in guest RAM, kept mapped by `chain`.
                // The guest may write it, too; both are atomic.
                unsafe { AtomicU8::from_ptr(at.max(start) as *mut u8) }
                    .fetch_or(0, Ordering::Relaxed);
            }
            n -= len as u64;
            if n == 0 {
                break;
            }
        }
    }

    /// Skips `n` bytes that the kernel has transferred.
    pub fn advance(&mut self, mut n: u64) {
        if self.direct && self.bounce.is_none() && matches!(self.request, Request::Read { .. }) {
            self.note_filled(n);
        }
        self.done += n;
        while n > 0 && self.first < self.iov.len() {
            let part = &mut self.iov[self.first];
            let step = n.min(part.iov_len as u64) as usize;
            part.iov_base = part.iov_base.cast::<u8>().wrapping_add(step).cast();
            part.iov_len -= step;
            n -= step as u64;
            if part.iov_len == 0 {
                self.first += 1;
            }
        }
    }

    /// Zeroes what was not transferred.
    pub fn zero_rest(&mut self) {
        for part in &self.iov[self.first.min(self.iov.len())..] {
            // SAFETY: the iovec lies in guest RAM, kept mapped by `chain`, or in `bounce`; the
            // operation on it has ended.
            unsafe { std::ptr::write_bytes(part.iov_base.cast::<u8>(), 0, part.iov_len) };
        }
    }
}

/// Memory aligned to a page, for O_DIRECT.
pub(super) struct Bounce(Vec<Page>, usize);

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "read and written as raw bytes")] [u8; 4096]);

impl Bounce {
    fn new(len: usize) -> Self {
        Bounce(vec![Page([0; 4096]); len.div_ceil(4096)], len)
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `Page` is 4096 plain bytes without padding, and there are at least `len`.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.1) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.1) }
    }
}
