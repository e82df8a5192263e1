//! A disk keeps what is written, while requests are in flight: what its blocks should hold is in memory.

use super::{SEED, waited_for};
use crate::clock::Clock;
use crate::failure;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::Random;
use crate::tasks::blocks::{BLOCK, BLOCK_SECTORS, Blocks, Fresh};
use crate::virtio::blk::{Blk, Completion, Operation, QUEUES};
use crate::virtio::queue::{Segment, wait_any};

/// Writes in flight at most.
const WRITES: usize = 4;
/// And a read.
const FLIGHTS: usize = WRITES + 1;

/// A request in flight. Its place in the array is its buffer's.
#[derive(Clone, Copy)]
struct Flight {
    queue: usize,
    slot: u16,
    block: u64,
    /// Of a write.
    generation: Option<u32>,
}

/// A disk whose blocks' generations are in memory.
pub struct Disk {
    blk: Blk,
    /// What every block should hold.
    pub blocks: Blocks,
    memory: Dma,
    flights: [Option<Flight>; FLIGHTS],
    /// The queue that the next request goes to.
    queue: usize,
    /// The block that was read last, and is written next: so that no write goes unchecked.
    checked: u64,
    random: Random,
    clock: Clock,
}

impl Disk {
    /// Opens it and writes all its blocks.
    pub fn new(machine: &mut Machine, index: usize) -> Outcome<Self> {
        const BLOCKS: u64 = 256;
        const BLOCKS_MIN: u64 = 64;
        let blk = Blk::open(machine, index, 0)?;
        let count = (blk.info.bytes() / BLOCK).min(BLOCKS);
        if count < BLOCKS_MIN {
            return Err(failure!("disk-too-small bytes={}", blk.info.bytes()));
        }
        let mut disk = Self {
            blk,
            blocks: Blocks::new(machine, SEED, Fresh::Unknown, count)?,
            memory: machine.memory.allocate(FLIGHTS * BLOCK as usize, BLOCK)?,
            flights: [None; FLIGHTS],
            queue: 0,
            checked: 0,
            random: Random::new(!SEED),
            clock: machine.clock,
        };
        for block in 0..count {
            disk.settle(WRITES - 1)?;
            disk.write(block)?;
        }
        disk.settle(0)?;
        Ok(disk)
    }

    fn buffer(&self, flight: usize) -> Dma {
        self.memory.part(flight * BLOCK as usize, BLOCK as usize)
    }

    /// A block that isn't in flight.
    fn idle_block(&mut self) -> u64 {
        loop {
            let block = self.random.below(self.blocks.count());
            if self.blocks.idle(block, 1) > 0 {
                return block;
            }
        }
    }

    fn free_flight(&self) -> Outcome<usize> {
        let free = self.flights.iter().position(Option::is_none);
        free.ok_or_else(|| failure!("no-free-flight"))
    }

    /// Writes the next generation.
    fn write(&mut self, block: u64) -> Outcome {
        let flight = self.free_flight()?;
        // SAFETY: a free flight's buffer is in no request.
        let words = unsafe { self.buffer(flight).words() };
        let generation = self.blocks.fill(words, block)?;
        self.submit(flight, block, Some(generation))
    }

    fn read(&mut self, block: u64) -> Outcome {
        let flight = self.free_flight()?;
        self.buffer(flight).fill(0xa5);
        self.submit(flight, block, None)
    }

    fn submit(&mut self, flight: usize, block: u64, generation: Option<u32>) -> Outcome {
        let number = self.queue;
        let data = Segment::from(self.buffer(flight));
        let operation = match generation {
            Some(_) => Operation::WRITE,
            None => Operation::READ,
        };
        let Some(queue) = self.blk.queues[number].as_mut() else {
            return Err(failure!("no-queue index={number}"));
        };
        let Some(slot) = queue.submit(operation, block * BLOCK_SECTORS, &[data]) else {
            return Err(failure!("queue-full queue={number}"));
        };
        queue.queue.publish();
        self.queue = (number + 1) % usize::from(self.blk.info.queues);
        self.blocks.begin(block, 1);
        self.flights[flight] = Some(Flight {
            queue: number,
            slot,
            block,
            generation,
        });
        Ok(())
    }

    /// One more write in flight, and a read.
    pub fn begin_round(&mut self) -> Outcome {
        self.settle(WRITES - 1)?;
        self.write(self.checked)?;
        self.checked = self.idle_block();
        self.read(self.checked)
    }

    /// Waits for the read; writes may stay in flight.
    pub fn end_round(&mut self) -> Outcome {
        let is_read = |flight: &Flight| flight.generation.is_none();
        while self.flights.iter().flatten().any(is_read) {
            self.step()?;
        }
        Ok(())
    }

    /// Waits for all that is in flight and reads every block.
    pub fn finish(&mut self) -> Outcome {
        self.settle(0)?;
        for block in 0..self.blocks.count() {
            self.settle(FLIGHTS - 1)?;
            self.read(block)?;
        }
        self.settle(0)
    }

    /// Waits until no more than `most` requests are in flight.
    fn settle(&mut self, most: usize) -> Outcome {
        while self.flights.iter().flatten().count() > most {
            self.step()?;
        }
        Ok(())
    }

    /// Takes what the device has done: waits for the first of it.
    fn step(&mut self) -> Outcome {
        const DISK_MS: u64 = 30_000;
        let mut patience = self.clock.patience_ms(DISK_MS);
        while !self.take()? {
            let queues = self.blk.queues.iter().flatten().map(|queue| &queue.queue);
            wait_any(queues, &mut patience).map_err(waited_for("disk"))?;
        }
        Ok(())
    }

    /// Takes what the device has done. False when that is nothing.
    fn take(&mut self) -> Outcome<bool> {
        let mut some = false;
        for number in 0..QUEUES {
            while let Some(completion) = match self.blk.queues[number].as_mut() {
                Some(queue) => queue.complete()?,
                None => None,
            } {
                self.end(number, completion)?;
                some = true;
            }
        }
        Ok(some)
    }

    fn end(&mut self, number: usize, completion: Completion) -> Outcome {
        let Completion {
            slot,
            status,
            written,
        } = completion;
        let found = self.flights.iter().zip(0..).find_map(|(flight, index)| {
            let is_this = |flight: &Flight| (flight.queue, flight.slot) == (number, slot);
            Some((flight.filter(is_this)?, index))
        });
        let Some((flight, index)) = found else {
            return Err(failure!("not-in-flight queue={number} slot={slot}"));
        };
        let block = flight.block;
        let (what, expected) = match flight.generation {
            Some(_) => ("write", 1),
            None => ("read", BLOCK as u32 + 1),
        };
        if let Err(failure) = status.check(what) {
            return Err(failure!("{} block={block}", failure.reason()));
        }
        if written != expected {
            return Err(failure!(
                "used-length of={what} block={block} found={written} expected={expected}"
            ));
        }
        match flight.generation {
            Some(generation) => self.blocks.end_written(block, 1, generation),
            None => {
                // SAFETY: the buffer's only request has completed.
                let words = unsafe { self.buffer(index).words() };
                self.blocks.compare(words, block)?;
                self.blocks.end(block, 1);
            }
        }
        self.flights[index] = None;
        Ok(())
    }
}
