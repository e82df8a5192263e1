//! Seeded numbers: what a block holds after a round wrote it, and choices that can be repeated.

/// The unit of everything here.
pub const BLOCK: usize = 4096;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer.
const fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The eight bytes (little endian) at offset `8 * index` of a disk, as a round writes them.
fn word(round: u32, index: u64) -> u64 {
    mix(mix(round.into()).wrapping_add(index.wrapping_mul(GOLDEN)))
}

fn words(block: u64) -> std::ops::RangeFrom<u64> {
    block * (BLOCK / 8) as u64..
}

/// Fills blocks from `first` as a round writes them.
pub fn fill(bytes: &mut [u8], round: u32, first: u64) {
    for (chunk, index) in bytes.chunks_exact_mut(8).zip(words(first)) {
        chunk.copy_from_slice(&word(round, index).to_le_bytes());
    }
}

/// The byte offset in a block where it differs from what a round wrote.
pub fn difference(bytes: &[u8], round: u32, block: u64) -> Option<usize> {
    let mut words = bytes.chunks_exact(8).zip(words(block));
    words
        .position(|(chunk, index)| chunk != word(round, index).to_le_bytes())
        .map(|place| place * 8)
}

/// The latest round up to `last` that would have written the eight bytes at `offset` of a block.
pub fn origin(bytes: &[u8], offset: usize, last: u32, block: u64) -> Option<u32> {
    let index = words(block).start + offset as u64 / 8;
    let found = bytes.get(offset..offset + 8)?;
    (1..=last)
        .rev()
        .find(|round| word(*round, index).to_le_bytes() == found)
}

/// A sum of bytes: not for others to compute, but quick.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum ^ u64::from_le_bytes(word)).wrapping_add(GOLDEN)
    })
}

/// FNV-1a, 64 bits: the sum that is reported.
pub struct Fnv(pub u64);

impl Fnv {
    /// Of no bytes.
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    /// A number below `bound`, which isn't 0. Its bias doesn't matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0) % bound
    }
}
