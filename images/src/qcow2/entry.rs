//! L2 entries (qcow2 specification, "L2 table entry" and "Extended L2 Entries").

use super::geometry::{Geometry, SUBCLUSTERS};

/// The cluster's refcount is exactly one: it may be written in place. Also in L1 entries.
pub const COPIED: u64 = 1 << 63;
/// The cluster is compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (not in extended entries).
pub const ZERO: u64 = 1;
/// The host offset in an L1 or L2 entry.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What a stretch of the guest's disk is in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this offset of the layer's data file.
    Data(u64),
    /// Zeroes, whatever is below.
    Zero,
    /// Whatever the layer below says.
    Hole,
    /// Compressed data at this offset, at most so many bytes.
    Compressed(u64, u64),
}

/// A place and how many bytes of the guest's disk it holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where the first byte is.
    pub place: Place,
    /// For how many bytes that goes on.
    pub len: u64,
}

/// One L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// The offset and its flags.
    pub word: u64,
    /// Extended entries: allocated subclusters in the low half, zero ones in the high half.
    pub bitmap: u64,
}

impl Entry {
    /// Reads entry `index` of a slice.
    #[inline]
    pub fn read(slice: &[u8], geometry: &Geometry, index: u64) -> Entry {
        let at = (index * geometry.l2_entry()) as usize;
        let word = |at: usize| match slice.get(at..at + 8).map(TryInto::try_into) {
            Some(Ok(bytes)) => u64::from_be_bytes(bytes),
            _ => 0,
        };
        Entry {
            word: word(at),
            bitmap: if geometry.extended { word(at + 8) } else { 0 },
        }
    }

    /// Stores the entry as `index` of a slice.
    pub fn store(self, slice: &mut [u8], geometry: &Geometry, index: u64) {
        let at = (index * geometry.l2_entry()) as usize;
        if let Some(place) = slice.get_mut(at..at + 8) {
            place.copy_from_slice(&self.word.to_be_bytes());
        }
        if geometry.extended
            && let Some(place) = slice.get_mut(at + 8..at + 16)
        {
            place.copy_from_slice(&self.bitmap.to_be_bytes());
        }
    }

    /// The cluster is compressed.
    pub fn compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// The host cluster, if there is one. With an external data file, offset 0 is a place too.
    pub fn host(self, external: bool) -> Option<u64> {
        let offset = self.word & OFFSET;
        let some = offset != 0 || external && self.word & COPIED != 0;
        (!self.compressed() && some).then_some(offset)
    }

    /// The host cluster may be written in place.
    pub fn copied(self) -> bool {
        self.word & COPIED != 0
    }

    /// Allocated subclusters.
    pub fn allocated(self) -> u32 {
        self.bitmap as u32
    }

    /// Subclusters that read as zeroes.
    pub fn zeroed(self) -> u32 {
        (self.bitmap >> 32) as u32
    }

    /// With other subcluster bits.
    pub fn with_bits(self, allocated: u32, zeroed: u32) -> Entry {
        Entry {
            bitmap: u64::from(zeroed) << 32 | u64::from(allocated),
            ..self
        }
    }

    /// Offset and length in bytes of compressed data, from the descriptor. The length is that of the
    /// sectors that it touches.
    pub fn compressed_place(self, geometry: &Geometry) -> (u64, u64) {
        let bits = 62 - (geometry.cluster_bits - 8);
        let offset = self.word & ((1 << bits) - 1);
        let sectors = ((self.word & !(COPIED | COMPRESSED)) >> bits) + 1;
        (offset, sectors * 512 - (offset & 511))
    }

    /// A descriptor of `len` bytes of compressed data at `offset`; none if it cannot be expressed.
    pub fn for_compressed(geometry: &Geometry, offset: u64, len: u64) -> Option<Entry> {
        let bits = 62 - (geometry.cluster_bits - 8);
        let sectors = (offset + len - 1) / 512 - offset / 512;
        (offset < 1 << bits && sectors < 1 << (geometry.cluster_bits - 8)).then_some(Entry {
            word: COMPRESSED | sectors << bits | offset,
            bitmap: 0,
        })
    }

    /// The host clusters that the entry refers to: the first and how many.
    pub fn references(self, geometry: &Geometry, external: bool) -> Option<(u64, u64)> {
        if self.compressed() {
            let (offset, len) = self.compressed_place(geometry);
            let first = offset >> geometry.cluster_bits;
            let last = (offset + len - 1) >> geometry.cluster_bits;
            Some((first, last - first + 1))
        } else if external {
            None
        } else {
            self.host(false).map(|h| (h >> geometry.cluster_bits, 1))
        }
    }

    /// What the entry says of subcluster `sub` (0 in standard entries), without an offset into it.
    pub fn place(self, geometry: &Geometry, external: bool, sub: u32) -> Place {
        if self.compressed() {
            let (offset, len) = self.compressed_place(geometry);
            return Place::Compressed(offset, len);
        }
        let host = self.host(external);
        if geometry.extended {
            let bit = 1 << sub;
            return match host {
                Some(host) if self.allocated() & bit != 0 => {
                    Place::Data(host + u64::from(sub) * geometry.unit())
                }
                _ if self.zeroed() & bit != 0 => Place::Zero,
                _ => Place::Hole,
            };
        }
        match host {
            _ if self.word & ZERO != 0 => Place::Zero,
            Some(host) => Place::Data(host),
            None => Place::Hole,
        }
    }

    /// What is wrong with the entry, if anything.
    pub fn defect(self, geometry: &Geometry, version: u32, external: bool) -> Option<&'static str> {
        if self.compressed() {
            if external {
                return Some("is compressed, in an image with an external data file");
            }
            return None;
        }
        if !(self.word & OFFSET).is_multiple_of(geometry.cluster()) {
            return Some("is not at a cluster's start");
        }
        if geometry.extended {
            if self.allocated() & self.zeroed() != 0 {
                return Some("has subclusters both allocated and zero");
            }
            if self.allocated() != 0 && self.host(external).is_none() {
                return Some("has allocated subclusters without a cluster");
            }
        } else if version < 3 && self.word & ZERO != 0 {
            return Some("has the zero flag, which version 2 lacks");
        }
        None
    }
}

/// Bits of the subclusters from `first` to before `end`.
pub fn mask(first: u32, end: u32) -> u32 {
    let below = |n: u32| {
        if n >= SUBCLUSTERS {
            u32::MAX
        } else {
            (1 << n) - 1
        }
    };
    below(end) & !below(first)
}
