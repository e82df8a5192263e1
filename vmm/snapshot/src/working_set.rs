//! What a guest needs at first: recorded once, fetched before every later restore resumes.

use std::io::{ErrorKind, Read, Write};

use serde::{Deserialize, Serialize};

use crate::error::io;
use crate::{Directory, Range, SnapshotError, open};

const FILE: &str = "working-set";
/// Bounds what a hostile file can make us read.
const MAX_FILE: u64 = 64 << 20;
const PAGE: u64 = 4096;

/// The recorded working set of a snapshot, beside its other files.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// The snapshot's id.
    snapshot: String,
    /// Start and length of ranges of RAM, in bytes.
    ranges: Vec<(u64, u64)>,
}

impl WorkingSet {
    /// Writes it, in place of one that was there.
    pub fn write(directory: &Directory, id: &str, ranges: &[Range]) -> Result<(), SnapshotError> {
        let set = WorkingSet {
            snapshot: id.to_owned(),
            ranges: ranges.iter().map(|r| (r.start, r.len)).collect(),
        };
        let path = directory.path().join(FILE);
        let new = directory.path().join("working-set.new");
        let bytes = serde_json::to_vec(&set).unwrap_or_default();
        let written = || {
            let mut file = std::fs::File::create(&new)?;
            file.write_all(&bytes)?;
            std::fs::rename(&new, &path)
        };
        written().map_err(io("write", &path))
    }

    /// Reads it, if there is one. It is only a hint: one of another snapshot is none.
    pub fn read(
        directory: &Directory,
        id: &str,
        size: u64,
    ) -> Result<Option<Vec<Range>>, SnapshotError> {
        let path = directory.path().join(FILE);
        let failed = io("read", &path);
        let file = match open::regular(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
            Ok(None) => return Err(failed(ErrorKind::InvalidData.into())),
            Ok(Some(file)) => file,
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
        read.map_err(&failed)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(failed(ErrorKind::FileTooLarge.into()));
        }
        let set: WorkingSet = serde_json::from_slice(&bytes)
            .map_err(|e| failed(std::io::Error::new(ErrorKind::InvalidData, e)))?;
        let whole = |(start, len): &(u64, u64)| {
            let end = start.checked_add(*len);
            let pages = start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && *len > 0;
            pages && end.is_some_and(|end| end <= size)
        };
        // In whatever order they were asked for, but no more of them than there is.
        let lens = set.ranges.iter().map(|(_, len)| *len);
        let bounded = lens.fold(0, u64::saturating_add) <= size;
        if set.snapshot != id || !bounded || !set.ranges.iter().all(whole) {
            return Ok(None);
        }
        let range = |(start, len)| Range { start, len };
        Ok(Some(set.ranges.into_iter().map(range).collect()))
    }
}

#[cfg(test)]
#[path = "working_set_test.rs"]
mod tests;
