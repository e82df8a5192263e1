//! Which parts of a disk were written: a bit for each granule, set from any thread without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// A map of dirty granules. Takes one bit a granule: 128 KiB for 64 GiB by 64 KiB.
#[derive(Debug)]
pub struct DirtyMap {
    bits: Box<[AtomicU64]>,
    granularity_bits: u32,
    size: u64,
}

impl DirtyMap {
    /// A clean map of a disk of `size` bytes with granules of `1 << granularity_bits`.
    pub fn new(size: u64, granularity_bits: u32) -> DirtyMap {
        let granules = size.div_ceil(1 << granularity_bits);
        DirtyMap {
            bits: (0..granules.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            granularity_bits,
            size,
        }
    }

    /// Bytes of a granule.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn granules(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return 0..0;
        }
        offset >> self.granularity_bits..end.div_ceil(self.granularity())
    }

    /// Marks what a write touched.
    pub fn mark(&self, offset: u64, len: u64) {
        for granule in self.granules(offset, len) {
            let (word, bit) = (&self.bits[(granule / 64) as usize], 1 << (granule % 64));
            // Nearly always it is set already.
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// Whether anything of a range is dirty.
    pub fn intersects(&self, offset: u64, len: u64) -> bool {
        self.granules(offset, len).any(|g| self.get(g))
    }

    fn get(&self, granule: u64) -> bool {
        self.bits[(granule / 64) as usize].load(Ordering::Acquire) >> (granule % 64) & 1 != 0
    }

    /// Cleans the granule at an offset; whether it was dirty.
    pub fn take(&self, offset: u64) -> bool {
        let granule = offset >> self.granularity_bits;
        let Some(word) = self.bits.get((granule / 64) as usize) else {
            return false;
        };
        let bit = 1 << (granule % 64);
        word.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Cleans everything.
    pub fn clear(&self) {
        for word in &self.bits {
            word.store(0, Ordering::Release);
        }
    }

    /// Dirty bytes, by granules.
    pub fn dirty(&self) -> u64 {
        let ones = self
            .bits
            .iter()
            .map(|w| u64::from(w.load(Ordering::Acquire).count_ones()));
        ones.sum::<u64>() << self.granularity_bits
    }

    /// The offset of the first dirty granule at or after `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        let first = from.div_ceil(self.granularity());
        let mut word = (first / 64) as usize;
        let mut mask = u64::MAX << (first % 64);
        while let Some(bits) = self.bits.get(word) {
            let found = bits.load(Ordering::Acquire) & mask;
            if found != 0 {
                let granule = word as u64 * 64 + u64::from(found.trailing_zeros());
                return Some(granule << self.granularity_bits);
            }
            word += 1;
            mask = u64::MAX;
        }
        None
    }

    /// Marks here what is dirty there. Granules may differ.
    pub fn merge(&self, other: &DirtyMap) {
        let mut from = 0;
        while let Some(at) = other.next(from) {
            self.mark(at, other.granularity());
            from = at + other.granularity();
        }
    }
}

#[cfg(test)]
#[path = "dirty_test.rs"]
mod tests;
