//! RAM as a snapshot sees it: one range of bytes, its regions one behind the other.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use skerry_devices::memory::GuestRam;
use skerry_snapshot::{Range, coalesce};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::dirty::{self, DirtyTracker, TrackError};
use super::raw::{self, Piece};

/// What RAM is made of.
#[derive(Clone)]
enum Backing {
    /// A memfd, which other processes can share.
    Shared,
    /// Private mappings of a snapshot's files, which have data in these ranges.
    Private(Arc<[Range]>),
}

/// A machine's RAM.
#[derive(Clone)]
pub struct Ram {
    guest: GuestRam,
    backing: Backing,
}

impl Ram {
    /// RAM in a memfd.
    pub(super) fn shared(guest: GuestRam) -> Ram {
        Ram {
            guest,
            backing: Backing::Shared,
        }
    }

    /// RAM mapped from files with data in `ranges`.
    pub(super) fn private(guest: GuestRam, ranges: Vec<Range>) -> Ram {
        Ram {
            guest,
            backing: Backing::Private(ranges.into()),
        }
    }

    /// As devices see it.
    pub fn guest(&self) -> &GuestRam {
        &self.guest
    }

    /// It was restored lazily: whatever this process wrote is its own copy.
    pub fn is_private(&self) -> bool {
        matches!(self.backing, Backing::Private(_))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.guest.memory().iter().map(|region| region.len()).sum()
    }

    /// The regions, each with its place in the whole.
    pub(super) fn pieces(&self) -> Vec<(u64, Piece)> {
        let mut base = 0;
        let mut pieces = Vec::new();
        for region in self.guest.memory().iter() {
            // The first address of a region is inside it.
            if let Ok(host) = region.get_host_address(MemoryRegionAddress(0)) {
                let len = region.len() as usize;
                pieces.push((base, Piece { host, len }));
            }
            base += region.len();
        }
        pieces
    }

    /// Host memory of a range, which may be in several pieces, and where each is in the whole.
    fn parts(&self, range: Range) -> Vec<(u64, Piece)> {
        let mut parts = Vec::new();
        for (base, piece) in self.pieces() {
            let start = range.start.max(base);
            let end = range.end().min(base + piece.len as u64);
            if start < end {
                let part = Piece {
                    host: piece.host.wrapping_add((start - base) as usize),
                    len: (end - start) as usize,
                };
                parts.push((start, part));
            }
        }
        parts
    }

    /// Writes ranges to a file, each to its place.
    pub fn write_to(&self, file: &File, ranges: &[Range]) -> io::Result<()> {
        for (at, part) in ranges.iter().flat_map(|range| self.parts(*range)) {
            raw::write_at(file, part, at)?;
        }
        Ok(())
    }

    /// Copies a range into a buffer, which becomes as long. The guest may change it meanwhile.
    pub fn copy_out(&self, range: Range, buffer: &mut Vec<u8>) {
        buffer.resize(range.len as usize, 0);
        for (at, part) in self.parts(range) {
            let into = &mut buffer[(at - range.start) as usize..][..part.len];
            raw::copy_out(part, into);
        }
    }

    /// Copies a buffer over a range of the same length.
    pub fn copy_in(&self, range: Range, buffer: &[u8]) {
        for (at, part) in self.parts(range) {
            let from = &buffer[(at - range.start) as usize..][..part.len];
            raw::copy_in(from, part);
        }
    }

    /// Reads ranges from a file, each from its place.
    pub(super) fn read_from(&self, file: &File, ranges: &[Range]) -> io::Result<()> {
        for (at, part) in ranges.iter().flat_map(|range| self.parts(*range)) {
            raw::read_at(file, part, at)?;
        }
        Ok(())
    }

    /// Maps ranges of a file privately over RAM that nobody uses yet.
    pub(super) fn map_from(&self, file: &File, ranges: &[Range]) -> io::Result<()> {
        for (at, part) in ranges.iter().flat_map(|range| self.parts(*range)) {
            raw::map_over(file, part, at)?;
        }
        Ok(())
    }

    /// What may be other than zero. `tracker` tracks its writes, if somebody does.
    pub fn populated(&self, tracker: Option<&DirtyTracker>) -> Result<Vec<Range>, TrackError> {
        match &self.backing {
            Backing::Shared => Ok(self.data()),
            Backing::Private(ranges) => {
                let mut all = self.copied(tracker)?;
                all.extend_from_slice(ranges);
                Ok(coalesce(all))
            }
        }
    }

    /// What was written since a lazy restore.
    pub fn copied(&self, tracker: Option<&DirtyTracker>) -> Result<Vec<Range>, TrackError> {
        match tracker {
            Some(tracker) => Ok(tracker.copied().to_vec()),
            None => dirty::copied(self).map(coalesce),
        }
    }

    /// What this process has touched since it was restored.
    pub fn touched(&self) -> Result<Vec<Range>, TrackError> {
        dirty::present(self).map(coalesce)
    }

    /// Lets ranges of RAM that is mapped from files come in now.
    pub(super) fn populate(&self, ranges: &[Range]) -> io::Result<()> {
        for (_, part) in ranges.iter().flat_map(|range| self.parts(*range)) {
            raw::populate(part)?;
        }
        Ok(())
    }

    /// The memfd's pages that exist. What cannot be told counts as existing.
    fn data(&self) -> Vec<Range> {
        let mut ranges = Vec::new();
        let mut base = 0;
        for region in self.guest.memory().iter() {
            let whole = Range {
                start: base,
                len: region.len(),
            };
            base += region.len();
            match region.file_offset() {
                Some(at) => match holes(at.file(), at.start(), region.len()) {
                    Ok(found) => ranges.extend(found.into_iter().map(|(start, len)| Range {
                        start: whole.start + start,
                        len,
                    })),
                    Err(_) => ranges.push(whole),
                },
                None => ranges.push(whole),
            }
        }
        coalesce(ranges)
    }
}

/// Where a part of a file has data: offsets in the part, and lengths, in whole pages.
fn holes(file: &File, start: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let end = start + len;
    let mut found = Vec::new();
    let mut at = start;
    while at < end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        if data >= end {
            break;
        }
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(end);
        found.push((data - start, hole - data));
        at = hole;
    }
    Ok(found)
}
