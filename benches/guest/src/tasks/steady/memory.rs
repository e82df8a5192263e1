//! Memory keeps its content: pages of RAM in generations with a sum over them, and a page of the program itself.

use core::sync::atomic::{AtomicU64, Ordering};

use super::SEED;
use crate::line::{Failure, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::pattern;
use crate::{failure, say};

const PAGE: usize = 4096;
const PAGE_WORDS: u64 = PAGE as u64 / 8;

/// Between the seeds of two generations.
const STEP: u64 = 0xd1b5_4a32_d192_ed03;

/// A generation's seed.
fn seed_of(generation: u64) -> u64 {
    SEED.wrapping_add(generation.wrapping_mul(STEP))
}

/// Pages of RAM, each with its own generation.
pub struct Pages {
    content: Dma,
    /// The generation of each.
    table: Dma,
    /// Of all generations, kept up to date.
    pub sum: u64,
    /// The next page of the sliding window.
    next: u64,
}

impl Pages {
    /// Allocates the pages and gives each its first generation.
    pub fn new(machine: &mut Machine, bytes: usize) -> Outcome<Self> {
        let content = machine.memory.allocate(bytes, PAGE as u64)?;
        let table = machine.memory.allocate(bytes / PAGE * 4, PAGE as u64)?;
        let mut pages = Self {
            content,
            table,
            sum: 0,
            next: 0,
        };
        for page in 0..pages.count() {
            pages.fill(page, 1);
        }
        pages.sum = pages.sum_of_table();
        Ok(pages)
    }

    /// How many pages there are.
    pub fn count(&self) -> u64 {
        (self.content.size() / PAGE) as u64
    }

    fn generation(&self, page: u64) -> u32 {
        self.table.read(page as usize * 4)
    }

    fn words(&self, page: u64) -> &'static mut [u64] {
        let memory = self.content.part(page as usize * PAGE, PAGE);
        // SAFETY: no device knows the pages, and one slice at a time is in use.
        unsafe { memory.words() }
    }

    fn word(page: u64, generation: u32, index: u64) -> u64 {
        pattern(seed_of(generation.into()), page * PAGE_WORDS + index)
    }

    /// What a page's generation adds to the sum.
    fn share(page: u64, generation: u32) -> u64 {
        pattern(page, generation.into())
    }

    fn sum_of_table(&self) -> u64 {
        (0..self.count())
            .map(|page| Self::share(page, self.generation(page)))
            .fold(0, u64::wrapping_add)
    }

    fn fill(&self, page: u64, generation: u32) {
        for (word, index) in self.words(page).iter_mut().zip(0..) {
            *word = Self::word(page, generation, index);
        }
        self.table.write(page as usize * 4, generation);
    }

    /// Compares a page with its generation.
    fn verify(&self, page: u64) -> Outcome {
        let generation = self.generation(page);
        let words = self.words(page);
        let is_right = |(word, index): (&u64, u64)| *word == Self::word(page, generation, index);
        match words.iter().zip(0..).all(is_right) {
            true => Ok(()),
            false => Err(Self::mismatch(words, page, generation)),
        }
    }

    /// Says where a page differs, and which generation it holds instead.
    fn mismatch(words: &[u64], page: u64, generation: u32) -> Failure {
        let wrong = || {
            words
                .iter()
                .zip(0..)
                .filter(|(word, index)| **word != Self::word(page, generation, *index))
        };
        let (found, index) = wrong()
            .next()
            .map_or((0, 0), |(word, index)| (*word, index));
        let origin = (0..=generation + 1).rfind(|other| Self::word(page, *other, index) == found);
        say!(
            "# steady: page={page} wrong_words={} first={index} last={} generation={generation} found={origin:?}",
            wrong().count(),
            wrong().last().map_or(index, |(_, index)| index)
        );
        failure!(
            "page-differs page={page} word={index} found={found:#x} expected={:#x}",
            Self::word(page, generation, index)
        )
    }

    /// Checks a page and gives it its next generation.
    pub fn rewrite(&mut self, page: u64) -> Outcome {
        self.verify(page)?;
        let generation = self.generation(page);
        let next = generation.wrapping_add(1);
        self.fill(page, next);
        self.sum = self
            .sum
            .wrapping_sub(Self::share(page, generation))
            .wrapping_add(Self::share(page, next));
        Ok(())
    }

    /// Checks so many pages further on.
    pub fn verify_window(&mut self, count: u64) -> Outcome {
        for _ in 0..count {
            self.verify(self.next)?;
            self.next = (self.next + 1) % self.count();
        }
        Ok(())
    }

    /// Compares the generations with their sum.
    pub fn verify_table(&self) -> Outcome {
        let found = self.sum_of_table();
        if found != self.sum {
            return Err(failure!(
                "table-differs found={found:#x} expected={:#x}",
                self.sum
            ));
        }
        Ok(())
    }
}

/// A page of the program's own memory.
static WORDS: [AtomicU64; PAGE_WORDS as usize] = [const { AtomicU64::new(0) }; PAGE_WORDS as usize];

/// The generation of [`WORDS`].
pub struct Words {
    generation: u64,
}

impl Words {
    /// Fills the words with their first generation.
    pub fn new() -> Self {
        let words = Self { generation: 0 };
        words.fill();
        words
    }

    fn word(&self, index: usize) -> u64 {
        !pattern(seed_of(self.generation), index as u64)
    }

    fn fill(&self) {
        for (index, word) in WORDS.iter().enumerate() {
            word.store(self.word(index), Ordering::Relaxed);
        }
    }

    /// Compares the words with their generation.
    pub fn verify(&self) -> Outcome {
        for (index, word) in WORDS.iter().enumerate() {
            let (found, expected) = (word.load(Ordering::Relaxed), self.word(index));
            if found != expected {
                return Err(failure!(
                    "words-differ word={index} found={found:#x} expected={expected:#x}"
                ));
            }
        }
        Ok(())
    }

    /// Checks the words and gives them their next generation.
    pub fn rewrite(&mut self) -> Outcome {
        self.verify()?;
        self.generation += 1;
        self.fill();
        Ok(())
    }
}
