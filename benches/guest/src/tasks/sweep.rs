//! Writing and reading a whole disk: requests of mixed sizes, several in flight on every queue, each compared
//! bit by bit with the pattern of its place.

use super::Arguments;
use crate::clock::now;
use crate::failure;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::{Random, pattern};
use crate::virtio::PATIENCE_MS;
use crate::virtio::blk::{Blk, Completion, Info, Operation, QUEUES, SECTOR, SEGMENTS};
use crate::virtio::queue::{Segment, wait_any};

const DEPTH_MAX: usize = 32;
const REQUEST_MAX: usize = 128 << 10;
const WORDS_PER_SECTOR: u64 = SECTOR / 8;

/// What to do with the disk.
pub struct Plan {
    pub seed: u64,
    /// Requests in flight on each queue.
    pub depth: usize,
    /// Bytes from the start of the disk.
    pub limit: u64,
    /// Split requests into segments at any byte, not just at sectors.
    pub odd: bool,
}

impl Plan {
    /// By a task's arguments `[:i[:seed]]`, `depth=`, `limit=`, `split=odd`.
    pub fn new(arguments: &Arguments) -> Outcome<Self> {
        Ok(Self {
            seed: arguments.number(1)?.unwrap_or(1),
            depth: (arguments.number_of("depth")?.unwrap_or(8) as usize).clamp(1, DEPTH_MAX),
            limit: arguments.number_of("limit")?.unwrap_or(u64::MAX),
            odd: arguments.value("split") == Some("odd"),
        })
    }
}

/// What was done.
pub struct Done {
    pub bytes: u64,
    pub requests: u64,
    pub us: u64,
}

/// The largest request that this driver sends to a disk.
pub fn largest_request(info: &Info) -> usize {
    REQUEST_MAX
        .min(info.size_max as usize & !(SECTOR as usize - 1))
        .max(SECTOR as usize)
}

/// Fills words with the pattern of a place on the disk.
pub fn fill(words: &mut [u64], seed: u64, sector: u64) {
    for (word, index) in words.iter_mut().zip(sector * WORDS_PER_SECTOR..) {
        *word = pattern(seed, index);
    }
}

/// Compares words with what should be at a place on the disk.
pub fn compare(words: &[u64], sector: u64, expected: impl Fn(u64) -> u64) -> Outcome {
    for (word, index) in words.iter().zip(sector * WORDS_PER_SECTOR..) {
        let wanted = expected(index);
        if *word != wanted {
            return Err(failure!(
                "mismatch offset={:#x} found={word:#x} expected={wanted:#x}",
                index * 8
            ));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Flight {
    sector: u64,
    bytes: usize,
}

/// One queue's buffers.
struct Lane {
    memory: Dma,
    flights: [Flight; DEPTH_MAX],
    buffer_of_slot: [u8; 256],
    free: [u8; DEPTH_MAX],
    free_count: usize,
}

impl Lane {
    fn new(memory: Dma, depth: usize) -> Self {
        Self {
            memory,
            flights: [Flight::default(); DEPTH_MAX],
            buffer_of_slot: [0; 256],
            free: core::array::from_fn(|buffer| buffer as u8),
            free_count: depth,
        }
    }

    fn buffer(&self, number: u8, request: usize, bytes: usize) -> Dma {
        self.memory.part(usize::from(number) * request, bytes)
    }
}

struct Sweep<'a> {
    plan: &'a Plan,
    operation: Operation,
    request: usize,
    segments: usize,
    random: Random,
    next: u64,
    end: u64,
}

impl Sweep<'_> {
    /// Sectors of the next request: mostly the usual sizes, sometimes anything.
    fn size(&mut self) -> usize {
        const USUAL: [usize; 6] = [1, 8, 8, 16, 128, 256];
        let most = (self.request as u64 / SECTOR).min(self.end - self.next);
        let sectors = match self.random.one_in(4) {
            true => self.random.below(most) + 1,
            false => self.random.pick(&USUAL) as u64,
        };
        (sectors.min(most) * SECTOR) as usize
    }

    /// Cuts a buffer into a few segments.
    fn split(&mut self, buffer: Dma, segments: &mut [Segment; SEGMENTS]) -> usize {
        let unit = if self.plan.odd { 1 } else { SECTOR as usize };
        let (mut at, mut count) = (0, 0);
        while count + 1 < self.segments && buffer.size() - at > unit && self.random.one_in(2) {
            let length = self.random.below(((buffer.size() - at) / unit) as u64) as usize * unit;
            if length == 0 {
                break;
            }
            segments[count] = buffer.part(at, length).into();
            at += length;
            count += 1;
        }
        segments[count] = buffer.part(at, buffer.size() - at).into();
        count + 1
    }

    /// Puts as many requests as fit on a queue.
    fn submit(&mut self, blk: &mut Blk, number: usize, lane: &mut Lane) -> Outcome<u64> {
        let Some(queue) = blk.queues[number].as_mut() else {
            return Ok(0);
        };
        let mut submitted = 0;
        while lane.free_count > 0 && self.next < self.end {
            let bytes = self.size();
            let buffer = lane.free[lane.free_count - 1];
            let memory = lane.buffer(buffer, self.request, bytes);
            // SAFETY: a free buffer is in no request.
            let words = unsafe { memory.words() };
            match self.operation {
                Operation::WRITE => fill(words, self.plan.seed, self.next),
                _ => words.fill(0xdead_beef_dead_beef),
            }
            let mut segments = [Segment::default(); SEGMENTS];
            let count = self.split(memory, &mut segments);
            let Some(slot) = queue.submit(self.operation, self.next, &segments[..count]) else {
                break;
            };
            lane.free_count -= 1;
            lane.buffer_of_slot[usize::from(slot)] = buffer;
            lane.flights[usize::from(buffer)] = Flight {
                sector: self.next,
                bytes,
            };
            self.next += bytes as u64 / SECTOR;
            submitted += 1;
        }
        queue.queue.publish();
        Ok(submitted)
    }

    fn finish(&self, lane: &mut Lane, completion: Completion) -> Outcome {
        let buffer = lane.buffer_of_slot[usize::from(completion.slot)];
        let flight = lane.flights[usize::from(buffer)];
        if let Err(failure) = completion.status.check("request") {
            return Err(failure!("{} sector={}", failure.reason(), flight.sector));
        }
        let writes = if self.operation == Operation::READ {
            flight.bytes as u32 + 1
        } else {
            1
        };
        if completion.written != writes {
            return Err(failure!(
                "used-length found={} expected={writes}",
                completion.written
            ));
        }
        if self.operation == Operation::READ {
            let memory = lane.buffer(buffer, self.request, flight.bytes);
            // SAFETY: its only request has completed.
            let words = unsafe { memory.words() };
            compare(words, flight.sector, |index| pattern(self.plan.seed, index))?;
        }
        lane.free[lane.free_count] = buffer;
        lane.free_count += 1;
        Ok(())
    }
}

/// Writes the pattern to the disk, or reads and compares it.
pub fn run(
    machine: &mut Machine,
    blk: &mut Blk,
    plan: &Plan,
    operation: Operation,
) -> Outcome<Done> {
    let request = largest_request(&blk.info);
    let started = now();
    let mark = machine.memory.mark();
    let mut lanes = [const { None }; QUEUES];
    for lane in lanes.iter_mut().take(blk.info.queues.into()) {
        let memory = machine.memory.allocate(request * plan.depth, 4096)?;
        *lane = Some(Lane::new(memory, plan.depth));
    }
    let end = blk.info.sectors.min(plan.limit / SECTOR);
    let mut sweep = Sweep {
        plan,
        operation,
        request,
        segments: (blk.info.segments_max as usize).clamp(1, 4),
        random: Random::new(plan.seed ^ u64::from(operation.0)),
        next: 0,
        end,
    };
    let (mut submitted, mut finished) = (0, 0);
    let mut deadline = machine.clock.deadline_ms(PATIENCE_MS);
    loop {
        for (number, lane) in lanes.iter_mut().enumerate() {
            if let Some(lane) = lane {
                submitted += sweep.submit(blk, number, lane)?;
            }
        }
        let before = finished;
        for (queue, lane) in blk.queues.iter_mut().zip(&mut lanes) {
            let Some((queue, lane)) = queue.as_mut().zip(lane.as_mut()) else {
                continue;
            };
            while let Some(completion) = queue.complete()? {
                sweep.finish(lane, completion)?;
                finished += 1;
            }
        }
        if finished == submitted && sweep.next == end {
            break;
        }
        if finished != before {
            deadline = machine.clock.deadline_ms(PATIENCE_MS);
            continue;
        }
        wait_any(
            blk.queues.iter().flatten().map(|queue| &queue.queue),
            deadline,
        )?;
    }
    machine.memory.release(mark);
    Ok(Done {
        bytes: end * SECTOR,
        requests: finished,
        us: machine.clock.us_since(started),
    })
}
