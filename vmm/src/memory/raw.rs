//! The few calls on guest RAM and its page tables that no crate wraps.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Host memory of the guest, as the regions of its mapping.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub host: *mut u8,
    pub len: usize,
}

/// Writes guest memory into a file. The guest may change it meanwhile; then any mix of the bytes
/// before and after is written.
pub(super) fn write_at(file: &File, piece: Piece, offset: u64) -> io::Result<()> {
    transfer(piece, offset, |host, len, offset| {
        // SAFETY: the piece lies in guest RAM, which its owner keeps mapped; the kernel copies from it.
        unsafe { libc::pwrite64(file.as_raw_fd(), host.cast(), len, offset) }
    })
}

/// Reads guest memory from a file.
pub(super) fn read_at(file: &File, piece: Piece, offset: u64) -> io::Result<()> {
    transfer(piece, offset, |host, len, offset| {
        // SAFETY: the piece lies in guest RAM, which its owner keeps mapped; the kernel copies into it.
        unsafe { libc::pread64(file.as_raw_fd(), host.cast(), len, offset) }
    })
}

/// Copies guest memory out. The guest may change it meanwhile; then any mix is copied.
pub(super) fn copy_out(piece: Piece, into: &mut [u8]) {
    let len = piece.len.min(into.len());
    // SAFETY: the piece lies in guest RAM, which its owner keeps mapped, and the two do not overlap. Bytes
    // that the guest changes meanwhile may be torn, and every mix of them is a valid u8.
    unsafe { std::ptr::copy_nonoverlapping(piece.host, into.as_mut_ptr(), len) };
}

/// Copies bytes over guest memory.
pub(super) fn copy_in(from: &[u8], piece: Piece) {
    let len = piece.len.min(from.len());
    // SAFETY: the piece lies in guest RAM, which its owner keeps mapped, and the two do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), piece.host, len) };
}

fn transfer(
    piece: Piece,
    offset: u64,
    call: impl Fn(*mut u8, usize, i64) -> isize,
) -> io::Result<()> {
    let mut done = 0;
    while done < piece.len {
        let host = piece.host.wrapping_add(done);
        match call(host, piece.len - done, (offset + done as u64) as i64) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n if n > 0 => done += n as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Maps a part of a file privately over guest memory.
pub(super) fn map_over(file: &File, piece: Piece, offset: u64) -> io::Result<()> {
    // SAFETY: the piece is whole pages of our own mapping, which nobody uses yet and which stays mapped.
    let mapped = unsafe {
        libc::mmap(
            piece.host.cast(),
            piece.len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED,
            file.as_raw_fd(),
            offset as i64,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

// From <linux/userfaultfd.h>.
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
const UFFD_API: u64 = 0xaa;
const REGISTER_MODE_WP: u64 = 2;
const WRITEPROTECT_MODE_WP: u64 = 1;

/// Features of a userfaultfd.
pub(super) mod features {
    /// Also pages of hugetlbfs and shared memory.
    pub const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// Pages that are not there yet are protected, too.
    pub const WP_UNPOPULATED: u64 = 1 << 13;
    /// The kernel itself lifts the protection at the first write.
    pub const WP_ASYNC: u64 = 1 << 15;
    /// Pages of hugetlbfs can be missing.
    pub const MISSING_HUGETLBFS: u64 = 1 << 4;
    /// Pages of shared memory can be missing.
    pub const MISSING_SHMEM: u64 = 1 << 5;
    /// Pages can be such that nobody can have them.
    pub const POISON: u64 = 1 << 14;
}

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioWriteprotect {
    start: u64,
    len: u64,
    mode: u64,
}

fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> io::Result<i64> {
    // SAFETY: each caller passes the structure that its request names, and the kernel writes no more than it.
    let n = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument as *mut T) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(n.into())
}

/// Asks for features; fails if one is lacking.
pub(super) fn userfault_api(fd: BorrowedFd<'_>, features: u64) -> io::Result<()> {
    let mut api = UffdioApi {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    ioctl(fd, UFFDIO_API, &mut api).map(drop)
}

/// Lets a userfaultfd watch writes to a range.
pub(super) fn watch_writes(fd: BorrowedFd<'_>, piece: Piece) -> io::Result<()> {
    let mut register = UffdioRegister {
        start: piece.host as u64,
        len: piece.len as u64,
        mode: REGISTER_MODE_WP,
        ioctls: 0,
    };
    ioctl(fd, UFFDIO_REGISTER, &mut register).map(drop)
}

/// Protects a range against writes.
pub(super) fn protect(fd: BorrowedFd<'_>, piece: Piece) -> io::Result<()> {
    let mut protect = UffdioWriteprotect {
        start: piece.host as u64,
        len: piece.len as u64,
        mode: WRITEPROTECT_MODE_WP,
    };
    ioctl(fd, UFFDIO_WRITEPROTECT, &mut protect).map(drop)
}

const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_POISON: u64 = 0xc020_aa08;
const REGISTER_MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioPoison {
    start: u64,
    len: u64,
    mode: u64,
    updated: i64,
}

/// Lets a userfaultfd be told of accesses to pages of a range that are not there.
pub(super) fn watch_missing(fd: BorrowedFd<'_>, piece: Piece) -> io::Result<()> {
    let mut register = UffdioRegister {
        start: piece.host as u64,
        len: piece.len as u64,
        mode: REGISTER_MODE_MISSING,
        ioctls: 0,
    };
    ioctl(fd, UFFDIO_REGISTER, &mut register).map(drop)
}

/// Lets go of a range: pages that are not there are zeroes.
pub(super) fn unwatch(fd: BorrowedFd<'_>, piece: Piece) -> io::Result<()> {
    let mut range = UffdioRange {
        start: piece.host as u64,
        len: piece.len as u64,
    };
    ioctl(fd, UFFDIO_UNREGISTER, &mut range).map(drop)
}

/// Puts a page there, whole, and lets those who wait for it go on. A page that is there already stays.
pub(super) fn place_page(fd: BorrowedFd<'_>, host: u64, page: &[u8]) -> io::Result<()> {
    let mut copy = UffdioCopy {
        dst: host,
        src: page.as_ptr() as u64,
        len: page.len() as u64,
        mode: 0,
        copy: 0,
    };
    loop {
        match ioctl(fd, UFFDIO_COPY, &mut copy) {
            Ok(_) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => copy.copy = 0,
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                let mut range = UffdioRange {
                    start: host,
                    len: page.len() as u64,
                };
                return ioctl(fd, UFFDIO_WAKE, &mut range).map(drop);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Lets those who want a page fail: it cannot be had.
pub(super) fn poison_page(fd: BorrowedFd<'_>, host: u64, len: u64) -> io::Result<()> {
    let mut poison = UffdioPoison {
        start: host,
        len,
        mode: 0,
        updated: 0,
    };
    ioctl(fd, UFFDIO_POISON, &mut poison).map(drop)
}

/// The address of the next access to a page that is not there. None if there is none now.
pub(super) fn next_fault(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let mut message = [0u64; 4];
    // SAFETY: the buffer is 32 bytes, which is what one message has.
    let n = unsafe { libc::read(fd.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
    if n < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        };
    }
    Ok((n == 32 && message[0] as u8 == EVENT_PAGEFAULT).then_some(message[2]))
}

/// Lets pages of a mapping come from the page cache now.
pub(super) fn populate(piece: Piece) -> io::Result<()> {
    // SAFETY: the piece lies in guest RAM; reading pages in changes nothing that anyone sees.
    let done = unsafe { libc::madvise(piece.host.cast(), piece.len, libc::MADV_POPULATE_READ) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

// From <linux/fs.h>.
const PAGEMAP_SCAN: u64 = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1;
/// What a page is.
pub(super) mod categories {
    /// Written since it was protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// It is a file's or shared memory's.
    pub const FILE: u64 = 1 << 2;
    /// It is in memory.
    pub const PRESENT: u64 = 1 << 3;
    /// It is swapped out.
    pub const SWAPPED: u64 = 1 << 4;
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Which pages a scan looks for.
#[derive(Clone, Copy)]
pub(super) enum Look {
    /// Written since they were protected; they are protected again.
    Written,
    /// The process's own copies of pages of a private mapping.
    Copied,
    /// The same, as far as they are in memory.
    CopiedAndPresent,
    /// Mapped at all.
    Present,
}

/// Finds the pages of a piece, as offsets in it and lengths.
pub(super) fn scan(pagemap: &File, piece: Piece, look: Look) -> io::Result<Vec<(u64, u64)>> {
    const AT_ONCE: usize = 1024;
    let mut regions = [PageRegion::default(); AT_ONCE];
    let (start, end) = (piece.host as u64, piece.host as u64 + piece.len as u64);
    let mut found = Vec::new();
    let mut at = start;
    while at < end {
        let mut scan = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            start: at,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: AT_ONCE as u64,
            ..PmScanArg::default()
        };
        match look {
            Look::Written => {
                scan.flags = PM_SCAN_WP_MATCHING;
                scan.category_mask = categories::WRITTEN;
                scan.return_mask = categories::WRITTEN;
            }
            Look::Present => {
                scan.category_mask = categories::PRESENT;
                scan.return_mask = categories::PRESENT;
            }
            Look::CopiedAndPresent => {
                scan.category_inverted = categories::FILE;
                scan.category_mask = categories::FILE | categories::PRESENT;
                scan.return_mask = categories::PRESENT;
            }
            Look::Copied => {
                scan.category_inverted = categories::FILE;
                scan.category_mask = categories::FILE;
                scan.category_anyof_mask = categories::PRESENT | categories::SWAPPED;
                scan.return_mask = categories::PRESENT;
            }
        }
        let n = ioctl(pagemap.as_fd(), PAGEMAP_SCAN, &mut scan)? as usize;
        let page = |r: &PageRegion| (r.start - start, r.end - r.start);
        found.extend(regions[..n.min(AT_ONCE)].iter().map(page));
        if scan.walk_end <= at {
            return Err(io::Error::other("the kernel's scan does not move on"));
        }
        at = scan.walk_end;
    }
    Ok(found)
}
