//! The memory file: which ranges of RAM it has, and their checksums.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::io;
use crate::sums::{self, Sums, chunks};
use crate::{MemoryFacts, MemoryKind, Record, Records, SnapshotError, State, Watch, open, strays};

const RANGES: &str = "memory-ranges";
const SUMS: &str = "memory-sums";
const VERSION: u32 = 1;
/// Guest pages are what ranges are made of.
const PAGE: u64 = 4096;

/// A range of RAM, in bytes from the start of its first region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes, more than none.
    pub len: u64,
}

impl Range {
    /// The first byte behind it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Sorts ranges and joins those that touch.
pub fn coalesce(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end() => {
                last.len = last.end().max(range.end()) - last.start;
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// A memory file of a snapshot.
pub struct MemoryFile {
    path: PathBuf,
    file: File,
    facts: MemoryFacts,
    ranges: Vec<Range>,
    sums: Sums,
}

impl MemoryFile {
    /// Takes the memory's records from `state` and opens the file.
    pub fn open(state: &mut State, path: &Path) -> Result<MemoryFile, SnapshotError> {
        let corrupt = |what: &str| SnapshotError::Corrupt {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let facts = state.header().memory.clone();
        let file = open::regular(path).map_err(io("open", path))?;
        let file = file.ok_or_else(|| corrupt("it is no regular file"))?;
        let found = file.metadata().map_err(io("look at", path))?;
        if found.len() != facts.size {
            return Err(corrupt(&format!(
                "it has {} bytes instead of {}",
                found.len(),
                facts.size
            )));
        }
        let mut record = |kind| match state.take(kind, "") {
            Some((VERSION, bytes)) => Ok(bytes.to_vec()),
            Some(_) => Err(corrupt("its records are of another version")),
            None => Err(corrupt("its records are missing")),
        };
        let ranges = parse_ranges(&record(RANGES)?, &facts).ok_or_else(|| {
            corrupt("its list of ranges is out of order, or leads beyond its end")
        })?;
        let sums = Sums::parse(&record(SUMS)?, facts.size)
            .ok_or_else(|| corrupt("its list of checksums is malformed"))?;
        Ok(MemoryFile {
            path: path.to_owned(),
            file,
            facts,
            ranges,
            sums,
        })
    }

    /// Records what is in a memory file: its ranges, sorted and apart from each other, and their
    /// checksums, for which the file is read.
    pub fn record(
        records: &mut Records,
        path: &Path,
        file: &File,
        ranges: &[Range],
    ) -> Result<(), SnapshotError> {
        Self::record_watched(records, path, file, ranges, &())
    }

    /// As [`record`](Self::record), followed by `watch`.
    pub(crate) fn record_watched(
        records: &mut Records,
        path: &Path,
        file: &File,
        ranges: &[Range],
        watch: &dyn Watch,
    ) -> Result<(), SnapshotError> {
        let word = |range: &Range| [range.start.to_le_bytes(), range.len.to_le_bytes()];
        let bytes: Vec<u8> = ranges.iter().flat_map(word).flatten().collect();
        records.put(RANGES, "", VERSION, &bytes);
        let sums = Sums::of(file, path, ranges, watch)?;
        records.put(SUMS, "", VERSION, &sums.bytes());
        Ok(())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What it has, sorted, in whole pages.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Bytes that checksums are of: those of all chunks that its ranges touch.
    pub fn summed(&self) -> u64 {
        chunks(&self.ranges, self.facts.size)
            .map(|(_, len)| len)
            .sum()
    }

    /// Reads all of it and compares the checksums. What no range of a full snapshot lists must be zero:
    /// a guest whose memory is mapped from the file would see it.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        self.verify_watched(&())
    }

    /// As [`verify`](Self::verify), followed by `watch`: [`summed`](Self::summed) bytes.
    pub fn verify_watched(&self, watch: &dyn Watch) -> Result<(), SnapshotError> {
        let corrupt = |what: String| SnapshotError::Corrupt {
            path: self.path.clone(),
            what,
        };
        let found = Sums::of(&self.file, &self.path, &self.ranges, watch)?;
        if let Some(chunk) = found.first_difference(&self.sums) {
            return Err(corrupt(format!(
                "the checksum of its {} bytes from {:#x} on is wrong",
                sums::CHUNK,
                chunk * sums::CHUNK
            )));
        }
        if self.facts.kind == MemoryKind::Diff {
            return Ok(());
        }
        match strays::first(&self.file, &self.path, &self.ranges, watch)? {
            None => Ok(()),
            Some(at) => Err(corrupt(format!(
                "it has data at {at:#x}, where its list of ranges says that there is none"
            ))),
        }
    }
}

/// Whether a record tells of a memory file.
pub(crate) fn is_record(record: &Record) -> bool {
    record.kind == RANGES || record.kind == SUMS
}

/// None unless they are whole pages, in order, apart, inside the file, and as many bytes as is said.
fn parse_ranges(bytes: &[u8], facts: &MemoryFacts) -> Option<Vec<Range>> {
    let (pairs, rest) = bytes.as_chunks::<16>();
    let mut ranges = Vec::with_capacity(pairs.len());
    let (mut end, mut data) = (0, 0);
    for pair in pairs {
        let (start, len) = pair.split_at(8);
        let start = u64::from_le_bytes(start.try_into().ok()?);
        let len = u64::from_le_bytes(len.try_into().ok()?);
        let good = start >= end && len > 0 && start % PAGE == 0 && len % PAGE == 0;
        end = start
            .checked_add(len)
            .filter(|end| good && *end <= facts.size)?;
        data += len;
        ranges.push(Range { start, len });
    }
    (rest.is_empty() && data == facts.data).then_some(ranges)
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
