//! A descriptor chain as host memory: what the device may read, then what it may write.

use libc::iovec;

use crate::memory::GuestRam;

/// The buffers of one request, reused from request to request so that no allocation is made.
///
/// Each buffer was checked to lie in guest RAM when the chain was popped. The guest may change
/// the bytes underneath at any time, so everything is copied out once before it is looked at.
pub struct Chain {
    /// The chain's first descriptor: what goes into the used ring.
    pub head: u16,
    iov: Vec<iovec>,
    /// `iov[start..split]` is readable, `iov[split..]` writable.
    start: usize,
    split: usize,
    /// Keeps the memory mapped while an iovec may be in the kernel's hands.
    _memory: GuestRam,
}

// SAFETY: the iovecs point into guest RAM, which `_memory` keeps mapped and which has no owner
// thread; all accesses go through raw copies.
unsafe impl Send for Chain {}

impl Chain {
    /// An empty chain for requests of up to `descriptors` buffers.
    pub fn new(memory: GuestRam, descriptors: u16) -> Self {
        Chain {
            head: 0,
            iov: Vec::with_capacity(descriptors.into()),
            start: 0,
            split: 0,
            _memory: memory,
        }
    }

    pub(super) fn clear(&mut self, head: u16) {
        self.head = head;
        self.iov.clear();
        self.start = 0;
        self.split = 0;
    }

    /// Adds a buffer. The caller checked that it is in guest RAM. False if a readable one comes
    /// after a writable one (virtio 1.3 §2.7.4.2 forbids it).
    pub(super) fn push(&mut self, base: *mut u8, len: u32, writable: bool) -> bool {
        if !writable {
            if self.split != self.iov.len() {
                return false;
            }
            self.split += 1;
        }
        self.iov.push(iovec {
            iov_base: base.cast(),
            iov_len: len as usize,
        });
        true
    }

    /// Buffers that the device reads.
    pub fn readable(&self) -> &[iovec] {
        &self.iov[self.start..self.split]
    }

    /// Buffers that the device writes.
    pub fn writable(&self) -> &[iovec] {
        &self.iov[self.split..]
    }

    /// Bytes left to read.
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// Bytes left to write.
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }

    /// Takes the first `out.len()` readable bytes. False, with nothing taken, if there are fewer.
    pub fn take_front(&mut self, out: &mut [u8]) -> bool {
        if self.readable_len() < out.len() as u64 {
            return false;
        }
        let mut done = 0;
        while done < out.len() {
            let part = &mut self.iov[self.start];
            let n = part.iov_len.min(out.len() - done);
            // SAFETY: the iovec lies in mapped guest RAM (checked when popped, kept mapped by
            // `_memory`) and `out` is ours; guest RAM and our memory never overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    part.iov_base.cast::<u8>(),
                    out[done..].as_mut_ptr(),
                    n,
                );
                part.iov_base = part.iov_base.add(n);
            }
            part.iov_len -= n;
            done += n;
            if part.iov_len == 0 {
                self.start += 1;
            }
        }
        true
    }

    /// Takes away the first `n` readable bytes, or all if there are fewer.
    pub fn skip_front(&mut self, mut n: u64) {
        while n > 0 && self.start < self.split {
            let part = &mut self.iov[self.start];
            let step = n.min(part.iov_len as u64) as usize;
            part.iov_base = part.iov_base.cast::<u8>().wrapping_add(step).cast();
            part.iov_len -= step;
            n -= step as u64;
            if part.iov_len == 0 {
                self.start += 1;
            }
        }
    }

    /// Takes the last writable byte away from [`writable`](Self::writable), for a status that is
    /// written last. None if nothing is writable.
    pub fn take_back(&mut self) -> Option<StatusByte> {
        let part = self.iov[self.split..].last_mut()?;
        part.iov_len = part.iov_len.checked_sub(1)?;
        // SAFETY: iov_len was at least 1, so the last byte is inside the buffer.
        let byte = unsafe { part.iov_base.cast::<u8>().add(part.iov_len) };
        if part.iov_len == 0 {
            self.iov.pop();
        }
        Some(StatusByte(byte))
    }

    /// Copies `data` into the writable buffers, from `skip` bytes on; how much fitted.
    pub fn write(&self, mut skip: usize, data: &[u8]) -> usize {
        let mut done = 0;
        for part in self.writable() {
            if done == data.len() {
                break;
            }
            if skip >= part.iov_len {
                skip -= part.iov_len;
                continue;
            }
            let n = (part.iov_len - skip).min(data.len() - done);
            // SAFETY: as in `take_front`, in the other direction; `skip + n <= iov_len`.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    data[done..].as_ptr(),
                    part.iov_base.cast::<u8>().add(skip),
                    n,
                );
            }
            done += n;
            skip = 0;
        }
        done
    }

    /// Appends what is in the writable buffers to `out`.
    pub fn read_back(&self, out: &mut Vec<u8>) {
        for part in self.writable() {
            let start = out.len();
            out.resize(start + part.iov_len, 0);
            // SAFETY: as in `take_front`; `out` has just grown by `iov_len`.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    part.iov_base.cast::<u8>(),
                    out[start..].as_mut_ptr(),
                    part.iov_len,
                );
            }
        }
    }

    /// Copies readable bytes into `out`, without taking them; how many there were.
    pub fn peek(&self, out: &mut [u8]) -> usize {
        let mut done = 0;
        for part in self.readable() {
            let n = part.iov_len.min(out.len() - done);
            // SAFETY: as in `take_front`.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    part.iov_base.cast::<u8>(),
                    out[done..].as_mut_ptr(),
                    n,
                );
            }
            done += n;
        }
        done
    }
}

fn total(iov: &[iovec]) -> u64 {
    iov.iter().map(|part| part.iov_len as u64).sum()
}

/// The one byte that a request ends with.
#[derive(Clone, Copy)]
pub struct StatusByte(*mut u8);

// SAFETY: as for `Chain`, from which it came and whose memory it is used with.
unsafe impl Send for StatusByte {}

impl StatusByte {
    /// Writes the status, while `chain`, from which it was taken, keeps the memory mapped.
    pub fn write(self, _chain: &Chain, status: u8) {
        // SAFETY: the byte lay in guest RAM when the chain was popped, and the chain maps it.
        unsafe { self.0.write_volatile(status) }
    }
}
