//! Checksums of a memory file, a chunk each.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::io;
use crate::{Range, SnapshotError, Watch, watch};

/// Bytes that one checksum is of.
pub const CHUNK: u64 = 1 << 20;

/// The chunks that sorted ranges touch, and their bytes, in a file of `size` bytes.
pub(crate) fn chunks(ranges: &[Range], size: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut next = 0;
    ranges.iter().flat_map(move |range| {
        // Two ranges may touch the same one.
        let first = next.max(range.start / CHUNK);
        next = range.end().div_ceil(CHUNK);
        (first..next).map(move |chunk| (chunk, CHUNK.min(size - chunk * CHUNK)))
    })
}

/// Of the chunks that have data, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sums(Vec<(u64, [u8; 32])>);

impl Sums {
    /// Reads the chunks that `ranges` touch.
    pub fn of(
        file: &File,
        path: &Path,
        ranges: &[Range],
        watch: &dyn Watch,
    ) -> Result<Sums, SnapshotError> {
        let size = file.metadata().map_err(io("look at", path))?.len();
        let mut sums: Vec<(u64, [u8; 32])> = Vec::new();
        let mut buffer = vec![0; CHUNK as usize];
        for (chunk, len) in chunks(ranges, size) {
            let bytes = &mut buffer[..len as usize];
            let read = file.read_exact_at(bytes, chunk * CHUNK);
            read.map_err(io("read", path))?;
            sums.push((chunk, *blake3::hash(bytes).as_bytes()));
            watch::step(watch, len)?;
        }
        Ok(Sums(sums))
    }

    /// As they are kept: the chunk's number, then its sum.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 40);
        for (chunk, sum) in &self.0 {
            bytes.extend(chunk.to_le_bytes());
            bytes.extend(sum);
        }
        bytes
    }

    /// None unless they are in order and of a file of `size` bytes.
    pub fn parse(bytes: &[u8], size: u64) -> Option<Sums> {
        let (entries, rest) = bytes.as_chunks::<40>();
        let mut sums: Vec<(u64, [u8; 32])> = Vec::with_capacity(entries.len());
        for entry in entries {
            let (chunk, sum) = entry.split_at(8);
            let chunk = u64::from_le_bytes(chunk.try_into().ok()?);
            let inside = chunk.checked_mul(CHUNK)? < size;
            if !inside || sums.last().is_some_and(|(before, _)| *before >= chunk) {
                return None;
            }
            sums.push((chunk, sum.try_into().ok()?));
        }
        rest.is_empty().then_some(Sums(sums))
    }

    /// The first chunk that differs, or that only one has.
    pub fn first_difference(&self, other: &Sums) -> Option<u64> {
        let pairs = self.0.iter().zip(&other.0);
        let differs = pairs.clone().find(|(a, b)| a != b);
        let longer = self.0.get(other.0.len()).or(other.0.get(self.0.len()));
        differs.map(|(a, b)| a.0.min(b.0)).or(longer.map(|l| l.0))
    }
}
