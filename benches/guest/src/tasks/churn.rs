//! A load that goes on while the host works on the disk: writes, zeroes, discards, flushes, and reads that are
//! compared with what was written last, all at once and never two on the same block.

use super::blocks::{BLOCK, BLOCK_SECTORS, Blocks, Fresh};
use super::platform::PowerButton;
use super::{Arguments, put};
use crate::failure;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::Random;
use crate::say;
use crate::virtio::blk::{Blk, Completion, Operation, QUEUES, SECTOR, SEGMENTS, bit};
use crate::virtio::queue::{Segment, wait_any};

const DEPTH_MAX: usize = 64;
/// The most blocks that are written or read at once.
const DATA_BLOCKS: u64 = 32;
/// The most blocks that are zeroed or discarded at once, and where half of those requests start: so that they
/// cover whole clusters of common sizes.
const RANGE_BLOCKS: u64 = 64;
const RANGE_ALIGN: u64 = 16;
/// A buffer holds the largest request's data, then a range of blocks to zero or discard.
const RANGE_OFFSET: usize = (DATA_BLOCKS * BLOCK) as usize;
const BUFFER: usize = RANGE_OFFSET + 64;
/// Requests after which the host is told that the load is on.
const RUNNING: u64 = 1000;
/// How long nothing at all may complete. More than usual: the host works on the disk, too.
const PATIENCE_MS: u64 = 20_000;

/// `blk-churn[:i[:seed]]` with `depth=` (16), `limit=` (bytes), `rounds=` (requests), `fresh=zero` or `fresh=SEED`:
/// a random mixture of requests until the power button is pressed or the rounds are over; then reads everything
/// back. Content that it hasn't written is compared only if `fresh=` says what it is: zeroes, or what
/// `blk-verify` with that seed wrote. Prints `churn: running` after 1000 requests.
pub fn churn(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let index = arguments.number(0)?.unwrap_or(0) as usize;
    let seed = arguments.number(1)?.unwrap_or(1);
    let depth = arguments.number_of("depth")?.unwrap_or(16) as usize;
    let limit = arguments.number_of("limit")?.unwrap_or(u64::MAX);
    let rounds = arguments.number_of("rounds")?.unwrap_or(u64::MAX);
    let fresh = match arguments.value("fresh") {
        None => Fresh::Unknown,
        Some("zero") => Fresh::Zero,
        Some(_) => Fresh::Pattern(arguments.number_of("fresh")?.unwrap_or(0)),
    };
    let mut button = PowerButton::listen(machine)?;
    let mut blk = Blk::open(machine, index, 0)?;
    if u64::from(blk.info.size_max) < DATA_BLOCKS * BLOCK {
        return Err(failure!(
            "segments-too-small size_max={}",
            blk.info.size_max
        ));
    }
    // What a disk gains while the load is on stays as it is.
    let count = blk.info.bytes().min(limit) / BLOCK;
    if count == 0 {
        return Err(failure!("disk-too-small bytes={}", blk.info.bytes()));
    }
    let blocks = Blocks::new(machine, seed, fresh, count)?;
    let mut churn = Churn::new(machine, blocks, &blk, seed, depth)?;

    let mut said = false;
    let mut is_over = false;
    while !is_over {
        while churn.submitted < rounds && churn.random_request(&mut blk)? {}
        churn.step(machine, &mut blk)?;
        if !said && churn.finished >= RUNNING {
            say!("churn: running");
            said = true;
        }
        is_over = churn.submitted >= rounds || button.is_pressed();
    }
    churn.drain(machine, &mut blk)?;
    if blk.device.has(bit::FLUSH) {
        churn.submit(&mut blk, Work::Flush, 0, 0)?;
        churn.drain(machine, &mut blk)?;
    }
    let requests = churn.finished;
    churn.read_all(machine, &mut blk)?;
    let Totals {
        written,
        read,
        zeroed,
        discarded,
        flushes,
    } = churn.totals;
    put(
        report,
        format_args!("requests={requests} bytes={} errors=0", written + read),
    );
    put(
        report,
        format_args!("written={written} read={read} zeroed={zeroed} discarded={discarded}"),
    );
    put(
        report,
        format_args!(
            "flushes={flushes} checked={} capacity={}",
            churn.blocks.count() * BLOCK,
            blk.device.transport.config64(0) * SECTOR
        ),
    );
    Ok(())
}

/// What a request does to its blocks.
#[derive(Clone, Copy, Default)]
enum Work {
    #[default]
    Read,
    Write,
    Zero {
        unmap: bool,
    },
    Discard,
    Flush,
}

#[derive(Clone, Copy, Default)]
struct Flight {
    work: Work,
    first: u64,
    count: u64,
    /// Of a write.
    generation: u32,
}

#[derive(Default)]
struct Totals {
    written: u64,
    read: u64,
    zeroed: u64,
    discarded: u64,
    flushes: u64,
}

struct Churn {
    blocks: Blocks,
    random: Random,
    /// A buffer for each flight.
    memory: Dma,
    flights: [Flight; DEPTH_MAX],
    free: [u8; DEPTH_MAX],
    free_count: usize,
    depth: usize,
    flight_of_slot: [[u8; 256]; QUEUES],
    /// The queue that the next request goes to.
    queue: usize,
    queues: usize,
    segments: usize,
    can_zero: bool,
    can_unmap: bool,
    can_discard: bool,
    can_flush: bool,
    submitted: u64,
    finished: u64,
    totals: Totals,
}

impl Churn {
    fn new(
        machine: &mut Machine,
        blocks: Blocks,
        blk: &Blk,
        seed: u64,
        depth: usize,
    ) -> Outcome<Self> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let range_sectors = (RANGE_BLOCKS * BLOCK_SECTORS) as u32;
        let has = |feature, most: u32| blk.device.has(feature) && most >= range_sectors;
        Ok(Self {
            blocks,
            random: Random::new(seed),
            memory: machine.memory.allocate(depth * BUFFER, 4096)?,
            flights: [Flight::default(); DEPTH_MAX],
            free: core::array::from_fn(|flight| flight as u8),
            free_count: depth,
            depth,
            flight_of_slot: [[0; 256]; QUEUES],
            queue: 0,
            queues: blk.info.queues.into(),
            segments: (blk.info.segments_max as usize).clamp(1, 4),
            can_zero: has(bit::WRITE_ZEROES, blk.info.zeroes_sectors_max),
            can_unmap: blk.info.zeroes_may_unmap,
            can_discard: has(bit::DISCARD, blk.info.discard_sectors_max),
            can_flush: blk.device.has(bit::FLUSH),
            submitted: 0,
            finished: 0,
            totals: Totals::default(),
        })
    }

    fn buffer(&self, flight: u8) -> Dma {
        self.memory.part(usize::from(flight) * BUFFER, BUFFER)
    }

    /// What to do next: mostly reads and writes.
    fn work(&mut self) -> Work {
        match self.random.below(64) {
            0 if self.can_flush => Work::Flush,
            1 | 2 if self.can_zero => Work::Zero {
                unmap: self.can_unmap && self.random.one_in(2),
            },
            3 if self.can_discard => Work::Discard,
            even if even % 2 == 0 => Work::Write,
            _ => Work::Read,
        }
    }

    /// Submits a request of any kind, anywhere. False when that's not possible now.
    fn random_request(&mut self, blk: &mut Blk) -> Outcome<bool> {
        const TRIES: usize = 8;
        if self.free_count == 0 {
            return Ok(false);
        }
        let work = self.work();
        let (most, align) = match work {
            Work::Flush => return self.submit(blk, work, 0, 0),
            Work::Read | Work::Write => (DATA_BLOCKS, 1),
            Work::Zero { .. } | Work::Discard if self.random.one_in(2) => {
                (RANGE_BLOCKS, RANGE_ALIGN)
            }
            Work::Zero { .. } | Work::Discard => (RANGE_BLOCKS, 1),
        };
        for _ in 0..TRIES {
            let most = if self.random.one_in(2) { most } else { 4 };
            let wanted = self.random.below(most) + 1;
            let first = self.random.below(self.blocks.count()) / align * align;
            let count = self.blocks.idle(first, wanted);
            if count > 0 {
                return self.submit(blk, work, first, count);
            }
        }
        Ok(false)
    }

    /// Submits a request on blocks that have none in flight. False when the queue is full.
    fn submit(&mut self, blk: &mut Blk, work: Work, first: u64, count: u64) -> Outcome<bool> {
        let number = self.queue;
        let Some(queue) = blk.queues[number].as_mut() else {
            return Err(failure!("no-queue index={number}"));
        };
        let flight = self.free[self.free_count - 1];
        let buffer = self.buffer(flight);
        let data = buffer.part(0, (count.min(DATA_BLOCKS) * BLOCK) as usize);
        let range = buffer.part(RANGE_OFFSET, 16);
        let mut generation = 0;
        let (operation, sector) = match work {
            Work::Read => {
                data.fill(0xa5);
                (Operation::READ, first * BLOCK_SECTORS)
            }
            Work::Write => {
                // SAFETY: a free flight's buffer is in no request.
                generation = self.blocks.fill(unsafe { data.words() }, first)?;
                (Operation::WRITE, first * BLOCK_SECTORS)
            }
            Work::Zero { unmap } => {
                write_range(range, first, count, unmap);
                (Operation::WRITE_ZEROES, 0)
            }
            Work::Discard => {
                write_range(range, first, count, false);
                (Operation::DISCARD, 0)
            }
            Work::Flush => (Operation::FLUSH, 0),
        };
        let mut segments = [Segment::default(); SEGMENTS];
        let used = match work {
            Work::Read | Work::Write => self.split(data, &mut segments),
            Work::Zero { .. } | Work::Discard => {
                segments[0] = range.into();
                1
            }
            Work::Flush => 0,
        };
        let Some(slot) = queue.submit(operation, sector, &segments[..used]) else {
            return Ok(false);
        };
        self.queue = (number + 1) % self.queues;
        self.free_count -= 1;
        self.flight_of_slot[number][usize::from(slot)] = flight;
        self.flights[usize::from(flight)] = Flight {
            work,
            first,
            count,
            generation,
        };
        self.blocks.begin(first, count);
        self.submitted += 1;
        Ok(true)
    }

    /// Cuts a buffer into a few segments of whole sectors.
    fn split(&mut self, buffer: Dma, segments: &mut [Segment; SEGMENTS]) -> usize {
        let (mut at, mut count) = (0, 0);
        while count + 1 < self.segments && self.random.one_in(3) {
            let sectors = (buffer.size() - at) as u64 / SECTOR;
            let length = (self.random.below(sectors) * SECTOR) as usize;
            if length > 0 {
                segments[count] = buffer.part(at, length).into();
                at += length;
                count += 1;
            }
        }
        segments[count] = buffer.part(at, buffer.size() - at).into();
        count + 1
    }

    /// Shows the device what was submitted, and takes what it has done: waits for the first of it.
    fn step(&mut self, machine: &Machine, blk: &mut Blk) -> Outcome {
        for queue in blk.each() {
            queue.queue.publish();
        }
        let before = self.finished;
        let deadline = machine.clock.deadline_ms(PATIENCE_MS);
        while self.finished == before && self.free_count < self.depth {
            for number in 0..self.queues {
                while let Some(completion) = match blk.queues[number].as_mut() {
                    Some(queue) => queue.complete()?,
                    None => None,
                } {
                    self.finish(number, completion)?;
                }
            }
            if self.finished == before {
                let queues = blk.queues.iter().flatten().map(|queue| &queue.queue);
                wait_any(queues, deadline)?;
            }
        }
        Ok(())
    }

    /// Waits until nothing is in flight.
    fn drain(&mut self, machine: &Machine, blk: &mut Blk) -> Outcome {
        while self.free_count < self.depth {
            self.step(machine, blk)?;
        }
        Ok(())
    }

    /// Reads and compares all blocks.
    fn read_all(&mut self, machine: &Machine, blk: &mut Blk) -> Outcome {
        let mut next = 0;
        while next < self.blocks.count() {
            let count = DATA_BLOCKS.min(self.blocks.count() - next);
            while self.free_count > 0
                && next < self.blocks.count()
                && self.submit(blk, Work::Read, next, count.min(self.blocks.count() - next))?
            {
                next += count;
            }
            self.step(machine, blk)?;
        }
        self.drain(machine, blk)
    }

    fn finish(&mut self, number: usize, completion: Completion) -> Outcome {
        let id = self.flight_of_slot[number][usize::from(completion.slot)];
        let Flight {
            work,
            first,
            count,
            generation,
        } = self.flights[usize::from(id)];
        let bytes = count * BLOCK;
        let (what, written, total) = match work {
            Work::Read => ("read", bytes as u32 + 1, &mut self.totals.read),
            Work::Write => ("write", 1, &mut self.totals.written),
            Work::Zero { .. } => ("write-zeroes", 1, &mut self.totals.zeroed),
            Work::Discard => ("discard", 1, &mut self.totals.discarded),
            Work::Flush => ("flush", 1, &mut self.totals.flushes),
        };
        *total += if matches!(work, Work::Flush) {
            1
        } else {
            bytes
        };
        if let Err(failure) = completion.status.check(what) {
            let offset = first * BLOCK;
            return Err(failure!(
                "{} offset={offset:#x} bytes={bytes}",
                failure.reason()
            ));
        }
        if completion.written != written {
            return Err(failure!(
                "used-length of={what} found={} expected={written}",
                completion.written
            ));
        }
        match work {
            Work::Read => {
                let data = self.buffer(id).part(0, bytes as usize);
                // SAFETY: the buffer's only request has completed.
                self.blocks.compare(unsafe { data.words() }, first)?;
                self.blocks.end(first, count);
            }
            Work::Write => self.blocks.end_written(first, count, generation),
            Work::Zero { .. } => self.blocks.end_zeroed(first, count),
            Work::Discard => self.blocks.end_discarded(first, count),
            Work::Flush => {}
        }
        self.free[self.free_count] = id;
        self.free_count += 1;
        self.finished += 1;
        Ok(())
    }
}

/// A discard or write-zeroes request's range.
fn write_range(memory: Dma, first: u64, count: u64, unmap: bool) {
    memory.write(0, first * BLOCK_SECTORS);
    memory.write(8, (count * BLOCK_SECTORS) as u32);
    memory.write(12, u32::from(unmap));
}
