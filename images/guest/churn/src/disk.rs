//! A disk past the page cache, and memory that such requests may use.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::load::Wrong;
use crate::pattern::BLOCK;

/// Linux's O_DIRECT on x86-64.
const DIRECT: i32 = 0o40000;

/// A disk, or a file in tests.
pub struct Disk {
    file: File,
}

impl Disk {
    /// Opens it, past the page cache if `direct`.
    pub fn open(path: &Path, direct: bool) -> Result<Self, Wrong> {
        let flags = if direct { DIRECT } else { 0 };
        let mut options = File::options();
        options.read(true).write(true).custom_flags(flags);
        let file = options
            .open(path)
            .map_err(|error| Wrong::Other(format!("open {}: {error}", path.display())))?;
        Ok(Self { file })
    }

    /// Its size now, in bytes.
    pub fn size(&self) -> Result<u64, Wrong> {
        let end = (&self.file).seek(SeekFrom::End(0));
        end.map_err(|error| Wrong::Other(format!("size: {error}")))
    }

    /// Reads whole blocks.
    pub fn read(&self, bytes: &mut [u8], first: u64) -> Result<(), Wrong> {
        let offset = first * BLOCK as u64;
        let done = self.file.read_exact_at(bytes, offset);
        done.map_err(|error| Wrong::Request("read", offset, error))
    }

    /// Writes whole blocks.
    pub fn write(&self, bytes: &[u8], first: u64) -> Result<(), Wrong> {
        let offset = first * BLOCK as u64;
        let done = self.file.write_all_at(bytes, offset);
        done.map_err(|error| Wrong::Request("write", offset, error))
    }

    /// Makes what was written last.
    pub fn flush(&self) -> Result<(), Wrong> {
        let done = self.file.sync_data();
        done.map_err(|error| Wrong::Request("flush", 0, error))
    }
}

/// Memory for whole blocks, aligned as requests past the page cache want it.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// Room for so many blocks.
    pub fn new(blocks: usize) -> Self {
        let memory = vec![0; (blocks + 1) * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start }
    }

    /// The first `blocks` blocks of it.
    pub fn blocks(&mut self, blocks: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + blocks * BLOCK]
    }
}
