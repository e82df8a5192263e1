//! `fuzz-queue`: garbage in virtqueues. Whatever a device makes of it, it must come back after a reset.
//!
//! Garbage never points into memory that this program lives in: it points into a scratch area, into the rings
//! themselves, or to where no RAM is. The disks' content does not survive.

use super::{Arguments, put};
use crate::failure;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::Random;
use crate::say;
use crate::virtio::blk::{Blk, Operation};
use crate::virtio::queue::{Descriptor, Queue};
use crate::virtio::{Device, Kind, Place, feature};

const SCRATCH_BYTES: usize = 1 << 20;
const QUEUES_MAX: u16 = 4;
const QUEUE_SIZE: u16 = 64;
const WAIT_US: u64 = 300;

/// Feature bits that change what a queue means: packed rings, in-order, one's own reset, notification data.
const UNSUPPORTED_HERE: u64 = 0b1111_1111 << 33;

/// `fuzz-queue:seed:n`: `n` rounds of garbage on every virtio device.
pub fn queues(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let seed = arguments.number(0)?.unwrap_or(1);
    let rounds = arguments.number(1)?.unwrap_or(100);
    let mut random = Random::new(seed);
    let scratch = machine.memory.allocate(SCRATCH_BYTES, 4096)?;
    let (mut devices, mut gave_up) = (0, 0);
    while let Some((kind, place)) = machine.virtio(devices)? {
        for round in 0..rounds {
            let mark = machine.memory.mark();
            match attack(machine, place, scratch, &mut random) {
                Ok(needed_reset) => gave_up += u64::from(needed_reset),
                Err(failure) => {
                    return Err(failure!(
                        "{} kind={kind} place={place} round={round}",
                        failure.reason()
                    ));
                }
            }
            machine.memory.release(mark);
        }
        say!("# fuzz-queue {kind} {place}: {rounds} rounds");
        devices += 1;
    }
    check_all(machine)?;
    put(
        report,
        format_args!("seed={seed} rounds={rounds} devices={devices} needs_reset={gave_up}"),
    );
    Ok(())
}

/// Every virtio device can be brought up, and disks can be read.
pub fn check_all(machine: &mut Machine) -> Outcome {
    let (mut index, mut disks) = (0, 0);
    while let Some((kind, place)) = machine.virtio(index)? {
        let mark = machine.memory.mark();
        let outcome = if kind == Kind::BLOCK {
            disks += 1;
            read_a_sector(machine, disks - 1)
        } else {
            Device::open_at(machine, place, 0).and_then(|device| {
                let _queue = device.queue(machine, 0, QUEUE_SIZE)?;
                device.start()
            })
        };
        machine.memory.release(mark);
        if let Err(failure) = outcome {
            return Err(failure!(
                "{} afterwards kind={kind} place={place}",
                failure.reason()
            ));
        }
        index += 1;
    }
    Ok(())
}

fn read_a_sector(machine: &mut Machine, index: usize) -> Outcome {
    let mut blk = Blk::open(machine, index, 0)?;
    let buffer = machine.memory.allocate(512, 512)?;
    blk.request(machine, Operation::READ, 0, &[buffer.into()])?
        .check("read")
}

/// One round. True when the device asked for a reset.
fn attack(machine: &mut Machine, place: Place, scratch: Dma, random: &mut Random) -> Outcome<bool> {
    machine.options.poll = random.one_in(2);
    machine.options.event_idx = random.one_in(2);
    let wanted = random.next() & !UNSUPPORTED_HERE | random.pick(&[0, feature::INDIRECT]);
    let device = Device::open_at(machine, place, wanted)?;
    let mut queues = [const { None }; QUEUES_MAX as usize];
    for (number, slot) in queues.iter_mut().enumerate() {
        if device.transport.queue_max(number as u16) == 0 {
            break;
        }
        let size = random.pick(&[1, 2, 8, QUEUE_SIZE]);
        let queue = device.queue(machine, number as u16, size)?;
        fill_scratch(scratch, random);
        garble(&queue, scratch, random);
        *slot = Some(queue);
    }
    // A device may refuse to run at all with this.
    let mut needs_reset = device.start().is_err();
    for _ in 0..random.below(4) + 1 {
        for queue in queues.iter().flatten() {
            jump(queue, random);
            queue.kick();
        }
        let until = crate::clock::now() + WAIT_US * machine.clock.khz() / 1000;
        while crate::clock::now() < until {
            core::hint::spin_loop();
        }
        if random.one_in(3) {
            for queue in queues.iter().flatten() {
                garble(queue, scratch, random);
            }
        }
        needs_reset |= device.needs_reset();
    }
    device.reset()?;
    Ok(needs_reset)
}

/// Puts what might be request headers into the scratch area.
fn fill_scratch(scratch: Dma, random: &mut Random) {
    for _ in 0..64 {
        let offset = random.below(SCRATCH_BYTES as u64 / 16) as usize * 16;
        let kind = random.pick(&[0u32, 1, 4, 8, 11, 13, 0x99, 0xffff_ffff]);
        let anywhere = random.below(1 << 20);
        let sector = random.pick(&[0, 1, anywhere, u64::MAX, u64::MAX / 512]);
        scratch.write(offset.min(SCRATCH_BYTES - 16), kind);
        scratch.write(offset.min(SCRATCH_BYTES - 16) + 8, sector);
    }
}

/// An address and a length that stay inside of `area`.
fn inside(area: Dma, random: &mut Random) -> (u64, u32) {
    let offset = random.below(area.size() as u64);
    let most = area.size() as u64 - offset;
    let anything = random.below(1 << 16);
    let length = random.pick(&[0, 1, 16, 17, 512, 4096, anything]).min(most);
    (area.address() + offset, length as u32)
}

fn address_and_length(scratch: Dma, rings: Dma, random: &mut Random) -> (u64, u32) {
    /// Longer than any RAM below 4 GiB.
    const HUGE: u32 = 0xf000_0000;
    match random.below(10) {
        0..=4 => inside(scratch, random),
        5 => inside(rings, random),
        6 => (scratch.address(), HUGE | random.next() as u32),
        7 => (u64::MAX - random.below(1 << 16), random.next() as u32),
        8 => (random.next() | 1 << 60, random.below(1 << 20) as u32),
        // Device registers.
        _ => (
            random.pick(&[
                0xfee0_0000,
                0xfec0_0000,
                0xe800_0000,
                0xc000_0000,
                0xffff_f000,
            ]),
            4096,
        ),
    }
}

fn descriptor(scratch: Dma, rings: Dma, size: u16, random: &mut Random) -> Descriptor {
    let (address, length) = address_and_length(scratch, rings, random);
    let flags = match random.below(4) {
        0 => random.next() as u16,
        _ => random.below(8) as u16,
    };
    let next = match random.below(4) {
        0 => random.next() as u16,
        _ => random.below(size.into()) as u16,
    };
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

/// Fills descriptor table and available ring with garbage, and part of the scratch area with tables.
fn garble(queue: &Queue, scratch: Dma, random: &mut Random) {
    const BYTES: usize = size_of::<Descriptor>();
    let (size, rings) = (queue.size(), queue.memory());
    for number in 0..usize::from(size) {
        rings.write(number * BYTES, descriptor(scratch, rings, size, random));
    }
    for _ in 0..16 {
        let at = random.below((SCRATCH_BYTES / BYTES) as u64) as usize;
        scratch.write(at * BYTES, descriptor(scratch, rings, size, random));
    }
    let available = queue.available_offset();
    for slot in 0..usize::from(size) {
        let head = match random.below(4) {
            0 => random.next() as u16,
            _ => random.below(size.into()) as u16,
        };
        rings.write(available + 4 + 2 * slot, head);
    }
}

/// Moves the available index: a little, by the queue's size, or anywhere.
fn jump(queue: &Queue, random: &mut Random) {
    let at = queue.available_offset() + 2;
    let index: u16 = queue.memory().read(at);
    let step = match random.below(8) {
        0 => random.next() as u16,
        1 => queue.size() + 1,
        2 => queue.size(),
        _ => random.below(u64::from(queue.size()) + 1) as u16,
    };
    queue.memory().write(at, index.wrapping_add(step));
    let flags = random.next() as u16;
    queue.memory().write(at - 2, random.pick(&[0, 1, flags]));
}
