//! Transfers that are likely to end at once, made by a plain call.
//!
//! A write to the page cache is a copy, and takes about a microsecond. Not all file systems can be
//! asked to do it only if it does not wait (RWF_NOWAIT), and for those that cannot, io_uring hands it
//! to another thread, which takes ten. So it is made here, by the thread that has it; should one take
//! long (the cache is full of what was not written back, say), the ring gets the next ones for a
//! while. A read says beforehand that it is not to wait, and takes nothing when it would have to.

use std::time::{Duration, Instant};

use super::{Kind, Op};

/// What a copy to the page cache never takes.
const LONG: Duration = Duration::from_micros(500);
/// How long the ring is used after one that took long: at least so long, and so many times what that
/// took.
const WHILE: Duration = Duration::from_millis(20);
const TIMES: u32 = 50;
/// Longer writes go to the ring, so that others need not wait for them.
const MOST: u64 = 64 << 10;

/// The most reads that go to the ring after one that could not be made at once.
const COLDEST: u32 = 64;

/// Decides which transfers are made at once.
#[derive(Debug, Default)]
pub struct Quick {
    not_before: Option<Instant>,
    /// This many reads more go to the ring: the last ones were not in the page cache, or the file
    /// system cannot tell.
    cold: u32,
    /// How many it will be the next time.
    colder: u32,
}

impl Quick {
    /// Carries an operation out at once if it is a write that is likely to be quick: its result.
    pub fn carry_out(&mut self, op: &Op) -> Option<i32> {
        if op.kind != Kind::Write || op.direct {
            return None;
        }
        // SAFETY: the operation's span is valid memory for as long as the operation lives, which also
        // holds the file; it is not to bypass the page cache.
        unsafe { self.write(op.file.id(), op.span.vecs(), op.offset) }
    }

    /// Reads at once if that does not have to wait: the number of bytes, which may be fewer than
    /// asked for, or a negative errno. Otherwise none, and nothing was done.
    ///
    /// # Safety
    /// The pieces are valid memory, and `fd` is open and not O_DIRECT.
    pub unsafe fn read(&mut self, fd: i32, vecs: &[libc::iovec], offset: u64) -> Option<i32> {
        let len: u64 = vecs.iter().map(|v| v.iov_len as u64).sum();
        if len > MOST || vecs.len() > 64 {
            return None;
        }
        if self.cold > 0 {
            self.cold -= 1;
            return None;
        }
        let (count, offset) = (vecs.len() as libc::c_int, offset as libc::off_t);
        // SAFETY: the caller's promise.
        let moved = unsafe { libc::preadv2(fd, vecs.as_ptr(), count, offset, libc::RWF_NOWAIT) };
        // At the file's end it is for the ring to say so: the plain call says 0 for both.
        if moved > 0 {
            self.colder = 0;
            return Some(moved as i32);
        }
        self.colder = (self.colder * 2 + 1).min(COLDEST);
        self.cold = self.colder;
        None
    }

    /// Writes at once if that is likely to be quick: the number of bytes, or a negative errno.
    /// Otherwise none, and nothing was done.
    ///
    /// # Safety
    /// The pieces are valid memory, and `fd` is open and not O_DIRECT.
    pub unsafe fn write(&mut self, fd: i32, vecs: &[libc::iovec], offset: u64) -> Option<i32> {
        let len: u64 = vecs.iter().map(|v| v.iov_len as u64).sum();
        if len > MOST || vecs.len() > 64 {
            return None;
        }
        let begun = Instant::now();
        if self.not_before.is_some_and(|t| begun < t) {
            return None;
        }
        let (count, offset) = (vecs.len() as libc::c_int, offset as libc::off_t);
        // SAFETY: the caller's promise.
        let moved = unsafe { libc::pwritev(fd, vecs.as_ptr(), count, offset) };
        let result = if moved < 0 {
            -std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO)
        } else {
            // At most `MOST`.
            moved as i32
        };
        let ended = Instant::now();
        let took = ended - begun;
        self.not_before = (took > LONG).then(|| ended + WHILE.max(took * TIMES));
        Some(result)
    }
}
