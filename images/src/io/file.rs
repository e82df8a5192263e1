//! A file that holds an image or a part of one: opened, locked, its size followed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, StatxFlags};

use super::Span;
use crate::{Error, Result};

/// How to open a file.
#[derive(Debug, Clone, Default)]
pub struct FileOptions {
    /// For reading only.
    pub readonly: bool,
    /// Bypass the page cache (O_DIRECT) for the guest's data.
    pub direct: bool,
    /// Take no lock: for reading a file that another process has, at one's own risk.
    pub unlocked: bool,
}

/// An open file. The lock ends with it.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    file: Option<File>,
    /// A second description of the same file, with O_DIRECT.
    direct: Option<File>,
    id: i32,
    end: AtomicU64,
    readonly: bool,
    block_device: bool,
    block_size: u32,
    memory_align: u32,
}

impl ImageFile {
    /// Opens and locks a file or block device: exclusively for writing, shared for reading.
    pub fn open(path: &Path, options: &FileOptions) -> Result<Arc<ImageFile>> {
        let fail = |source| Error::Io {
            path: path.to_owned(),
            what: "open",
            source,
        };
        let kind = |what: &str| Error::Kind {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let file = open(path, options.readonly, 0).map_err(|e| match e.kind() {
            io::ErrorKind::IsADirectory => {
                kind("a directory: give a regular file or a block device")
            }
            _ => fail(e),
        })?;
        let metadata = file.metadata().map_err(fail)?;
        let block_device = metadata.file_type().is_block_device();
        let end = if metadata.is_file() {
            metadata.len()
        } else if block_device {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|e| fail(e.into()))?
        } else if metadata.is_dir() {
            return Err(kind("a directory: give a regular file or a block device"));
        } else {
            return Err(kind("neither a file nor a block device"));
        };
        if !options.unlocked && !lock_patiently(&file, !options.readonly).map_err(fail)? {
            return Err(Error::Locked {
                path: path.to_owned(),
            });
        }
        let (direct, block_size, memory_align) = if options.direct {
            let direct = open(path, options.readonly, libc::O_DIRECT).map_err(fail)?;
            let (block, memory) = direct_alignment(&direct);
            (Some(direct), block, memory)
        } else if block_device {
            let logical = rustix::fs::ioctl_blksszget(&file).unwrap_or(512);
            (None, logical.max(512), 1)
        } else {
            (None, 512, 1)
        };
        Ok(Arc::new(ImageFile {
            path: path.to_owned(),
            id: file.as_raw_fd(),
            file: Some(file),
            direct,
            end: AtomicU64::new(end),
            readonly: options.readonly,
            block_device,
            block_size,
            memory_align,
        }))
    }

    /// Creates an empty file, open and locked for writing. It must not exist yet.
    pub fn create(path: &Path) -> Result<Arc<ImageFile>> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map_err(|source| Error::Io {
                path: path.to_owned(),
                what: "create",
                source,
            })?;
        drop(file);
        ImageFile::open(path, &FileOptions::default())
    }

    /// A file that only a simulated disk knows, by `id`.
    pub fn simulated(id: i32, len: u64, readonly: bool) -> Arc<ImageFile> {
        Arc::new(ImageFile {
            path: PathBuf::from(format!("simulated-{id}")),
            file: None,
            direct: None,
            id,
            end: AtomicU64::new(len),
            readonly,
            block_device: false,
            block_size: 512,
            memory_align: 1,
        })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number that drivers know it by: the descriptor, or the simulated disk's.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// The number for an operation with [`Op::direct`](super::Op::direct) so.
    pub fn raw_fd(&self, direct: bool) -> i32 {
        match (&self.direct, direct) {
            (Some(file), true) => file.as_raw_fd(),
            _ => self.id,
        }
    }

    /// The descriptor; none for a simulated file.
    pub fn descriptor(&self, direct: bool) -> Option<&File> {
        match (&self.direct, direct) {
            (Some(file), true) => Some(file),
            _ => self.file.as_ref(),
        }
    }

    /// Whether it was opened for reading only.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Whether it is a block device, which neither grows nor reads as zeroes where nothing was written.
    pub fn block_device(&self) -> bool {
        self.block_device
    }

    /// Length in bytes, as far as operations through this object changed it.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Whether the file has data from `offset` on, and for how many of `len` bytes that holds. What
    /// has none, a hole or the file's end, reads as zeroes.
    pub fn extent(&self, offset: u64, len: u64) -> (bool, u64) {
        use rustix::fs::{SeekFrom, seek};
        let Some(file) = self.file.as_ref().filter(|_| !self.block_device) else {
            return (true, len);
        };
        let end = offset + len;
        match seek(file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => (false, data.min(end) - offset),
            Ok(_) => match seek(file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => (true, hole.min(end) - offset),
                _ => (true, len),
            },
            Err(rustix::io::Errno::NXIO) => (false, len),
            Err(_) => (true, len),
        }
    }

    /// Bytes that the file takes of its file system.
    pub fn allocated(&self) -> Result<u64> {
        match &self.file {
            Some(file) => rustix::fs::fstat(file)
                .map(|s| s.st_blocks.unsigned_abs() * 512)
                .map_err(|e| self.io_error("look at", e.into())),
            None => Ok(self.end()),
        }
    }

    /// Device and number of the file: two that agree are the same file.
    pub fn identity(&self) -> Result<(u64, u64)> {
        match &self.file {
            Some(file) => rustix::fs::fstat(file)
                .map(|s| (s.st_dev, s.st_ino))
                .map_err(|e| self.io_error("look at", e.into())),
            None => Ok((0, self.id as u64)),
        }
    }

    /// What offsets and lengths of the guest's requests must be a multiple of.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether the page cache is bypassed for the guest's data.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// What addresses of direct operations must be a multiple of; 1 without O_DIRECT.
    pub fn memory_align(&self) -> u32 {
        self.memory_align
    }

    pub(super) fn grew(&self, end: u64) {
        self.end.fetch_max(end, Ordering::AcqRel);
    }

    pub(super) fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Whether a transfer can bypass the page cache.
    pub(super) fn fits_direct(&self, offset: u64, span: &Span) -> bool {
        self.direct.is_some()
            && offset.is_multiple_of(self.block_size.into())
            && span.vecs().iter().all(|v| {
                (v.iov_base as usize).is_multiple_of(self.memory_align as usize)
                    && v.iov_len.is_multiple_of(self.block_size as usize)
            })
    }

    /// An I/O error that names this file.
    pub fn io_error(&self, what: &'static str, source: io::Error) -> Error {
        Error::Io {
            path: self.path.clone(),
            what,
            source,
        }
    }

    /// Gives up the lock, or takes it again: exclusively or (`false`) shared. Whether it was free.
    pub fn relock(&self, exclusive: Option<bool>) -> Result<bool> {
        match &self.file {
            Some(file) => try_lock(file, exclusive).map_err(|e| self.io_error("lock", e)),
            None => Ok(true),
        }
    }
}

fn open(path: &Path, readonly: bool, flags: i32) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(!readonly)
        // A FIFO must not block the caller.
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | flags)
        .open(path)?;
    // Only opening must not block. Left on, some kernels fail every transfer with EAGAIN.
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - rustix::fs::OFlags::NONBLOCK)?;
    Ok(file)
}

/// What O_DIRECT demands of this file: (offset and length, address).
fn direct_alignment(file: &File) -> (u32, u32) {
    // Linux before 6.1, and file systems that don't say, get the block size that nearly all take.
    const SAFE: (u32, u32) = (4096, 4096);
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(x) if x.stx_dio_offset_align != 0 => {
            (x.stx_dio_offset_align.max(512), x.stx_dio_mem_align.max(1))
        }
        _ => SAFE,
    }
}

/// Takes a lock. A monitor that was killed a moment ago may seem to have it: the kernel takes its
/// ring down, and closes the files in it, some milliseconds after the process, or when a flush in flight has
/// ended.
fn lock_patiently(file: &File, exclusive: bool) -> io::Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(5);
    let begun = Instant::now();
    loop {
        if try_lock(file, Some(exclusive))? {
            return Ok(true);
        }
        if begun.elapsed() > PATIENCE {
            return Ok(false);
        }
        std::thread::sleep(STEP);
    }
}

/// What a reader locks: QEMU's bytes for "I read", "nobody may write" and "nobody may resize", so
/// that its tools may read beside us, too.
const READER: [u64; 3] = [100, 201, 203];

/// Locks a file for as long as its description is open, exclusively or shared, or (None) unlocks it.
/// Open-file-description locks: they conflict with those of QEMU and Cloud Hypervisor, and end with
/// the process, however that dies. False if somebody else holds one that is in the way.
fn try_lock(file: &File, exclusive: Option<bool>) -> io::Result<bool> {
    // A length of 0 is the whole file.
    match exclusive {
        Some(true) => lock_range(file, libc::F_WRLCK, 0, 0),
        None => lock_range(file, libc::F_UNLCK, 0, 0),
        Some(false) => {
            for byte in READER {
                if !lock_range(file, libc::F_RDLCK, byte, 1)? {
                    lock_range(file, libc::F_UNLCK, 0, 0)?;
                    return Ok(false);
                }
            }
            // What an exclusive lock had beside these.
            let mut free = 0;
            for byte in READER {
                if free < byte {
                    lock_range(file, libc::F_UNLCK, free, byte - free)?;
                }
                free = byte + 1;
            }
            lock_range(file, libc::F_UNLCK, free, 0)
        }
    }
}

fn lock_range(file: &File, kind: libc::c_int, start: u64, len: u64) -> io::Result<bool> {
    // SAFETY: flock is plain data, for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start as libc::off_t;
    lock.l_len = len as libc::off_t;
    // SAFETY: the descriptor is open and `lock` is a valid flock.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        e => Err(e),
    }
}

#[cfg(test)]
#[path = "file_test.rs"]
mod tests;
