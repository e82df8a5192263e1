//! What a disk image starts from: the kernel and the initramfs that a boot loader of its own would load.
//!
//! They are looked for in the file systems (ext2 to ext4) of its partitions. Every byte of an image is its maker's, and
//! the library that reads the file systems holds on to what it has checked by assertions: a process that is to live on
//! lets another one look.

mod partition;

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use self::partition::{Partition, partitions};

/// Bytes of the largest kernel.
const KERNEL: u64 = 256 << 20;
/// Bytes of the largest initramfs.
const INITRAMFS: u64 = 1 << 30;
/// Files of a folder that are looked at.
const FILES: usize = 4096;
/// Block groups of the largest file system: 128 TiB of the usual size.
const GROUPS: u64 = 1 << 20;

/// Why an image cannot be started without being given a kernel.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It cannot be read.
    #[error("the image cannot be read")]
    Read(#[from] io::Error),
    /// No partition has a root file system that can be read.
    #[error(
        "the image has no partition with an ext4 file system that has /etc/os-release, so its kernel is not found: give a kernel"
    )]
    NoRoot,
    /// There is a root file system without a kernel.
    #[error("the image has no /boot/vmlinuz-VERSION: give a kernel")]
    NoKernel,
    /// Its file system is damaged, or has something that is unknown.
    #[error("the image's file system cannot be read: give a kernel")]
    FileSystem(#[from] Ext4Error),
    /// A file is larger than such a file can be.
    #[error("{path} of the image has {size} bytes, and at most {limit} can be: give a kernel")]
    TooLong {
        /// The file.
        path: String,
        /// Its bytes.
        size: u64,
        /// How many there may be.
        limit: u64,
    },
}

/// What an image starts from.
pub struct Found {
    fs: Ext4,
    kernel: String,
    initramfs: Option<String>,
    /// The number of the partition with the root file system; none if the disk is that.
    pub partition: Option<u32>,
}

/// Looks for it in a disk as its guest sees it.
///
/// # Errors
/// If the image has no Linux, or none that can be read here.
pub fn find(disk: File) -> Result<Found, BootError> {
    let (disk, mut others) = (Arc::new(disk), Vec::new());
    let mut root = None;
    let mut damaged = None;
    for partition in partitions(&disk)? {
        match open(&disk, &partition) {
            Ok(Some(fs)) if root.is_none() && is_root(&fs) => root = Some((fs, partition.number)),
            Ok(Some(fs)) => others.push(fs),
            Ok(None) => {}
            Err(e) => damaged = Some(e),
        }
    }
    let Some((root, partition)) = root else {
        return Err(damaged.unwrap_or(BootError::NoRoot));
    };
    // A partition of its own for /boot is common, too.
    let places = [(&root, "/boot"), (&root, "/")].into_iter();
    let places = places.chain(others.iter().map(|fs| (fs, "/")));
    for (fs, folder) in places {
        let names = names(fs, folder);
        if let Some((kernel, initramfs)) = newest(&names) {
            let path = |name: &str| format!("{}/{name}", folder.trim_end_matches('/'));
            return Ok(Found {
                kernel: path(kernel),
                initramfs: initramfs.map(path),
                fs: fs.clone(),
                partition,
            });
        }
    }
    Err(BootError::NoKernel)
}

impl Found {
    /// Whether there is an initramfs.
    pub fn has_initramfs(&self) -> bool {
        self.initramfs.is_some()
    }

    /// Where the kernel is, in its file system.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Copies the kernel.
    ///
    /// # Errors
    /// If it is too large, or cannot be read or written.
    pub fn copy_kernel(&self, to: &File) -> Result<(), BootError> {
        self.copy(&self.kernel, KERNEL, to)
    }

    /// Copies the initramfs, if there is one.
    ///
    /// # Errors
    /// If it is too large, or cannot be read or written.
    pub fn copy_initramfs(&self, to: &File) -> Result<(), BootError> {
        match &self.initramfs {
            Some(path) => self.copy(path, INITRAMFS, to),
            None => Ok(()),
        }
    }

    fn copy(&self, path: &str, limit: u64, mut to: &File) -> Result<(), BootError> {
        let mut file = self.fs.open(path)?;
        let size = file.metadata().len();
        if size > limit {
            let path = path.to_owned();
            return Err(BootError::TooLong { path, size, limit });
        }
        let mut buffer = vec![0; 1 << 20];
        loop {
            let mut filled = 0;
            // It gives a block at a time.
            while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
                match file.read_bytes(room)? {
                    0 => break,
                    n => filled += n,
                }
            }
            match buffer.get(..filled) {
                Some(bytes) if filled > 0 => to.write_all(bytes)?,
                _ => return Ok(()),
            }
        }
    }
}

/// A partition as a file system's library reads it.
struct Window {
    disk: Arc<File>,
    start: u64,
    len: u64,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = at.checked_add(bytes.len() as u64);
        match end.is_some_and(|end| end <= self.len) {
            true => Ok(self.disk.read_exact_at(bytes, self.start + at)?),
            false => Err("it goes beyond its partition".into()),
        }
    }
}

/// The file system of a partition; none if it is of another kind.
fn open(disk: &Arc<File>, partition: &Partition) -> Result<Option<Ext4>, BootError> {
    let mut window = Window {
        disk: disk.clone(),
        start: partition.start,
        len: partition.len,
    };
    // The kernel's Documentation/filesystems/ext4/super.rst.
    let mut superblock = [0; 1024];
    if window.read(1024, &mut superblock).is_err() || superblock[0x38..0x3a] != [0x53, 0xef] {
        return Ok(None);
    }
    let word = |at: usize| {
        let bytes = superblock.get(at..at + 4).and_then(|b| b.try_into().ok());
        u64::from(u32::from_le_bytes(bytes.unwrap_or_default()))
    };
    // The library makes room for as many groups as are said to be.
    let (blocks, shift) = (word(0x4) | word(0x150) << 32, word(0x18).min(6));
    let groups = blocks / word(0x20).max(1);
    if groups > GROUPS || blocks > partition.len >> (10 + shift) {
        let why = "a file system of it is larger than its partition";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why).into());
    }
    Ok(Some(Ext4::load(Box::new(window))?))
}

fn is_root(fs: &Ext4) -> bool {
    ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .any(|path| fs.exists(*path).unwrap_or(false))
}

/// The names in a folder, which may not be there.
fn names(fs: &Ext4, folder: &str) -> Vec<String> {
    let Ok(entries) = fs.read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.take(FILES).map_while(Result::ok);
    let names = names.filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned));
    names.collect()
}

/// The newest kernel, and the initramfs that belongs to it.
fn newest(names: &[String]) -> Option<(&str, Option<&str>)> {
    let version = |name: &str| {
        let of = name.strip_prefix("vmlinuz-");
        let of = of.or_else(|| name.strip_prefix("vmlinux-"));
        of.filter(|v| !v.contains("rescue")).map(str::to_owned)
    };
    let versions = names.iter().filter_map(|name| Some((version(name)?, name)));
    let newest = versions.max_by(|(a, _), (b, _)| compare(a, b));
    let (version, kernel) = match newest {
        Some((version, kernel)) => (format!("-{version}"), kernel),
        None => (String::new(), names.iter().find(|name| *name == "vmlinuz")?),
    };
    let known = [
        format!("initrd.img{version}"),
        format!("initramfs{version}.img"),
        format!("initramfs{version}"),
        format!("initrd{version}"),
    ];
    let of = known
        .iter()
        .find_map(|known| names.iter().find(|name| *name == known));
    Some((kernel, of.map(String::as_str)))
}

/// Compares versions: numbers by their value, everything else as text.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let digits = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_digit()).count();
        match (digits(a), digits(b)) {
            (0, _) | (_, 0) => match (a.split_first(), b.split_first()) {
                (Some((x, rest_a)), Some((y, rest_b))) if x == y => (a, b) = (rest_a, rest_b),
                _ => return a.cmp(b),
            },
            (m, n) => {
                let ((x, rest_a), (y, rest_b)) = (a.split_at(m), b.split_at(n));
                let plain = |digits: &[u8]| {
                    let zeroes = digits.iter().take_while(|c| **c == b'0').count();
                    digits.len() - zeroes
                };
                let (long_x, long_y) = (plain(x), plain(y));
                let by_value = long_x.cmp(&long_y);
                let by_value = by_value.then_with(|| x[m - long_x..].cmp(&y[n - long_y..]));
                if by_value.is_ne() {
                    return by_value;
                }
                (a, b) = (rest_a, rest_b);
            }
        }
    }
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod tests;
