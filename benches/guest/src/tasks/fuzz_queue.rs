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
    let oddity = random.pick(&[2, 10, 100, 1000]);
    let mut garbage = Garbage {
        scratch,
        random,
        oddity,
    };
    let mut queues = [const { None }; QUEUES_MAX as usize];
    for (number, slot) in queues.iter_mut().enumerate() {
        if device.transport.queue_max(number as u16) == 0 {
            break;
        }
        let size = garbage.random.pick(&[1, 2, 8, QUEUE_SIZE]);
        let queue = device.queue(machine, number as u16, size)?;
        garbage.fill_scratch();
        garbage.fill(&queue);
        *slot = Some(queue);
    }
    // A device may refuse to run at all with this.
    let mut needs_reset = device.start().is_err();
    for _ in 0..garbage.random.below(4) + 1 {
        for queue in queues.iter().flatten() {
            garbage.move_index(queue);
            queue.kick();
        }
        let until = crate::clock::now() + WAIT_US * machine.clock.khz() / 1000;
        while crate::clock::now() < until {
            core::hint::spin_loop();
        }
        if garbage.random.one_in(3) {
            for queue in queues.iter().flatten() {
                garbage.fill(queue);
            }
        }
        needs_reset |= device.needs_reset();
    }
    device.reset()?;
    Ok(needs_reset)
}

/// Where garbage comes from, and how much of it there is: one value in `oddity` is impossible, the rest could be
/// a driver's.
struct Garbage<'a> {
    scratch: Dma,
    random: &'a mut Random,
    oddity: u64,
}

const DESCRIPTOR_BYTES: usize = size_of::<Descriptor>();

impl Garbage<'_> {
    fn odd(&mut self) -> bool {
        self.random.one_in(self.oddity)
    }

    /// Puts what might be request headers into the scratch area.
    fn fill_scratch(&mut self) {
        for _ in 0..256 {
            let offset = self.random.below(SCRATCH_BYTES as u64 / 16) as usize * 16;
            let kind = self
                .random
                .pick(&[0u32, 1, 4, 8, 11, 13, 0x99, 0xffff_ffff]);
            let anywhere = self.random.below(1 << 16);
            let sector = self
                .random
                .pick(&[0, 1, anywhere, u64::MAX, u64::MAX / 512]);
            self.scratch.write(offset, kind);
            self.scratch.write(offset + 8, sector);
        }
    }

    /// An address and a length that stay inside of `area`.
    fn inside(&mut self, area: Dma) -> (u64, u32) {
        let offset = self.random.below(area.size() as u64);
        let most = area.size() as u64 - offset;
        let anything = self.random.below(1 << 16);
        let usual = [1, 16, 16, 17, 44, 512, 4096, anything];
        (
            area.address() + offset,
            self.random.pick(&usual).min(most) as u32,
        )
    }

    fn address_and_length(&mut self, rings: Dma) -> (u64, u32) {
        /// Longer than any RAM below 4 GiB.
        const HUGE: u32 = 0xf000_0000;
        /// Device registers.
        const REGISTERS: [u64; 4] = [0xfee0_0000, 0xfec0_0000, 0xe800_0000, 0xc000_0000];
        if !self.odd() {
            return self.inside(self.scratch);
        }
        let length = self.random.next() as u32;
        match self.random.below(6) {
            0 => self.inside(rings),
            1 => (self.scratch.address(), HUGE | length),
            2 => (u64::MAX - self.random.below(1 << 16), length),
            3 => (self.random.next() | 1 << 60, length >> 12),
            4 => (self.inside(self.scratch).0, 0),
            _ => (self.random.pick(&REGISTERS), 4096),
        }
    }

    /// A descriptor for the place `number` of a table of `size`.
    fn descriptor(&mut self, rings: Dma, number: usize, size: u16) -> Descriptor {
        const FLAGS: [u16; 6] = [0, 1, 1, 2, 3, 3];
        let (address, length) = self.address_and_length(rings);
        let (mut flags, mut next) = (self.random.pick(&FLAGS), (number as u16 + 1) % size);
        if self.odd() {
            flags = self.random.next() as u16;
        } else if self.odd() {
            flags = self.random.below(8) as u16;
        }
        if self.odd() {
            next = self.random.next() as u16;
        } else if self.odd() {
            next = self.random.below(size.into()) as u16;
        }
        if flags & 4 != 0 && !self.odd() {
            // A table in the scratch area, of a proper length.
            let (at, _) = self.inside(self.scratch.part(0, SCRATCH_BYTES / 2));
            return Descriptor {
                address: at & !15,
                length: 16 * 8,
                flags: 4,
                next,
            };
        }
        Descriptor {
            address,
            length,
            flags,
            next,
        }
    }

    /// Fills descriptor table and available ring, and part of the scratch area with tables.
    fn fill(&mut self, queue: &Queue) {
        let (size, rings) = (queue.size(), queue.memory());
        for number in 0..usize::from(size) {
            let descriptor = self.descriptor(rings, number, size);
            rings.write(number * DESCRIPTOR_BYTES, descriptor);
        }
        for _ in 0..16 {
            let at = self.random.below((SCRATCH_BYTES / DESCRIPTOR_BYTES) as u64) as usize;
            let descriptor = self.descriptor(rings, at % 8, 8);
            self.scratch.write(at * DESCRIPTOR_BYTES, descriptor);
        }
        let available = queue.available_offset();
        for slot in 0..usize::from(size) {
            let head = match self.odd() {
                true => self.random.next() as u16,
                false => self.random.below(size.into()) as u16,
            };
            rings.write(available + 4 + 2 * slot, head);
        }
    }

    /// Moves the available index: a little, by the queue's size, or anywhere. And its flags.
    fn move_index(&mut self, queue: &Queue) {
        let at = queue.available_offset() + 2;
        let index: u16 = queue.memory().read(at);
        let mut step = self.random.below(u64::from(queue.size()) / 2 + 1) as u16;
        if self.odd() {
            let anywhere = self.random.next() as u16;
            step = self
                .random
                .pick(&[queue.size(), queue.size() + 1, u16::MAX, anywhere]);
        }
        queue.memory().write(at, index.wrapping_add(step));
        let flags = if self.odd() {
            self.random.next() as u16
        } else {
            0
        };
        queue.memory().write(at - 2, flags);
    }
}
