//! Transfers that are likely to end at once, made by a plain call.
//!
//! A write to the page cache is a copy, and takes about a microsecond. Not all file systems can be
//! asked to do it only if it does not wait (RWF_NOWAIT), and for those that cannot, io_uring hands it
//! to another thread, which takes ten. So it is made here, by the thread that has it; should one wait
//! (because the cache is full of what was not written back, say), the ring gets the next ones for a
//! while. A read says beforehand that it is not to wait, and takes nothing when it would have to; where
//! the file system cannot promise that, it is made as a write is.

use std::time::{Duration, Instant};

use super::{Kind, Op};

/// What a copy to the page cache never takes.
const LONG: Duration = Duration::from_micros(500);
/// How long the ring is used after one that waited: at least so long, and so many times what that took.
const WHILE: Duration = Duration::from_millis(20);
const TIMES: u32 = 10;
/// Longer ones go to the ring, so that others need not wait for them.
const MOST: u64 = 64 << 10;

/// The most reads that go to the ring after one that could not be made at once.
const COLDEST: u32 = 64;

/// Decides which transfers are made at once.
#[derive(Debug, Default)]
pub struct Quick {
    not_before: Option<Instant>,
    /// When the last one that was timed ended, if it was quick.
    ended: Option<Instant>,
    /// The file system cannot say whether a read would wait.
    untold: bool,
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
        if self.untold {
            // SAFETY: the caller's promise.
            return unsafe { self.timed(libc::SYS_preadv, fd, vecs, offset) }.filter(|n| *n != 0);
        }
        if self.cold > 0 {
            self.cold -= 1;
            return None;
        }
        // SAFETY: the caller's promise.
        let moved = unsafe { transfer(libc::SYS_preadv2, fd, vecs, offset, libc::RWF_NOWAIT) };
        if moved > 0 {
            self.colder = 0;
            return Some(moved);
        }
        self.untold = moved == -libc::EOPNOTSUPP;
        // At the file's end it is for the ring to say so: the plain call says 0 for both.
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
        // SAFETY: the caller's promise.
        unsafe { self.timed(libc::SYS_pwritev, fd, vecs, offset) }
    }

    /// Makes a call that may wait, unless the last ones did.
    ///
    /// # Safety
    /// As for [`transfer`].
    unsafe fn timed(
        &mut self,
        call: libc::c_long,
        fd: i32,
        vecs: &[libc::iovec],
        offset: u64,
    ) -> Option<i32> {
        // In a row one's end is the next one's beginning, or little before it: only if that looks long is
        // the next one looked at by itself.
        if let (Some(begun), None) = (self.ended, self.not_before) {
            // SAFETY: the caller's promise.
            let result = unsafe { transfer(call, fd, vecs, offset, 0) };
            let ended = Instant::now();
            self.ended = (ended - begun <= LONG).then_some(ended);
            return Some(result);
        }
        let begun = Instant::now();
        if self.not_before.is_some_and(|t| begun < t) {
            return None;
        }
        let waits = waits();
        // SAFETY: the caller's promise.
        let result = unsafe { transfer(call, fd, vecs, offset, 0) };
        let ended = Instant::now();
        let took = ended - begun;
        // Time that passed because another thread had the processor says nothing of the file.
        let waited = took > LONG && self::waits() != waits;
        self.ended = (!waited).then_some(ended);
        self.not_before = waited.then(|| ended + WHILE.max(took * TIMES));
        Some(result)
    }
}

/// How often this thread has waited for something, so far.
fn waits() -> libc::c_long {
    // SAFETY: a C structure of integers, for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure that it is given; with this constant it does not fail.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
    usage.ru_nvcsw
}

/// preadv2(2) or the like: the bytes moved, or a negative errno. Without the C library's wrappers: its calls are points of cancellation, which costs
/// nearly a tenth of a copy from the page cache.
///
/// # Safety
/// The pieces are valid memory for what the call does, and `fd` is open.
unsafe fn transfer(
    call: libc::c_long,
    fd: i32,
    vecs: &[libc::iovec],
    offset: u64,
    flags: libc::c_int,
) -> i32 {
    // The offset's upper half comes separately, and means nothing on 64-bit machines.
    // SAFETY: the caller's promise; the arguments are those of the call.
    let moved =
        unsafe { libc::syscall(call, fd, vecs.as_ptr(), vecs.len(), offset, 0usize, flags) };
    match i32::try_from(moved) {
        // At most `MOST`.
        Ok(moved) if moved >= 0 => moved,
        _ => -std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    }
}
