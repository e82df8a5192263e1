//! Tasks on disks: what they are, whether they keep what is written, and what they refuse.

use super::sweep::{self, Plan};
use super::{Arguments, put};
use crate::failure;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::{Fnv, pattern};
use crate::virtio::blk::{Blk, Operation, SECTOR, Status, bit};
use crate::virtio::queue::Segment;
use crate::virtio::{PATIENCE_MS, feature};

const ID_BYTES: usize = 20;

fn index(arguments: &Arguments) -> Outcome<usize> {
    Ok(arguments.number(0)?.unwrap_or(0) as usize)
}

/// `blk-info[:i]`: capacity, features, queues and the identifier.
pub fn info(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mut blk = Blk::open(machine, index(arguments)?, 0)?;
    let buffer = machine.memory.allocate(ID_BYTES, 64)?;
    blk.request(machine, Operation::GET_ID, 0, &[buffer.into()])?
        .check("get-id")?;
    let mut id = [0; ID_BYTES];
    buffer.read_bytes(0, &mut id);
    let length = id.iter().position(|byte| *byte == 0).unwrap_or(ID_BYTES);
    let id = core::str::from_utf8(&id[..length]).unwrap_or("?");
    let info = blk.info;
    put(
        report,
        format_args!(
            "place={} bytes={} block={}",
            blk.device.place,
            info.bytes(),
            info.block_size
        ),
    );
    put(
        report,
        format_args!("queues={} segments={}", info.queues, info.segments_max),
    );
    put(
        report,
        format_args!(
            "ro={} flush={}",
            blk.device.has(bit::RO),
            blk.device.has(bit::FLUSH)
        ),
    );
    put(
        report,
        format_args!(
            "discard={} zeroes={}",
            info.discard_sectors_max, info.zeroes_sectors_max
        ),
    );
    put(
        report,
        format_args!(
            "offered={:#x} features={:#x}",
            blk.device.offered, blk.device.features
        ),
    );
    put(report, format_args!("id={id}"));
    Ok(())
}

/// `blk-verify[:i[:seed]]` with `depth=`, `limit=` (bytes), `split=odd`, `indirect=on`: fills the disk with the
/// seed's pattern, flushes, and reads it back.
pub fn verify(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let plan = Plan::new(arguments)?;
    let indirect = arguments.value("indirect") == Some("on");
    verify_with(machine, index(arguments)?, plan, indirect, report)
}

/// `blk-indirect[:i[:seed]]`: `blk-verify` with indirect descriptors.
pub fn indirect(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    verify_with(
        machine,
        index(arguments)?,
        Plan::new(arguments)?,
        true,
        report,
    )
}

/// `blk-poll[:i[:seed]]`: `blk-verify` without interrupts.
pub fn poll(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    machine.options.poll = true;
    verify_with(
        machine,
        index(arguments)?,
        Plan::new(arguments)?,
        false,
        report,
    )
}

fn verify_with(
    machine: &mut Machine,
    index: usize,
    plan: Plan,
    indirect: bool,
    report: &mut Line,
) -> Outcome {
    let extra = if indirect { feature::INDIRECT } else { 0 };
    let mut blk = Blk::open(machine, index, extra)?;
    let written = sweep::run(machine, &mut blk, &plan, Operation::WRITE)?;
    if blk.device.has(bit::FLUSH) {
        blk.request(machine, Operation::FLUSH, 0, &[])?
            .check("flush")?;
    }
    let read = sweep::run(machine, &mut blk, &plan, Operation::READ)?;
    put(
        report,
        format_args!(
            "bytes={} sum={:#018x}",
            read.bytes,
            sum_of_pattern(plan.seed, read.bytes)
        ),
    );
    put(
        report,
        format_args!("queues={} depth={}", blk.info.queues, plan.depth),
    );
    put(
        report,
        format_args!("writes={} reads={}", written.requests, read.requests),
    );
    put(
        report,
        format_args!(
            "irqs={} write_us={} read_us={}",
            blk.interrupts(),
            written.us,
            read.us
        ),
    );
    Ok(())
}

/// `blk-read-verify[:i[:seed]]`: checks what an earlier `blk-verify` with the same seed has written.
pub fn read_verify(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let plan = Plan::new(arguments)?;
    let mut blk = Blk::open(machine, index(arguments)?, 0)?;
    let read = sweep::run(machine, &mut blk, &plan, Operation::READ)?;
    put(
        report,
        format_args!(
            "bytes={} sum={:#018x}",
            read.bytes,
            sum_of_pattern(plan.seed, read.bytes)
        ),
    );
    put(
        report,
        format_args!(
            "reads={} irqs={} read_us={}",
            read.requests,
            blk.interrupts(),
            read.us
        ),
    );
    Ok(())
}

/// FNV-1a of the pattern's first bytes.
pub fn sum_of_pattern(seed: u64, bytes: u64) -> u64 {
    let mut sum = Fnv::new();
    for index in 0..bytes / 8 {
        sum.add(&pattern(seed, index).to_le_bytes());
    }
    sum.value()
}

/// `blk-sum[:i]`: FNV-1a (64 bits) of the whole disk, to be compared with the host's.
pub fn sum(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    const DEPTH: usize = 16;
    let mut blk = Blk::open(machine, index(arguments)?, 0)?;
    let request = sweep::largest_request(&blk.info);
    let memory = machine.memory.allocate(DEPTH * request, 4096)?;
    let bytes = blk.info.bytes();
    let mut sum = Fnv::new();
    let mut at = 0;
    while at < bytes {
        let window = ((bytes - at) as usize).min(memory.size());
        let deadline = machine.clock.deadline_ms(PATIENCE_MS);
        let queue = blk.queue()?;
        let mut offset = 0;
        while offset < window {
            let part = memory.part(offset, request.min(window - offset));
            let sector = (at + offset as u64) / SECTOR;
            if queue
                .submit(Operation::READ, sector, &[part.into()])
                .is_none()
            {
                return Err(failure!("queue-full"));
            }
            offset += part.size();
        }
        queue.queue.publish();
        while queue.in_flight() > 0 {
            match queue.complete()? {
                Some(completion) => completion.status.check("read")?,
                None => queue.queue.wait(deadline)?,
            }
        }
        // SAFETY: every request on this memory has completed.
        sum.add(unsafe { memory.part(0, window).bytes() });
        at += window as u64;
    }
    put(
        report,
        format_args!("bytes={bytes} fnv1a={:#018x}", sum.value()),
    );
    Ok(())
}

/// Fills memory with the pattern of a place on the disk.
fn fill(memory: Dma, seed: u64, sector: u64) {
    // SAFETY: the callers' requests on this memory have completed.
    sweep::fill(unsafe { memory.words() }, seed, sector);
}

fn expect(memory: Dma, sector: u64, value: impl Fn(u64) -> u64) -> Outcome {
    // SAFETY: the callers' requests on this memory have completed.
    sweep::compare(unsafe { memory.words() }, sector, value)
}

/// A discard or write-zeroes request's range.
fn range(memory: Dma, sector: u64, sectors: u32, flags: u32) -> [Segment; 1] {
    memory.write(0, sector);
    memory.write(8, sectors);
    memory.write(12, flags);
    [memory.part(0, 16).into()]
}

const SEED: u64 = 0x5ca1_ab1e;
const AREA_SECTORS: u64 = 256;
const HOLE: core::ops::Range<u64> = 64..192;
const UNMAP: u32 = 1;

struct Area {
    data: Dma,
    range: Dma,
}

impl Area {
    fn new(machine: &mut Machine, blk: &Blk) -> Outcome<Self> {
        if blk.info.sectors < AREA_SECTORS {
            return Err(failure!("disk-too-small sectors={}", blk.info.sectors));
        }
        Ok(Self {
            data: machine
                .memory
                .allocate((AREA_SECTORS * SECTOR) as usize, 4096)?,
            range: machine.memory.allocate(16, 64)?,
        })
    }

    fn write(&self, machine: &Machine, blk: &mut Blk) -> Outcome {
        fill(self.data, SEED, 0);
        blk.request(machine, Operation::WRITE, 0, &[self.data.into()])?
            .check("write")
    }

    fn read(&self, machine: &Machine, blk: &mut Blk) -> Outcome {
        self.data.fill(0xa5);
        blk.request(machine, Operation::READ, 0, &[self.data.into()])?
            .check("read")
    }

    fn part(&self, sectors: core::ops::Range<u64>) -> Dma {
        let bytes = ((sectors.end - sectors.start) * SECTOR) as usize;
        self.data.part((sectors.start * SECTOR) as usize, bytes)
    }

    /// The sectors around the hole hold what was written.
    fn expect_surroundings(&self) -> Outcome {
        for sectors in [0..HOLE.start, HOLE.end..AREA_SECTORS] {
            expect(self.part(sectors.clone()), sectors.start, |index| {
                pattern(SEED, index)
            })?;
        }
        Ok(())
    }

    fn hole(&self, flags: u32) -> [Segment; 1] {
        range(
            self.range,
            HOLE.start,
            (HOLE.end - HOLE.start) as u32,
            flags,
        )
    }
}

/// `blk-discard[:i]`: discards some sectors; those around them stay.
pub fn discard(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mut blk = Blk::open(machine, index(arguments)?, 0)?;
    if !blk.device.has(bit::DISCARD) {
        return Err(failure!("discard-not-offered"));
    }
    let area = Area::new(machine, &blk)?;
    area.write(machine, &mut blk)?;
    blk.request(machine, Operation::DISCARD, 0, &area.hole(0))?
        .check("discard")?;
    area.read(machine, &mut blk)?;
    area.expect_surroundings()?;
    let zero = expect(area.part(HOLE), HOLE.start, |_| 0).is_ok();
    match blk.request(machine, Operation::DISCARD, 0, &area.hole(UNMAP))? {
        Status::UNSUPPORTED => {}
        status => return Err(failure!("discard-with-unmap-flag status={status}")),
    }
    put(
        report,
        format_args!("sectors={} zero={zero}", HOLE.end - HOLE.start),
    );
    Ok(())
}

/// `blk-zeroes[:i]`: writes zeroes with and without unmapping; the sectors around them stay.
pub fn zeroes(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    const UNKNOWN_FLAG: u32 = 0x80;
    let mut blk = Blk::open(machine, index(arguments)?, 0)?;
    if !blk.device.has(bit::WRITE_ZEROES) {
        return Err(failure!("write-zeroes-not-offered"));
    }
    let area = Area::new(machine, &blk)?;
    for flags in [0, UNMAP] {
        area.write(machine, &mut blk)?;
        blk.request(machine, Operation::WRITE_ZEROES, 0, &area.hole(flags))?
            .check("write-zeroes")?;
        area.read(machine, &mut blk)?;
        area.expect_surroundings()?;
        expect(area.part(HOLE), HOLE.start, |_| 0)?;
    }
    match blk.request(
        machine,
        Operation::WRITE_ZEROES,
        0,
        &area.hole(UNKNOWN_FLAG),
    )? {
        Status::UNSUPPORTED => {}
        status => return Err(failure!("unknown-flag status={status}")),
    }
    put(
        report,
        format_args!(
            "sectors={} unmap={}",
            HOLE.end - HOLE.start,
            blk.info.zeroes_may_unmap
        ),
    );
    Ok(())
}

/// `blk-ro[:i]`: a read-only disk refuses to be written and stays as it is.
pub fn read_only(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mut blk = Blk::open(machine, index(arguments)?, 0)?;
    if !blk.device.has(bit::RO) {
        return Err(failure!("disk-is-writable"));
    }
    let sectors = blk.info.sectors.min(8);
    let buffer = machine.memory.allocate((sectors * SECTOR) as usize, 4096)?;
    let mut sums = [0; 2];
    let mut refusal = Status::OK;
    for sum in &mut sums {
        blk.request(machine, Operation::READ, 0, &[buffer.into()])?
            .check("read")?;
        let mut fnv = Fnv::new();
        // SAFETY: the read has completed.
        fnv.add(unsafe { buffer.bytes() });
        *sum = fnv.value();
        buffer.fill(0x5a);
        refusal = blk.request(machine, Operation::WRITE, 0, &[buffer.into()])?;
        if refusal == Status::OK {
            return Err(failure!("write-to-read-only-disk-succeeded"));
        }
    }
    if sums[0] != sums[1] {
        return Err(failure!("read-only-disk-changed"));
    }
    put(report, format_args!("status={refusal}"));
    Ok(())
}

/// `blk-oob[:i]`: requests beyond the end, of unknown kind or of odd length fail, and the disk goes on.
pub fn out_of_bounds(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    const UNKNOWN: Operation = Operation(0x99);
    let mut blk = Blk::open(machine, index(arguments)?, 0)?;
    let end = blk.info.sectors;
    let buffer = machine.memory.allocate(2 * SECTOR as usize, 4096)?;
    let two = [Segment::from(buffer)];
    let odd = [Segment::from(buffer.part(0, 100))];
    let cases: [(&str, Operation, u64, &[Segment], Status); 8] = [
        ("read-at-end", Operation::READ, end, &two, Status::IOERR),
        (
            "read-across-end",
            Operation::READ,
            end - 1,
            &two,
            Status::IOERR,
        ),
        (
            "write-across-end",
            Operation::WRITE,
            end - 1,
            &two,
            Status::IOERR,
        ),
        ("write-far", Operation::WRITE, u64::MAX, &two, Status::IOERR),
        (
            "read-overflow",
            Operation::READ,
            u64::MAX / SECTOR + 1,
            &two,
            Status::IOERR,
        ),
        ("read-odd-length", Operation::READ, 0, &odd, Status::IOERR),
        ("write-odd-length", Operation::WRITE, 0, &odd, Status::IOERR),
        ("unknown-request", UNKNOWN, 0, &two, Status::UNSUPPORTED),
    ];
    let writable = !blk.device.has(bit::RO);
    for (name, operation, sector, data, expected) in cases {
        let status = blk.request(machine, operation, sector, data)?;
        let refused_anyway = operation == Operation::WRITE && !writable && status != Status::OK;
        if status != expected && !refused_anyway {
            return Err(failure!("{name} status={status} expected={expected}"));
        }
    }
    let range_memory = machine.memory.allocate(16, 64)?;
    for (name, operation, bit) in [
        ("discard-across-end", Operation::DISCARD, bit::DISCARD),
        (
            "zeroes-across-end",
            Operation::WRITE_ZEROES,
            bit::WRITE_ZEROES,
        ),
    ] {
        if !blk.device.has(bit) {
            continue;
        }
        let status = blk.request(machine, operation, 0, &range(range_memory, end - 1, 8, 0))?;
        if status != Status::IOERR {
            return Err(failure!("{name} status={status} expected=ioerr"));
        }
    }
    blk.request(
        machine,
        Operation::READ,
        end - 1,
        &[buffer.part(0, 512).into()],
    )?
    .check("last-sector")?;
    put(report, format_args!("cases={}", cases.len()));
    Ok(())
}

/// `reset-dev[:i[:rounds]]`: resets the disk with requests in flight; what was written stays and it works again.
pub fn reset(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    const CHUNK: usize = 65536;
    const IN_FLIGHT: usize = 64;
    let rounds = arguments.number(1)?.unwrap_or(5);
    let index = index(arguments)?;
    let mut cut = 0;
    let mut blk = Blk::open(machine, index, 0)?;
    let area = Area::new(machine, &blk)?;
    area.write(machine, &mut blk)?;
    for _ in 0..rounds {
        let mark = machine.memory.mark();
        let sectors = blk.info.bytes() / CHUNK as u64 * (CHUNK as u64 / SECTOR);
        let memory = machine.memory.allocate(CHUNK * IN_FLIGHT, 4096)?;
        for queue in blk.each() {
            for number in 0..IN_FLIGHT {
                let sector = (number * CHUNK) as u64 / SECTOR % sectors.max(1);
                let data = memory.part(number * CHUNK, CHUNK);
                queue.submit(Operation::READ, sector, &[data.into()]);
            }
            queue.queue.publish();
        }
        blk.device.reset()?;
        for queue in blk.each() {
            while queue.complete()?.is_some() {}
            cut += queue.in_flight();
        }
        // After a reset the device may not write any more: the memory is ours again.
        drop(blk);
        machine.memory.release(mark);
        blk = Blk::open(machine, index, 0)?;
        area.read(machine, &mut blk)?;
        expect(area.data, 0, |index| pattern(SEED, index))?;
    }
    put(report, format_args!("rounds={rounds} cut={cut}"));
    Ok(())
}

/// `msix-mask[:i]`: a masked vector stays quiet and becomes pending; unmasked it arrives.
pub fn msix_mask(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mut blk = Blk::open(machine, index(arguments)?, 0)?;
    let Some((msix, entry)) = blk.device.msix.zip(blk.device.entry(0)) else {
        return Err(failure!("no-msix"));
    };
    let Some(vector) = blk.device.vector(machine, 0)? else {
        return Err(failure!("no-vector"));
    };
    let buffer = machine.memory.allocate(SECTOR as usize, 4096)?;
    blk.request(machine, Operation::READ, 0, &[buffer.into()])?
        .check("read")?;
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    let before = vector.count();
    msix.mask(entry, true);
    let queue = blk.queue()?;
    queue.queue.arm();
    queue.submit(Operation::READ, 0, &[buffer.into()]);
    queue.queue.publish();
    while !queue.queue.has_used() {
        if deadline.passed() {
            return Err(failure!("timeout"));
        }
        core::hint::spin_loop();
    }
    while !msix.pending(entry) {
        if deadline.passed() {
            return Err(failure!("masked-interrupt-not-pending"));
        }
    }
    if vector.count() != before {
        return Err(failure!("masked-interrupt-arrived"));
    }
    msix.mask(entry, false);
    crate::virtio::queue::wait_for_count(vector, before, deadline)?;
    if msix.pending(entry) {
        return Err(failure!("pending-bit-stays"));
    }
    put(
        report,
        format_args!(
            "vector={:#x} arrived={}",
            vector.number(),
            vector.count() - before
        ),
    );
    Ok(())
}
