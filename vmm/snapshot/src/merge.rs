//! Makes one full snapshot of a diff and what it builds on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;

use crate::sums::chunks;
use crate::{
    Chain, Directory, MemoryFile, MemoryKind, Partial, Range, Records, SnapshotError, Watch,
    coalesce, error, watch,
};

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

/// Writes the full snapshot `target` that is equal to `source` with its parents. These stay as they are.
/// Everything is checked on the way; `watch` follows that.
///
/// It has the same id as `source`: what builds on the one can as well build on the other.
pub fn merge(source: &Directory, target: &Path, watch: &dyn Watch) -> Result<(), SnapshotError> {
    let mut chain = Chain::open(source)?;
    let mut header = chain.state.header().clone();
    let size = header.memory.size;
    let partial = Partial::create(target)?;
    let memory = partial.create_memory(size)?;
    let path = partial.directory().memory();
    let layers = chain.memory.iter().flat_map(MemoryFile::ranges).copied();
    let ranges = coalesce(layers.clone().collect());
    let copied: u64 = layers.map(|range| range.len).sum();
    let recorded: u64 = chunks(&ranges, size).map(|(_, len)| len).sum();
    watch.expect(chain.summed() + copied + recorded);
    chain.verify_watched(watch)?;
    for layer in &chain.memory {
        for range in layer.ranges() {
            copy(layer.file(), &memory, &path, *range, watch)?;
        }
    }
    // Those of the memory are taken already: the new file has its own.
    let mut records = Records::left_of(&mut chain.state);
    MemoryFile::record_watched(&mut records, &path, &memory, &ranges, watch)?;
    header.memory.kind = MemoryKind::Full;
    header.memory.data = ranges.iter().map(|range| range.len).sum();
    header.parent = None;
    partial.complete(records, header)
}

/// Copies a range from one file to the same place of another, which is at `path`.
fn copy(
    from: &File,
    to: &File,
    path: &Path,
    range: Range,
    watch: &dyn Watch,
) -> Result<(), SnapshotError> {
    let mut at = range.start;
    while at < range.end() {
        let copied = copy_piece(from, to, at, PIECE.min(range.end() - at));
        let copied = copied.map_err(error::io("write", path))?;
        at += copied;
        watch::step(watch, copied)?;
    }
    Ok(())
}

/// Copies up to `len` bytes, at least one.
fn copy_piece(from: &File, to: &File, at: u64, len: u64) -> io::Result<u64> {
    let (mut source, mut target) = (at, at);
    let (source, target) = (Some(&mut source), Some(&mut target));
    match rustix::fs::copy_file_range(from, source, to, target, len as usize) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(copied) => Ok(copied as u64),
        Err(Errno::INTR) => copy_piece(from, to, at, len),
        // From one file system to another, or within one that has no way to.
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
            let mut piece = vec![0; len as usize];
            from.read_exact_at(&mut piece, at)?;
            to.write_all_at(&piece, at)?;
            Ok(len)
        }
        Err(e) => Err(e.into()),
    }
}
