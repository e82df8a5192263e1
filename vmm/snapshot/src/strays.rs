//! Data where a memory file should have none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::{Range, SnapshotError, Watch, error, watch};

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;

/// The first byte outside of `ranges` that is not zero. Holes are not read.
pub(crate) fn first(
    file: &File,
    path: &Path,
    ranges: &[Range],
    watch: &dyn Watch,
) -> Result<Option<u64>, SnapshotError> {
    let failed = error::io("read", path);
    let size = file.metadata().map_err(&failed)?.len();
    let starts = ranges.iter().map(|range| range.start).chain([size]);
    let ends = [0].into_iter().chain(ranges.iter().map(Range::end));
    let mut buffer = Vec::new();
    for (mut at, end) in ends.zip(starts) {
        while let Some((start, len)) = data(file, at, end).map_err(&failed)? {
            buffer.resize(len as usize, 0);
            file.read_exact_at(&mut buffer, start).map_err(&failed)?;
            if let Some(place) = buffer.iter().position(|byte| *byte != 0) {
                return Ok(Some(start + place as u64));
            }
            at = start + len;
            watch::step(watch, 0)?;
        }
    }
    Ok(None)
}

/// The first piece between two places that is no hole: where, and how long.
fn data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < end => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let hole = seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, hole.min(end).min(start + PIECE) - start)))
}
