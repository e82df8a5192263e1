//! The driver of the tools: operations are carried out at once, by blocking calls.

use std::future::Future;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::port::{Kind, Op};
use super::{ImageFile, Port};

/// Runs one task to its end on this thread.
pub fn block_on<T>(port: &Port, task: impl Future<Output = T>) -> T {
    block_on_with(port, task, carry_out)
}

/// Runs one task to its end on this thread; `carry_out` does its operations.
pub fn block_on_with<T>(
    port: &Port,
    task: impl Future<Output = T>,
    mut carry_out: impl FnMut(&Op) -> i32,
) -> T {
    let mut task = pin!(task);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = task.as_mut().poll(&mut context) {
            return result;
        }
        let mut progress = false;
        while let Some(id) = port.next() {
            progress = true;
            if let Some(result) = port.look(id, &mut carry_out) {
                port.complete(id, result);
            }
        }
        // A task that waits for nothing of its own waits for another thread's.
        if !progress {
            std::thread::yield_now();
        }
    }
}

/// Carries out one operation; the number of bytes, 0, or a negative errno.
pub fn carry_out(op: &Op) -> i32 {
    let Some(file) = op.file.descriptor(op.direct) else {
        return -libc::EBADF;
    };
    let fd = file.as_raw_fd();
    let offset = op.offset as libc::off_t;
    let vecs = op.span.vecs();
    // As many pieces as one call takes (IOV_MAX); the rest comes back as a short transfer.
    let count = vecs.len().min(1024) as libc::c_int;
    // SAFETY: the pieces are valid memory for as long as the operation lives (`Span`), and nobody
    // else looks at them meanwhile.
    let result = unsafe {
        match op.kind {
            Kind::Read => libc::preadv(fd, vecs.as_ptr(), count, offset),
            Kind::Write => libc::pwritev(fd, vecs.as_ptr(), count, offset),
            Kind::Flush => libc::fdatasync(fd) as isize,
            Kind::Punch => libc::fallocate(
                fd,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                op.len as libc::off_t,
            ) as isize,
            Kind::Zero => libc::fallocate(
                fd,
                libc::FALLOC_FL_ZERO_RANGE,
                offset,
                op.len as libc::off_t,
            ) as isize,
            Kind::SetLen => libc::ftruncate(fd, offset) as isize,
        }
    };
    if result >= 0 {
        // At most 0x7ffff000 bytes are moved by one call.
        return result as i32;
    }
    let errno = std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO);
    match op.kind {
        // Space that cannot be given back is not a failure.
        Kind::Punch if unable(errno) => 0,
        Kind::Zero if unable(errno) => write_zeroes(&op.file, op.offset, op.len),
        _ => -errno,
    }
}

/// Whether the errno says that a file system or device lacks the operation.
fn unable(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS)
}

fn write_zeroes(file: &ImageFile, mut offset: u64, mut len: u64) -> i32 {
    use std::os::unix::fs::FileExt;
    const ZEROES: [u8; 16 << 10] = [0; 16 << 10];
    let Some(fd) = file.descriptor(false) else {
        return -libc::EBADF;
    };
    while len > 0 {
        let n = len.min(ZEROES.len() as u64);
        match fd.write_at(&ZEROES[..n as usize], offset) {
            Ok(0) => return -libc::EIO,
            Ok(n) => {
                offset += n as u64;
                len -= n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return -e.raw_os_error().unwrap_or(libc::EIO),
        }
    }
    0
}
