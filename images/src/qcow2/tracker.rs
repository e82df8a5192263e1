//! A dirty bitmap in memory.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Marks what changes on a disk. It takes one bit for each `granularity` bytes of the disk (16 MiB for
/// 8 TiB at the usual 64 KiB), all of it from the start. Any thread may mark; a mark is seen by
/// whoever looks after the write that it belongs to has ended.
#[derive(Debug)]
pub struct Tracker {
    pub(super) name: Vec<u8>,
    pub(super) granularity_bits: u32,
    /// It goes on tracking when the image is opened the next time.
    pub(super) auto: bool,
    size: u64,
    words: Vec<AtomicU64>,
}

impl Tracker {
    pub(super) fn new(name: Vec<u8>, granularity_bits: u32, auto: bool, size: u64) -> Tracker {
        let mut tracker = Tracker {
            name,
            granularity_bits,
            auto,
            size,
            words: Vec::new(),
        };
        let words = tracker.bits().div_ceil(64) as usize;
        tracker.words.resize_with(words, AtomicU64::default);
        tracker
    }

    /// Bytes that a bitmap for a disk of `size` bytes has.
    pub(super) fn bytes_for(size: u64, granularity_bits: u32) -> u64 {
        size.div_ceil(1 << granularity_bits).div_ceil(8)
    }

    fn bits(&self) -> u64 {
        self.size.div_ceil(1 << self.granularity_bits)
    }

    /// The bitmap's name.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// Bytes of the disk for each bit.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Notes that the guest changed a range. What lies beyond the disk's end is ignored.
    pub fn mark(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return;
        }
        let (first, last) = (
            offset >> self.granularity_bits,
            (end - 1) >> self.granularity_bits,
        );
        for word in first / 64..=last / 64 {
            let from = first.max(word * 64) % 64;
            let to = last.min(word * 64 + 63) % 64;
            let mask = u64::MAX << from & u64::MAX >> (63 - to);
            self.words[word as usize].fetch_or(mask, Ordering::Release);
        }
    }

    /// What changed, in bytes: ranges in order that do not touch.
    pub fn dirty(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut bit = 0;
        std::iter::from_fn(move || {
            let first = self.find(bit, true)?;
            let end = self.find(first, false).unwrap_or(self.bits());
            bit = end;
            let bytes = |bit: u64| (bit << self.granularity_bits).min(self.size);
            Some(bytes(first)..bytes(end))
        })
    }

    /// The next bit from `bit` on that is set, or is not.
    fn find(&self, bit: u64, set: bool) -> Option<u64> {
        let bits = self.bits();
        let mut word = bit / 64;
        let mut mask = u64::MAX << (bit % 64);
        while word * 64 < bits {
            let value = self.words[word as usize].load(Ordering::Acquire);
            let hits = if set { value } else { !value } & mask;
            if hits != 0 {
                let found = word * 64 + u64::from(hits.trailing_zeros());
                return (found < bits).then_some(found);
            }
            mask = u64::MAX;
            word += 1;
        }
        None
    }

    /// Bytes that changed, in whole granules.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty().map(|r| r.end - r.start).sum()
    }

    /// From here on nothing has changed.
    pub fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Release);
        }
    }

    /// The disk has another size. What is new has not changed.
    pub fn resize(&mut self, size: u64) {
        self.size = size;
        let bits = self.bits();
        self.words
            .resize_with(bits.div_ceil(64) as usize, AtomicU64::default);
        self.trim();
    }

    /// Clears what lies beyond the end.
    fn trim(&mut self) {
        let rest = self.bits() % 64;
        if rest != 0
            && let Some(last) = self.words.last_mut()
        {
            *last.get_mut() &= (1 << rest) - 1;
        }
    }

    /// Sets bits from their form in the file, from byte `at` of the bitmap.
    pub(super) fn fill(&mut self, at: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate().filter(|(_, b)| **b != 0) {
            let bit = (at + i as u64) * 8;
            if let Some(word) = self.words.get_mut((bit / 64) as usize) {
                *word.get_mut() |= u64::from(*byte) << (bit % 64);
            }
        }
        self.trim();
    }

    /// The form in the file of `bytes.len()` bytes from byte `at`: the lowest bit of a byte is the
    /// first.
    pub(super) fn copy_to(&self, at: u64, bytes: &mut [u8]) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            let bit = (at + i as u64) * 8;
            let word = self.words.get((bit / 64) as usize);
            *byte = word.map_or(0, |w| (w.load(Ordering::Acquire) >> (bit % 64)) as u8);
        }
    }
}

#[cfg(test)]
#[path = "tracker_test.rs"]
mod tests;
