//! A raw disk image or block device, opened and locked.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};
use thiserror::Error;

/// A sector, the unit of everything in virtio-blk, whatever the block size (virtio 1.3 §5.2).
pub const SECTOR: u64 = 512;

/// Why a disk could not be opened.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The system refused.
    #[error("cannot open disk {path}")]
    Open {
        /// The disk's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("disk {path} is {what}: give a regular file or a block device")]
    Kind {
        /// The disk's path.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Less than one sector, or a part of one at its end.
    #[error("disk {path} has {size} bytes, which is {problem}: make it larger with `truncate -s`")]
    Size {
        /// The disk's path.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What is wrong with that.
        problem: &'static str,
    },
    /// Another process has it.
    #[error(
        "disk {path} is in use by another process: stop that one, or open it in both with readonly=on"
    )]
    Locked {
        /// The disk's path.
        path: PathBuf,
    },
}

/// How to open a disk.
#[derive(Debug, Clone, Default)]
pub struct DiskOptions {
    /// Refuse writes.
    pub readonly: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
}

/// An open disk. The lock ends with it.
#[derive(Debug)]
pub struct Disk {
    /// The open file.
    pub file: File,
    /// Size in bytes, a multiple of [`SECTOR`].
    pub size: u64,
    /// Whether writes are refused.
    pub readonly: bool,
    /// What offsets and lengths must be a multiple of: 512, or more with O_DIRECT and on block
    /// devices with larger blocks.
    pub block_size: u32,
    /// What host addresses must be a multiple of (1 without O_DIRECT).
    pub memory_align: u32,
}

impl Disk {
    /// Opens and locks a raw disk: exclusively for writing, shared for reading.
    pub fn open(path: &Path, options: &DiskOptions) -> Result<Disk, DiskError> {
        let open_error = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        let kind_error = |what| DiskError::Kind {
            path: path.to_owned(),
            what,
        };
        let is_dir = |e: &io::Error| e.kind() == io::ErrorKind::IsADirectory;
        let file = File::options()
            .read(true)
            .write(!options.readonly)
            // A FIFO must not block the monitor.
            .custom_flags(
                libc::O_CLOEXEC
                    | libc::O_NONBLOCK
                    | if options.direct { libc::O_DIRECT } else { 0 },
            )
            .open(path)
            .map_err(|e| {
                if is_dir(&e) {
                    kind_error("a directory")
                } else {
                    open_error(e)
                }
            })?;
        let metadata = file.metadata().map_err(open_error)?;
        let kind = metadata.file_type();
        let size = if kind.is_file() {
            metadata.len()
        } else if kind.is_block_device() {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
                .map_err(|e| open_error(e.into()))?
        } else if kind.is_dir() {
            return Err(kind_error("a directory"));
        } else {
            return Err(kind_error("neither a file nor a block device"));
        };
        // Only opening must not block. Left on, some kernels fail every transfer with EAGAIN.
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|e| open_error(e.into()))?;
        rustix::fs::fcntl_setfl(&file, flags - rustix::fs::OFlags::NONBLOCK)
            .map_err(|e| open_error(e.into()))?;
        let (block_size, memory_align) = if options.direct {
            direct_alignment(&file)
        } else if kind.is_block_device() {
            let logical = rustix::fs::ioctl_blksszget(&file).unwrap_or(SECTOR as u32);
            (logical.max(SECTOR as u32), 1)
        } else {
            (SECTOR as u32, 1)
        };
        let size_error = |problem| DiskError::Size {
            path: path.to_owned(),
            size,
            problem,
        };
        if size < SECTOR {
            return Err(size_error("too small for one sector of 512"));
        }
        if !size.is_multiple_of(block_size.into()) {
            return Err(size_error("not a whole number of blocks"));
        }
        if !try_lock(&file, !options.readonly).map_err(open_error)? {
            return Err(DiskError::Locked {
                path: path.to_owned(),
            });
        }
        Ok(Disk {
            file,
            size,
            readonly: options.readonly,
            block_size,
            memory_align,
        })
    }
}

/// What O_DIRECT demands of this file: (offset and length, address).
fn direct_alignment(file: &File) -> (u32, u32) {
    // Linux before 6.1, and file systems that don't say, get the block size that nearly all take.
    const SAFE: (u32, u32) = (4096, 4096);
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(x) if x.stx_dio_offset_align != 0 => (
            x.stx_dio_offset_align.max(SECTOR as u32),
            x.stx_dio_mem_align.max(1),
        ),
        _ => SAFE,
    }
}

/// Locks the whole file for as long as its description is open. An open-file-description lock:
/// it conflicts with those of QEMU and Cloud Hypervisor, and ends with the process, however that
/// dies. False if somebody else holds it.
fn try_lock(file: &File, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive {
        libc::F_WRLCK
    } else {
        libc::F_RDLCK
    };
    // SAFETY: flock is plain data, for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open and `lock` is a valid flock.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        e => Err(e),
    }
}
