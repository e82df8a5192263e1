//! Memory under the same load: what every page should hold is known, and part of it is written anew each round.

use crate::load::Wrong;
use crate::pattern::{self, BLOCK, Random};

/// Pages under the load: 8 MiB.
const PAGES: usize = 2048;
/// Pages that a round writes, and as many that it looks at.
const PER_ROUND: usize = 64;
/// Where its pages lie for the pattern: beyond every disk, so that no page is ever what a block is.
const FIRST: u64 = 1 << 40;

/// Pages, and the round that wrote each of them last.
pub struct Memory {
    bytes: Vec<u8>,
    written: Vec<u32>,
    random: Random,
}

impl Memory {
    /// All pages as round 0 writes them.
    pub fn new() -> Self {
        let mut bytes = vec![0; PAGES * BLOCK];
        for (page, number) in bytes.chunks_exact_mut(BLOCK).zip(FIRST..) {
            pattern::fill(page, 0, number);
        }
        Self {
            bytes,
            written: vec![0; PAGES],
            random: Random(FIRST),
        }
    }

    /// Looks at some pages and writes others.
    pub fn round(&mut self, round: u32) -> Result<(), Wrong> {
        for _ in 0..PER_ROUND {
            let page = self.random.below(PAGES as u64) as usize;
            self.check(page)?;
            let page = self.random.below(PAGES as u64) as usize;
            self.check(page)?;
            let bytes = &mut self.bytes[page * BLOCK..][..BLOCK];
            pattern::fill(bytes, round, FIRST + page as u64);
            self.written[page] = round;
        }
        Ok(())
    }

    /// Looks at all pages.
    pub fn verify(&self) -> Result<(), Wrong> {
        (0..PAGES).try_for_each(|page| self.check(page))
    }

    fn check(&self, page: usize) -> Result<(), Wrong> {
        let (bytes, round) = (&self.bytes[page * BLOCK..][..BLOCK], self.written[page]);
        let number = FIRST + page as u64;
        let Some(place) = pattern::difference(bytes, round, number) else {
            return Ok(());
        };
        let found = match pattern::origin(bytes, place, round, number) {
            Some(other) => format!("round {other}"),
            None => format!("{:02x?}", &bytes[place..place + 8]),
        };
        Err(Wrong::Other(format!(
            "memory page={page} place={place} found={found} expected=round {round}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_finds_what_the_rounds_before_wrote() {
        let mut memory = Memory::new();
        for round in 1..=20 {
            memory.round(round).expect("all as it should be");
        }
        memory.verify().expect("all as it should be");
        assert!(memory.written.contains(&0) && memory.written.contains(&20));
    }

    #[test]
    fn a_byte_that_changed_is_found() {
        let mut memory = Memory::new();
        memory.bytes[3 * BLOCK + 100] ^= 1;
        let wrong = memory.verify().expect_err("a wrong byte").to_string();
        assert!(wrong.contains("page=3 place=96"), "{wrong}");
    }

    #[test]
    fn an_old_page_is_told_by_name() {
        let mut memory = Memory::new();
        let old = memory.bytes[..BLOCK].to_vec();
        pattern::fill(&mut memory.bytes[..BLOCK], 1, FIRST);
        memory.written[0] = 1;
        memory.verify().expect("all as it should be");
        memory.bytes[..BLOCK].copy_from_slice(&old);
        let wrong = memory.verify().expect_err("an old page").to_string();
        assert!(wrong.ends_with("expected=round 1"), "{wrong}");
    }
}
