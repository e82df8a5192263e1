//! The load: what every block should hold, rounds of writes and checks, and the check of everything.

use std::fmt;
use std::io;

use crate::disk::{Buffer, Disk};
use crate::pattern::{self, BLOCK, Fnv, Random};

/// Requests in flight.
const THREADS: usize = 4;
/// Extents that each thread writes in a round.
const EXTENTS: usize = 2;
/// The most blocks of an extent.
const EXTENT_BLOCKS: u64 = 32;

/// What a block should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// What this round wrote.
    Written(u32),
    /// What was there before, by its digest.
    Found(u64),
}

/// Why the load cannot go on.
#[derive(Debug)]
pub enum Wrong {
    /// A block holds something else: the offset of the first wrong word, what it is, what it should be.
    Content(u64, String, String),
    /// A request failed: what it was, its offset, the system's words.
    Request(&'static str, u64, io::Error),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Wrong::Content(offset, found, expected) => {
                write!(f, "offset={offset:#x} found={found} expected={expected}")
            }
            Wrong::Request(what, offset, error) => write!(f, "{what} offset={offset:#x}: {error}"),
            Wrong::Other(text) => f.write_str(text),
        }
    }
}

/// The load on one disk.
pub struct Load<'a> {
    disk: &'a Disk,
    blocks: Vec<Block>,
    size: u64,
    rounds: u32,
    bytes: u64,
    found: u64,
}

impl<'a> Load<'a> {
    /// Looks at all that is there.
    pub fn new(disk: &'a Disk) -> Result<Self, Wrong> {
        let mut sum = Fnv::new();
        let mut load = Self {
            disk,
            blocks: Vec::new(),
            size: disk.size()?,
            rounds: 0,
            bytes: 0,
            found: 0,
        };
        load.extend(|_, content| {
            sum.add(content);
            Ok(Block::Found(pattern::digest(content)))
        })?;
        load.found = sum.0;
        if load.blocks.len() < THREADS {
            return Err(Wrong::Other(format!("the disk has {} bytes", load.size)));
        }
        Ok(load)
    }

    /// FNV-1a of what was there at first.
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Rounds so far.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes in what the disk has gained, which must be zero, and says its new size if there is any.
    pub fn grow(&mut self) -> Result<Option<u64>, Wrong> {
        let size = self.disk.size()?;
        if size < self.size {
            return Err(Wrong::Other(format!(
                "the disk shrank from {} to {size} bytes",
                self.size
            )));
        }
        if size == self.size {
            return Ok(None);
        }
        self.size = size;
        self.extend(|block, content| {
            if let Some(place) = content.iter().position(|byte| *byte != 0) {
                let offset = block * BLOCK as u64 + place as u64;
                let found = format!("{:#04x}", content[place]);
                return Err(Wrong::Content(offset, found, "a new part's zeroes".into()));
            }
            Ok(Block::Found(pattern::digest(content)))
        })?;
        Ok(Some(size))
    }

    /// Reads the blocks that are not in the table yet.
    fn extend(
        &mut self,
        mut judge: impl FnMut(u64, &[u8]) -> Result<Block, Wrong>,
    ) -> Result<(), Wrong> {
        let end = self.size / BLOCK as u64;
        let mut buffer = Buffer::new(EXTENT_BLOCKS as usize);
        while (self.blocks.len() as u64) < end {
            let first = self.blocks.len() as u64;
            let bytes = buffer.blocks((end - first).min(EXTENT_BLOCKS) as usize);
            self.disk.read(bytes, first)?;
            for (content, block) in bytes.chunks(BLOCK).zip(first..) {
                self.blocks.push(judge(block, content)?);
            }
        }
        Ok(())
    }

    /// Writes, flushes, reads back: every thread in its own part of the disk.
    pub fn round(&mut self) -> Result<(), Wrong> {
        self.rounds += 1;
        let (disk, round) = (self.disk, self.rounds);
        let share = self.blocks.len().div_ceil(THREADS);
        let written = std::thread::scope(|scope| {
            let parts = self.blocks.chunks_mut(share).zip(0u64..);
            let threads: Vec<_> = parts
                .map(|(blocks, number)| {
                    let part = Part {
                        disk,
                        round,
                        first: number * share as u64,
                        random: Random(u64::from(round) << 8 | number),
                        blocks,
                    };
                    scope.spawn(move || part.run())
                })
                .collect();
            // All of them end before any of them is judged.
            let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            ends.into_iter()
                .map(|end| end.unwrap_or_else(|_| Err(Wrong::Other("a thread panicked".into()))))
                .sum::<Result<u64, Wrong>>()
        })?;
        self.bytes += written;
        Ok(())
    }

    /// Reads and compares everything; gives the FNV-1a sum of the whole disk.
    pub fn verify(&self) -> Result<u64, Wrong> {
        self.disk.flush()?;
        let mut sum = Fnv::new();
        let mut buffer = Buffer::new(EXTENT_BLOCKS as usize);
        for (number, blocks) in self.blocks.chunks(EXTENT_BLOCKS as usize).enumerate() {
            let first = number as u64 * EXTENT_BLOCKS;
            let bytes = buffer.blocks(blocks.len());
            self.disk.read(bytes, first)?;
            compare(bytes, blocks, first, self.rounds)?;
            sum.add(bytes);
        }
        Ok(sum.0)
    }
}

/// A thread's part of the disk in one round.
struct Part<'a> {
    disk: &'a Disk,
    round: u32,
    /// The number of its first block.
    first: u64,
    blocks: &'a mut [Block],
    random: Random,
}

impl Part<'_> {
    /// A place in the part, and how many blocks.
    fn extent(&mut self) -> (usize, usize) {
        let length = self.blocks.len() as u64;
        let start = self.random.below(length);
        let count = self.random.below(EXTENT_BLOCKS) + 1;
        (start as usize, count.min(length - start) as usize)
    }

    /// Gives the number of bytes written.
    fn run(mut self) -> Result<u64, Wrong> {
        let mut buffer = Buffer::new(EXTENT_BLOCKS as usize);
        let mut written = 0;
        let extents: [(usize, usize); EXTENTS] = std::array::from_fn(|_| self.extent());
        for (start, count) in extents {
            let first = self.first + start as u64;
            let bytes = buffer.blocks(count);
            pattern::fill(bytes, self.round, first);
            self.disk.write(bytes, first)?;
            self.blocks[start..start + count].fill(Block::Written(self.round));
            written += (count * BLOCK) as u64;
        }
        self.disk.flush()?;
        let others: [(usize, usize); EXTENTS] = std::array::from_fn(|_| self.extent());
        for (start, count) in extents.into_iter().chain(others) {
            let first = self.first + start as u64;
            let bytes = buffer.blocks(count);
            bytes.fill(0xa5);
            self.disk.read(bytes, first)?;
            compare(bytes, &self.blocks[start..start + count], first, self.round)?;
        }
        Ok(written)
    }
}

/// Compares what was read from blocks at `first`.
fn compare(bytes: &[u8], blocks: &[Block], first: u64, last: u32) -> Result<(), Wrong> {
    for ((content, expected), block) in bytes.chunks(BLOCK).zip(blocks).zip(first..) {
        let (place, wanted) = match *expected {
            Block::Written(round) => match pattern::difference(content, round, block) {
                None => continue,
                Some(place) => (place, format!("round {round}")),
            },
            Block::Found(digest) if pattern::digest(content) == digest => continue,
            Block::Found(_) => (0, "what was there at first".into()),
        };
        let found = match pattern::origin(content, place, last, block) {
            Some(round) => format!("round {round}"),
            None => format!("{:02x?}", &content[place..place + 8]),
        };
        return Err(Wrong::Content(
            block * BLOCK as u64 + place as u64,
            found,
            wanted,
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let content: Vec<u8> = (0..SIZE).map(|place| (place / 7) as u8).collect();
        file.as_file().write_all_at(&content, 0).expect("written");
        file
    }

    fn rounds(load: &mut Load, count: u32) {
        for _ in 0..count {
            load.round().expect("a round");
        }
    }

    #[test]
    fn what_was_written_and_what_was_there_is_found_again() {
        let file = file();
        let disk = Disk::open(file.path(), false).expect("open");
        let mut load = Load::new(&disk).expect("a load");
        rounds(&mut load, 3);
        let sum = load.verify().expect("all as it should be");
        let mut fnv = Fnv::new();
        fnv.add(&std::fs::read(file.path()).expect("read"));
        assert_eq!(sum, fnv.0);
        assert!(load.blocks.contains(&Block::Written(3)));
        assert!(load.blocks.iter().any(|b| matches!(b, Block::Found(_))));
    }

    #[test]
    fn a_byte_that_changed_is_found_wherever_it_is() {
        let file = file();
        let disk = Disk::open(file.path(), false).expect("open");
        let mut load = Load::new(&disk).expect("a load");
        rounds(&mut load, 2);
        let is_written = |block: &Block| matches!(block, Block::Written(_));
        for kind in [true, false] {
            let block = load.blocks.iter().position(|b| is_written(b) == kind);
            let at = (block.expect("one of each") * BLOCK) as u64 + 100;
            let mut byte = [0];
            let raw = file.as_file();
            raw.read_exact_at(&mut byte, at).expect("read");
            raw.write_all_at(&[!byte[0]], at).expect("written");
            let Err(Wrong::Content(offset, ..)) = load.verify() else {
                panic!("not found at {at}");
            };
            assert_eq!(offset, if kind { at / 8 * 8 } else { at / 4096 * 4096 });
            raw.write_all_at(&byte, at).expect("written");
            load.verify().expect("it is back");
        }
    }

    #[test]
    fn an_old_round_is_told_by_name() {
        let file = file();
        let disk = Disk::open(file.path(), false).expect("open");
        let mut load = Load::new(&disk).expect("a load");
        rounds(&mut load, 1);
        let before = std::fs::read(file.path()).expect("read");
        rounds(&mut load, 1);
        let is_new = |block: &Block| *block == Block::Written(2);
        let block = load.blocks.iter().position(is_new).expect("one");
        let old = &before[block * BLOCK..][..BLOCK];
        disk.write(old, block as u64).expect("written");
        let wrong = load.verify().expect_err("an old block").to_string();
        assert!(wrong.ends_with("expected=round 2"), "{wrong}");
    }

    #[test]
    fn a_disk_that_grew_is_used_whole_if_the_new_part_is_zero() {
        let file = file();
        let disk = Disk::open(file.path(), false).expect("open");
        let mut load = Load::new(&disk).expect("a load");
        assert_eq!(load.grow().expect("no change"), None);
        file.as_file().set_len(SIZE * 2).expect("longer");
        assert_eq!(load.grow().expect("zeroes"), Some(SIZE * 2));
        rounds(&mut load, 4);
        load.verify().expect("all as it should be");
        let new_part = &load.blocks[SIZE as usize / BLOCK..];
        assert!(new_part.iter().any(|b| matches!(b, Block::Written(_))));
        file.as_file()
            .write_all_at(&[1], SIZE * 2 + 5)
            .expect("written");
        file.as_file().set_len(SIZE * 3).expect("longer");
        assert!(matches!(load.grow(), Err(Wrong::Content(offset, ..)) if offset == SIZE * 2 + 5));
    }
}
