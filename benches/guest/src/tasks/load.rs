//! A load on a disk for a time: how many requests it answers, and how long each takes.

use super::{Arguments, put};
use crate::clock::now;
use crate::failure;
use crate::histogram::Histogram;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::Random;
use crate::say;
use crate::virtio::PATIENCE_MS;
use crate::virtio::blk::{Blk, BlkQueue, Operation, SECTOR};
use crate::virtio::queue::Segment;

const DEPTH_MAX: u64 = 128;
const SLOTS: usize = 256;

/// What is asked for.
struct Load {
    operation: Operation,
    order: Order,
    bytes: u64,
    depth: u64,
    /// Places that requests begin at.
    places: u64,
}

/// Which place follows another.
#[derive(Clone, Copy)]
enum Order {
    Random,
    /// So many further, modulo their number: 1 is in order; another odd number visits each once where
    /// their number is a power of two.
    Stride(u64),
}

/// When a run is over.
#[derive(Clone, Copy)]
enum Until {
    Milliseconds(u64),
    Requests(u64),
}

/// Requests under way, and where the next one goes.
struct Lane<'a> {
    load: &'a Load,
    buffers: Dma,
    choice: Random,
    next: u64,
    begun: [u64; SLOTS],
    buffer_of_slot: [u8; SLOTS],
}

impl Lane<'_> {
    #[inline]
    fn submit(&mut self, queue: &mut BlkQueue, buffer: u8, time: u64) -> Outcome {
        let places = self.load.places;
        let place = match self.load.order {
            Order::Random => ((u128::from(self.choice.next()) * u128::from(places)) >> 64) as u64,
            Order::Stride(stride) => {
                self.next += stride;
                if self.next >= places {
                    self.next -= places;
                }
                self.next
            }
        };
        let bytes = self.load.bytes as usize;
        let data = Segment::from(self.buffers.part(usize::from(buffer) * bytes, bytes));
        let sector = place * (self.load.bytes / SECTOR);
        let slot = queue
            .submit(self.load.operation, sector, &[data])
            .ok_or_else(|| failure!("queue-full"))?;
        self.begun[usize::from(slot)] = time;
        self.buffer_of_slot[usize::from(slot)] = buffer;
        Ok(())
    }
}

/// `blk-load[:i]`, `op=read|write`, `order=random|seq|stride`, `bytes=4096`, `depth=1`, `ms=1000`,
/// `warm=100`, `limit=…`: keeps `depth` requests in flight for so long, and says how many were answered and
/// how long they took. `# load: begin` and `# load: end` are printed around what is counted; with `idle=ms`
/// the disk is then left alone for so long, between `# idle: begin` and `# idle: end`.
///
/// `count=…` with `order=stride` counts requests and not time, twice over the same places, and without
/// warming up: `first_us` and `again_us` are what both took.
pub fn load(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let number = |key, otherwise| Ok(arguments.number_of(key)?.unwrap_or(otherwise));
    let index = arguments.number(0)?.unwrap_or(0) as usize;
    let bytes = number("bytes", 4096)?;
    let (ms, warm) = (number("ms", 1000)?, number("warm", 100)?);
    let (requests, idle) = (number("count", 0)?, number("idle", 0)?);
    let mut blk = Blk::open(machine, index, 0)?;
    let limit = number("limit", u64::MAX)?.min(blk.info.bytes());
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) || bytes > limit {
        return Err(failure!("bad-size bytes={bytes}"));
    }
    let load = Load {
        operation: match arguments.value("op") {
            Some("write") => Operation::WRITE,
            _ => Operation::READ,
        },
        order: match arguments.value("order") {
            Some("seq") => Order::Stride(1),
            Some("stride") => Order::Stride(stride_of(limit / bytes)),
            _ => Order::Random,
        },
        bytes,
        depth: number("depth", 1)?.clamp(1, DEPTH_MAX),
        places: limit / bytes,
    };
    let buffers = machine
        .memory
        .allocate((load.depth * bytes) as usize, 4096)?;
    let mut lane = Lane {
        load: &load,
        buffers,
        choice: Random::new(number("seed", 1)?),
        next: 0,
        begun: [0; SLOTS],
        buffer_of_slot: [0; SLOTS],
    };
    let clock = machine.clock;
    let queue = blk.queue()?;
    let time = now();
    for buffer in 0..load.depth {
        lane.submit(queue, buffer as u8, time)?;
    }
    queue.queue.publish();
    let mut histogram = Histogram::new();
    if requests > 0 {
        for name in ["first_us", "again_us"] {
            let started = now();
            run(
                machine,
                queue,
                &mut lane,
                Until::Requests(requests),
                &mut histogram,
            )?;
            put(
                report,
                format_args!("{name}={}", clock.us_since(started).max(1)),
            );
            lane.next = 0;
        }
        return drain(machine, queue);
    }
    run(
        machine,
        queue,
        &mut lane,
        Until::Milliseconds(warm),
        &mut histogram,
    )?;
    say!("# load: begin");
    let interrupts = queue.queue.interrupts();
    histogram = Histogram::new();
    let started = now();
    let count = run(
        machine,
        queue,
        &mut lane,
        Until::Milliseconds(ms),
        &mut histogram,
    )?;
    let us = clock.us_since(started).max(1);
    say!("# load: end");
    let interrupts = queue.queue.interrupts() - interrupts;
    drain(machine, queue)?;
    if idle > 0 {
        say!("# idle: begin");
        clock.sleep_ms(idle);
        say!("# idle: end");
    }
    let ns = |share| histogram.permille(share) * 1_000_000 / clock.khz();
    put(report, format_args!("ops={count} us={us}"));
    put(report, format_args!("rate={}", count * 1_000_000 / us));
    put(
        report,
        format_args!("p50={} p99={} p999={}", ns(500), ns(990), ns(999)),
    );
    put(report, format_args!("irqs={interrupts}"));
    Ok(())
}

/// The golden ratio of the places, made odd: far from its multiples, and coprime to a power of two.
fn stride_of(places: u64) -> u64 {
    const GOLDEN: u128 = 0x9e37_79b9_7f4a_7c15;
    ((GOLDEN * u128::from(places)) >> 64) as u64 | 1
}

/// Keeps the lane full; how many requests were answered.
fn run(
    machine: &Machine,
    queue: &mut BlkQueue,
    lane: &mut Lane,
    until: Until,
    histogram: &mut Histogram,
) -> Outcome<u64> {
    let (end, most) = match until {
        Until::Milliseconds(ms) => (now() + ms * machine.clock.khz(), u64::MAX),
        Until::Requests(count) => (u64::MAX, count),
    };
    let mut count = 0;
    loop {
        let time = now();
        let mut some = false;
        while let Some(completion) = queue.complete()? {
            completion.status.check("request")?;
            let slot = usize::from(completion.slot);
            histogram.add(time.wrapping_sub(lane.begun[slot]));
            count += 1;
            some = true;
            lane.submit(queue, lane.buffer_of_slot[slot], time)?;
        }
        if some {
            queue.queue.publish();
        } else if !queue.queue.has_used() {
            let deadline = machine.clock.deadline_ms(PATIENCE_MS);
            queue.queue.wait(deadline)?;
        }
        if time >= end || count >= most {
            return Ok(count);
        }
    }
}

/// Waits for what is under way.
fn drain(machine: &Machine, queue: &mut BlkQueue) -> Outcome {
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    while queue.in_flight() > 0 {
        if queue.complete()?.is_none() {
            queue.queue.wait(deadline)?;
        }
    }
    Ok(())
}
