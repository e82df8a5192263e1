//! What every 4 KiB block of a disk should hold: the generation that was written last, zeroes, or what a discard
//! leaves open.

use crate::failure;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::pattern;
use crate::say;
use crate::virtio::blk::SECTOR;

/// The unit of the table.
pub const BLOCK: u64 = 4096;
/// Sectors in it.
pub const BLOCK_SECTORS: u64 = BLOCK / SECTOR;
const BLOCK_WORDS: u64 = BLOCK / 8;

/// A request on the block is in flight.
const BUSY: u32 = 1 << 31;
/// The block was discarded: zeroes are as good as what it held.
const EITHER: u32 = 1 << 30;
const GENERATION: u32 = EITHER - 1;
/// Zeroes were written.
const ZEROES: u32 = GENERATION;
/// Nothing was written yet.
const FRESH: u32 = 0;
/// The last generation with a pattern.
pub const LAST: u32 = ZEROES - 1;

/// What blocks hold that were not written yet.
#[derive(Clone, Copy)]
pub enum Fresh {
    /// Anything: it isn't compared.
    Unknown,
    /// Zeroes.
    Zero,
    /// What `blk-verify` with this seed has written.
    Pattern(u64),
}

/// The blocks of a disk, from its start.
pub struct Blocks {
    seed: u64,
    fresh: Fresh,
    table: Dma,
    /// The generation written last.
    generation: u32,
}

impl Blocks {
    /// A table of `count` blocks that were not written yet.
    pub fn new(machine: &mut Machine, seed: u64, fresh: Fresh, count: u64) -> Outcome<Self> {
        Ok(Self {
            seed,
            fresh,
            table: machine.memory.allocate(count as usize * 4, 64)?,
            generation: 0,
        })
    }

    /// Number of blocks.
    pub fn count(&self) -> u64 {
        self.table.size() as u64 / 4
    }

    fn state(&self, block: u64) -> u32 {
        self.table.read(block as usize * 4)
    }

    fn each(&self, first: u64, count: u64, change: impl Fn(u32) -> u32) {
        for block in first..first + count {
            self.table
                .write(block as usize * 4, change(self.state(block)));
        }
    }

    /// How many of `count` blocks from `first` have no request in flight, up to the first that has one.
    pub fn idle(&self, first: u64, count: u64) -> u64 {
        let blocks = first..(first + count).min(self.count());
        let length = blocks.end - blocks.start;
        blocks
            .zip(0..)
            .find(|(block, _)| self.state(*block) & BUSY != 0)
            .map_or(length, |(_, before)| before)
    }

    /// Marks blocks as being in flight.
    pub fn begin(&self, first: u64, count: u64) {
        self.each(first, count, |state| state | BUSY);
    }

    /// Gives blocks back that are as they were.
    pub fn end(&self, first: u64, count: u64) {
        self.each(first, count, |state| state & !BUSY);
    }

    /// Gives blocks back that hold a generation now.
    pub fn end_written(&self, first: u64, count: u64, generation: u32) {
        self.each(first, count, |_| generation);
    }

    /// Gives blocks back that hold zeroes now.
    pub fn end_zeroed(&self, first: u64, count: u64) {
        self.each(first, count, |_| ZEROES);
    }

    /// Gives blocks back that hold zeroes or what they held.
    pub fn end_discarded(&self, first: u64, count: u64) {
        self.each(first, count, |state| state & !BUSY | EITHER);
    }

    /// Begins the next generation and fills a buffer with it, for blocks from `first`.
    pub fn fill(&mut self, words: &mut [u64], first: u64) -> Outcome<u32> {
        if self.generation == LAST {
            return Err(failure!("out-of-generations"));
        }
        self.generation += 1;
        for (word, index) in words.iter_mut().zip(first * BLOCK_WORDS..) {
            *word = self.word(self.generation, index);
        }
        Ok(self.generation)
    }

    /// A generation's word at a disk's offset `8 * index`.
    fn word(&self, generation: u32, index: u64) -> u64 {
        const STEP: u64 = 0xd1b5_4a32_d192_ed03;
        let seed = self
            .seed
            .wrapping_add(u64::from(generation).wrapping_mul(STEP));
        pattern(seed, index)
    }

    /// What a word should be; none if it may be anything.
    fn expected(&self, state: u32, index: u64) -> Option<u64> {
        match (state & GENERATION, self.fresh) {
            (FRESH, Fresh::Unknown) => None,
            (FRESH, Fresh::Zero) | (ZEROES, _) => Some(0),
            (FRESH, Fresh::Pattern(seed)) => Some(pattern(seed, index)),
            (generation, _) => Some(self.word(generation, index)),
        }
    }

    /// Compares what was read from blocks at `first`. Blocks whose content is unknown pass.
    pub fn compare(&self, words: &[u64], first: u64) -> Outcome {
        for (content, block) in words.chunks(BLOCK_WORDS as usize).zip(first..) {
            let state = self.state(block);
            let start = block * BLOCK_WORDS;
            let zero = state & EITHER != 0 && content.iter().all(|word| *word == 0);
            let is_wrong = |(word, index): (&u64, u64)| {
                self.expected(state, index)
                    .is_some_and(|expected| *word != expected)
            };
            if zero || !content.iter().zip(start..).any(is_wrong) {
                continue;
            }
            return Err(self.mismatch(content, block));
        }
        Ok(())
    }

    /// Says where a block differs, and what it holds instead.
    fn mismatch(&self, content: &[u64], block: u64) -> crate::line::Failure {
        let state = self.state(block);
        let start = block * BLOCK_WORDS;
        let wrong = || {
            content.iter().zip(start..).filter(|(word, index)| {
                self.expected(state, *index)
                    .is_some_and(|expected| **word != expected)
            })
        };
        let (found, index) = wrong()
            .next()
            .map_or((0, start), |(word, index)| (*word, index));
        let last = wrong().last().map_or(start, |(_, index)| index);
        say!(
            "# blocks: block={block:#x} wrong_words={} first={} last={} either={}",
            wrong().count(),
            index - start,
            last - start,
            state & EITHER != 0
        );
        failure!(
            "mismatch offset={:#x} found={found:#x}({}) expected={:#x}({})",
            index * 8,
            self.origin(found, index),
            self.expected(state, index).unwrap_or(0),
            Name(state & GENERATION)
        )
    }

    /// The generation that a word belongs to.
    fn origin(&self, found: u64, index: u64) -> Name {
        const UNKNOWN: Name = Name(u32::MAX);
        if found == 0 {
            return Name(ZEROES);
        }
        if self.expected(FRESH, index) == Some(found) {
            return Name(FRESH);
        }
        (1..=self.generation)
            .rev()
            .find(|generation| self.word(*generation, index) == found)
            .map_or(UNKNOWN, Name)
    }
}

/// A generation in a message.
struct Name(u32);

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        match self.0 {
            FRESH => f.write_str("fresh"),
            ZEROES => f.write_str("zeroes"),
            1..=LAST => write!(f, "generation-{}", self.0),
            _ => f.write_str("no-generation"),
        }
    }
}
