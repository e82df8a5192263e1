//! Which parts of a disk were written: a bit for each granule, set from any thread without a lock.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A map of dirty granules. It takes one bit a granule, all of it from the start: 128 KiB for 64 GiB
/// by 64 KiB. A mark is seen by whoever looks after the write that it belongs to has ended.
#[derive(Debug)]
pub struct DirtyMap {
    words: Box<[AtomicU64]>,
    granularity_bits: u32,
    size: u64,
}

impl DirtyMap {
    /// A clean map of a disk of `size` bytes with granules of `1 << granularity_bits`.
    pub fn new(size: u64, granularity_bits: u32) -> DirtyMap {
        let words = size.div_ceil(1 << granularity_bits).div_ceil(64);
        DirtyMap {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            granularity_bits,
            size,
        }
    }

    /// The same for a disk of another size. What is new there is clean.
    pub fn resized(&self, size: u64) -> DirtyMap {
        let map = DirtyMap::new(size, self.granularity_bits);
        map.merge(self);
        map
    }

    /// Bytes of a granule.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn granules(&self) -> u64 {
        self.size.div_ceil(self.granularity())
    }

    /// The words of a range, each with the bits of it that belong to the range.
    fn masks(&self, offset: u64, len: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let end = offset.saturating_add(len).min(self.size);
        let (first, behind) = if offset < end {
            (
                offset >> self.granularity_bits,
                end.div_ceil(self.granularity()),
            )
        } else {
            (0, 0)
        };
        (first / 64..behind.div_ceil(64)).map(move |word| {
            let from = first.max(word * 64) - word * 64;
            let to = behind.min(word * 64 + 64) - word * 64;
            let mask = u64::MAX << from & u64::MAX >> (64 - to);
            (&self.words[word as usize], mask)
        })
    }

    /// Marks what a write touched. What lies beyond the disk's end is ignored.
    #[inline]
    pub fn mark(&self, offset: u64, len: u64) {
        for (word, mask) in self.masks(offset, len) {
            // Nearly always it is set already.
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::AcqRel);
            }
        }
    }

    /// Whether anything of a range is dirty.
    pub fn intersects(&self, offset: u64, len: u64) -> bool {
        self.masks(offset, len)
            .any(|(word, mask)| word.load(Ordering::Acquire) & mask != 0)
    }

    /// Cleans the granule at an offset; whether it was dirty.
    pub fn take(&self, offset: u64) -> bool {
        self.masks(offset, 1)
            .any(|(word, mask)| word.fetch_and(!mask, Ordering::AcqRel) & mask != 0)
    }

    /// Cleans everything.
    pub fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Release);
        }
    }

    /// The next granule from `granule` on that is dirty, or (`set` false) is not.
    fn find(&self, granule: u64, set: bool) -> Option<u64> {
        let mut word = granule / 64;
        let mut mask = u64::MAX << (granule % 64);
        while let Some(bits) = self.words.get(word as usize) {
            let bits = bits.load(Ordering::Acquire);
            let hits = if set { bits } else { !bits } & mask;
            if hits != 0 {
                let found = word * 64 + u64::from(hits.trailing_zeros());
                return (found < self.granules()).then_some(found);
            }
            mask = u64::MAX;
            word += 1;
        }
        None
    }

    /// The offset of the first dirty granule that begins at or after `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        let found = self.find(from.div_ceil(self.granularity()), true)?;
        Some(found << self.granularity_bits)
    }

    /// What is dirty, in bytes: ranges in order that do not touch.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut granule = 0;
        std::iter::from_fn(move || {
            let first = self.find(granule, true)?;
            granule = self.find(first, false).unwrap_or(self.granules());
            let bytes = |granule: u64| (granule << self.granularity_bits).min(self.size);
            Some(bytes(first)..bytes(granule))
        })
    }

    /// Dirty bytes, by whole granules.
    pub fn dirty(&self) -> u64 {
        let ones = |w: &AtomicU64| u64::from(w.load(Ordering::Acquire).count_ones());
        self.words.iter().map(ones).sum::<u64>() << self.granularity_bits
    }

    /// Marks here what is dirty there. Granules may differ.
    pub fn merge(&self, other: &DirtyMap) {
        for range in other.ranges() {
            self.mark(range.start, range.end - range.start);
        }
    }

    /// Sets bits from their form in a file, from byte `at` of the map: the lowest bit of a byte is
    /// the first.
    pub fn fill(&self, at: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate().filter(|(_, b)| **b != 0) {
            let granule = (at + i as u64) * 8;
            let behind = self.granules().saturating_sub(granule).min(8);
            let bits = u64::from(*byte) & ((1 << behind) - 1);
            if let Some(word) = self.words.get((granule / 64) as usize) {
                word.fetch_or(bits << (granule % 64), Ordering::AcqRel);
            }
        }
    }

    /// The form in a file of `bytes.len()` bytes from byte `at`.
    pub fn copy_to(&self, at: u64, bytes: &mut [u8]) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            let granule = (at + i as u64) * 8;
            let word = self.words.get((granule / 64) as usize);
            *byte = word.map_or(0, |w| (w.load(Ordering::Acquire) >> (granule % 64)) as u8);
        }
    }
}

#[cfg(test)]
#[path = "dirty_test.rs"]
mod tests;
