//! Memory that operations read into and write from.

use std::cell::UnsafeCell;
use std::sync::Arc;

use libc::iovec;

const PAGE: usize = 4096;

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "read and written as raw bytes")] [u8; PAGE]);

struct Raw {
    pages: UnsafeCell<Box<[Page]>>,
    len: usize,
}

// SAFETY: plain bytes. Who may touch them when is the rule of `Buffer`.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Raw {
    fn ptr(&self) -> *mut u8 {
        // SAFETY: only the pointer of the box is read; the box itself never changes.
        unsafe { (*self.pages.get()).as_ptr().cast_mut().cast() }
    }
}

/// Page-aligned memory of our own. Operations on its [`span`](Self::span) hold it too, so it outlives
/// them even when the task that began them is gone.
///
/// The rule: nobody looks at the bytes while an operation on them is in flight. Tasks await their
/// operations before they look, and never share a buffer.
pub struct Buffer(Arc<Raw>);

impl Buffer {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Buffer {
        let pages = vec![Page([0; PAGE]); len.div_ceil(PAGE)].into_boxed_slice();
        Buffer(Arc::new(Raw {
            pages: UnsafeCell::new(pages),
            len,
        }))
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::new(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is `len` long and lives as long as `self`; no operation is in flight
        // on it (the rule above).
        unsafe { std::slice::from_raw_parts(self.0.ptr(), self.0.len) }
    }

    /// The bytes, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `Buffer` is not cloned, so this borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.0.ptr(), self.0.len) }
    }

    /// The whole buffer, for an operation.
    pub fn span(&self) -> Span {
        self.part(0, self.0.len)
    }

    /// `len` bytes from `start`, for an operation. Cut to the buffer.
    pub fn part(&self, start: usize, len: usize) -> Span {
        let start = start.min(self.0.len);
        let len = len.min(self.0.len - start);
        Span {
            vecs: vec![iovec {
                // Inside the buffer or at its end.
                iov_base: self.0.ptr().wrapping_add(start).cast(),
                iov_len: len,
            }],
            len: len as u64,
            keep: vec![self.0.clone()],
        }
    }
}

/// A list of memory pieces that one operation transfers.
#[derive(Clone, Default)]
pub struct Span {
    vecs: Vec<iovec>,
    len: u64,
    keep: Vec<Arc<Raw>>,
}

// SAFETY: the pieces are kept alive by `keep` or by the promise of `from_raw`, and have no owner
// thread.
unsafe impl Send for Span {}
// SAFETY: shared, a span only copies pointers; bytes are moved by the one task that owns it.
unsafe impl Sync for Span {}

impl Span {
    /// A span over foreign memory.
    ///
    /// # Safety
    /// The pieces stay valid for reading and writing until the task that this span is given to,
    /// and every operation that it began, has ended. Nobody holds references into them.
    pub unsafe fn from_raw(vecs: &[iovec]) -> Span {
        Span {
            len: vecs.iter().map(|v| v.iov_len as u64).sum(),
            vecs: vecs.to_vec(),
            keep: Vec::new(),
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces.
    pub fn vecs(&self) -> &[iovec] {
        &self.vecs
    }

    /// Whether every piece starts and ends at a multiple of `align`.
    pub fn aligned(&self, align: usize) -> bool {
        self.vecs
            .iter()
            .all(|v| (v.iov_base as usize).is_multiple_of(align) && v.iov_len.is_multiple_of(align))
    }

    /// `len` bytes from `start`. Cut to the span.
    pub fn slice(&self, mut start: u64, mut len: u64) -> Span {
        let mut part = Span {
            vecs: Vec::new(),
            len: 0,
            keep: self.keep.clone(),
        };
        for v in &self.vecs {
            if len == 0 {
                break;
            }
            let size = v.iov_len as u64;
            if start >= size {
                start -= size;
                continue;
            }
            let n = (size - start).min(len);
            part.vecs.push(iovec {
                iov_base: v.iov_base.cast::<u8>().wrapping_add(start as usize).cast(),
                iov_len: n as usize,
            });
            part.len += n;
            len -= n;
            start = 0;
        }
        part
    }

    /// This span and then `other`.
    pub fn then(mut self, other: Span) -> Span {
        self.vecs.extend(other.vecs);
        self.keep.extend(other.keep);
        self.len += other.len;
        self
    }

    /// Zeroes the bytes from `start` to the end.
    pub fn zero(&self, start: u64) {
        for v in &self.slice(start, self.len).vecs {
            // SAFETY: the piece is valid for writing (`keep`, or the promise of `from_raw`), and no
            // operation is in flight on it: the task that owns it is here.
            unsafe { std::ptr::write_bytes(v.iov_base.cast::<u8>(), 0, v.iov_len) };
        }
    }

    /// Copies `bytes` to the start of the span, as far as it goes.
    pub fn fill(&self, mut bytes: &[u8]) {
        for v in &self.vecs {
            let n = v.iov_len.min(bytes.len());
            // SAFETY: as in `zero`; `bytes` is a borrow, so it does not overlap memory that only
            // raw pointers lead to.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), v.iov_base.cast::<u8>(), n) };
            bytes = &bytes[n..];
        }
    }

    /// Copies the start of the span to `bytes`, as far as it goes.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let mut done = 0;
        for v in &self.vecs {
            let n = v.iov_len.min(bytes.len() - done);
            // SAFETY: as in `fill`, in the other direction.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    v.iov_base.cast::<u8>(),
                    bytes[done..].as_mut_ptr(),
                    n,
                );
            }
            done += n;
        }
    }

    /// Drops the first `n` bytes, which are done.
    pub(super) fn advance(&mut self, n: u64) {
        *self = self.slice(n, self.len.saturating_sub(n));
    }
}
