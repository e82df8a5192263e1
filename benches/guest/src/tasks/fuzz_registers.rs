//! `fuzz-pio`, `fuzz-pci`, `fuzz-config`: random accesses to ports, configuration space and device registers.
//!
//! What would end the program by design is left out: resets, power off, panics, interrupts that aren't
//! interrupts, and DMA into the program. What was changed is put back, and then every device must still work.

use super::fuzz_queue::check_all;
use super::{Arguments, put};
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::{Dma, Mmio};
use crate::pci::{Address, Function, Space};
use crate::port;
use crate::random::Random;
use crate::serial;
use crate::virtio::pci as virtio_pci;

fn seed_and_count(arguments: &Arguments) -> Outcome<(u64, u64)> {
    Ok((
        arguments.number(0)?.unwrap_or(1),
        arguments.number(1)?.unwrap_or(1000),
    ))
}

/// `fuzz-pio:seed:n` with `size=` (the largest access): reads and writes of 1, 2 and 4 bytes on the legacy
/// devices' ports.
pub fn ports(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    const PORTS: [(u16, u16); 5] = [(0x60, 5), (0x70, 2), (0x3f8, 8), (0xcf8, 8), (0x505, 1)];
    let (seed, count) = seed_and_count(arguments)?;
    let mut random = Random::new(seed);
    let largest = arguments.number_of("size")?.unwrap_or(4) as u16;
    let (mut reads, mut writes) = (0, 0);
    for _ in 0..count {
        let (first, ports) = random.pick(&PORTS);
        let port = first + random.below(ports.into()) as u16;
        let bytes = random.pick(&[1, 2, 4]).min(largest);
        if random.one_in(2) {
            match bytes {
                1 => port::read8(port).into(),
                2 => port::read16(port).into(),
                _ => port::read32(port),
            };
            reads += 1;
        } else if let Some(value) = harmless(port, bytes, random.next() as u32) {
            match bytes {
                1 => port::write8(port, value as u8),
                2 => port::write16(port, value as u16),
                _ => port::write32(port, value),
            }
            writes += 1;
        }
    }
    put_ports_back();
    check_all(machine)?;
    put(
        report,
        format_args!("seed={seed} reads={reads} writes={writes}"),
    );
    Ok(())
}

/// The value changed so that it neither resets, panics nor reconfigures other devices; none if that's impossible.
fn harmless(first: u16, bytes: u16, value: u32) -> Option<u32> {
    const KEYBOARD_OUTPUT_PORT: u8 = 0xd1;
    let mut harmless = value.to_le_bytes();
    for (port, byte) in (first..first + bytes).zip(&mut harmless) {
        match port {
            // Commands that pulse the reset line, or write it.
            0x64 if *byte >= 0xf0 || *byte == KEYBOARD_OUTPUT_PORT => *byte = 0xaa,
            // The output port's bit 0 is the reset line.
            0x60 => *byte |= 1,
            // What is sent should stay readable.
            0x3f8 => *byte = b' ' + *byte % 95,
            0x500..=0x50f => *byte &= !7,
            // The reset control register, unless it is a part of the address register.
            0xcf9 if bytes < 4 || first != 0xcf8 => return None,
            // Configuration space has a task of its own.
            0xcfc..=0xcff => return None,
            _ => {}
        }
    }
    Some(u32::from_le_bytes(harmless))
}

/// COM1 prints again, the clock runs.
fn put_ports_back() {
    const LINE_CONTROL: u16 = serial::COM1 + 3;
    for (port, value) in [
        (LINE_CONTROL, 0x03),
        (serial::COM1 + 1, 0),
        (serial::COM1 + 4, 0x03),
        (0x70, 0x0a),
        (0x71, 0x26),
        (0x70, 0x0b),
        (0x71, 0x02),
    ] {
        port::write8(port, value);
    }
    serial::enable_fifo();
    serial::print(b"\n");
}

const FUNCTIONS: usize = 64;
const COMMAND: u16 = 0x04;
const BARS: core::ops::Range<u16> = 0x10..0x28;
const MSIX: u8 = 0x11;

/// What a function's registers held before.
#[derive(Clone, Copy)]
struct Saved {
    function: Function,
    command: u16,
    bars: [u32; 6],
}

struct SavedBus {
    functions: [Option<Saved>; FUNCTIONS],
}

impl SavedBus {
    /// Notes the registers of the virtio functions: those are the ones that will be written.
    fn new(machine: &mut Machine) -> Outcome<Self> {
        let mut functions = [None; FUNCTIONS];
        let virtio = machine
            .bus()?
            .functions()
            .filter(|f| virtio_pci::kind(*f).is_some());
        for (slot, function) in functions.iter_mut().zip(virtio) {
            *slot = Some(Saved {
                function,
                command: function.read16(COMMAND),
                bars: core::array::from_fn(|bar| function.read32(BARS.start + 4 * bar as u16)),
            });
        }
        Ok(Self { functions })
    }

    fn each(&self) -> impl Iterator<Item = &Saved> {
        self.functions.iter().flatten()
    }

    fn is_virtio(&self, address: Address) -> bool {
        self.each().any(|saved| saved.function.address == address)
    }

    /// Puts the registers back, by the ports, which nothing can have moved.
    fn restore(&self) {
        for Saved {
            function,
            command,
            bars,
        } in self.each()
        {
            let address = function.address;
            Space::Ports.write16(address, COMMAND, 0);
            for (register, value) in BARS.step_by(4).zip(bars) {
                Space::Ports.write32(address, register, *value);
            }
            for (id, register) in function.capabilities() {
                if id == MSIX {
                    Space::Ports.write16(address, register + 2, 0);
                }
            }
            Space::Ports.write16(address, COMMAND, *command);
        }
    }
}

/// `fuzz-pci:seed:n`: reads of configuration space anywhere, writes to virtio functions (BARs and command
/// included) and to where nothing is, by ECAM and ports, of every size.
pub fn pci(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let (seed, count) = seed_and_count(arguments)?;
    let mut random = Random::new(seed);
    let saved = SavedBus::new(machine)?;
    let spaces = [Space::Ports, machine.configuration_space()?];
    let (mut reads, mut writes) = (0, 0);
    for _ in 0..count {
        let address = Address {
            device: random.below(32) as u8,
            function: random.below(8) as u8,
        };
        let mut target = address;
        // Half of the accesses go where something is.
        if random.one_in(2)
            && let Some(chosen) = saved.each().nth(random.below(8) as usize)
        {
            target = chosen.function.address;
        }
        let space = random.pick(&spaces);
        let register = random.below(256) as u16;
        let value = random.next() as u32;
        let present = space.read32(target, 0) & 0xffff != 0xffff;
        if random.one_in(2) || present && !saved.is_virtio(target) {
            match random.below(3) {
                0 => space.read8(target, register).into(),
                1 => space.read16(target, register & !1).into(),
                _ => space.read32(target, register & !3),
            };
            reads += 1;
        } else {
            match random.below(3) {
                0 => space.write8(target, register, value as u8),
                1 => space.write16(target, register & !1, value as u16),
                _ => space.write32(target, register & !3, value),
            }
            writes += 1;
        }
    }
    saved.restore();
    check_all(machine)?;
    put(
        report,
        format_args!("seed={seed} reads={reads} writes={writes}"),
    );
    Ok(())
}

/// A device's memory BAR and the areas in it that must not be written at random.
struct Target {
    registers: Mmio,
    common: Option<(u64, u64)>,
    table: Option<(u64, u64)>,
}

const TARGETS: usize = 128;

/// `fuzz-config:seed:n`: accesses of 1 to 8 bytes at any offset, aligned or not, to every virtio function's BARs,
/// and reads of ECAM.
pub fn registers(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let (seed, count) = seed_and_count(arguments)?;
    let mut random = Random::new(seed);
    let saved = SavedBus::new(machine)?;
    let scratch = machine.memory.allocate(64 << 10, 4096)?;
    let mut targets = [const { None }; TARGETS];
    let mut found = 0;
    for saved in saved.each() {
        saved.function.enable();
        found += find_targets(machine, saved.function, &mut targets[found..])?;
    }
    let ecam = match machine.configuration_space()? {
        Space::Ecam(memory) => Some(memory),
        Space::Ports => None,
    };
    let (mut reads, mut writes) = (0, 0);
    for _ in 0..count {
        let bytes = random.pick(&[1, 2, 4, 8]);
        if let Some(ecam) = ecam
            && random.one_in(8)
        {
            ecam.read_any(random.below(ecam.size() - 8), bytes);
            reads += 1;
            continue;
        }
        let Some(Some(target)) = targets.get(random.below(found.max(1) as u64) as usize) else {
            break;
        };
        // Most registers are near the start of an area.
        let reach = random
            .pick(&[64, 4096, u64::MAX])
            .min(target.registers.size() - 8);
        let offset = match target.common {
            Some((start, _)) if random.one_in(3) => start + random.below(64),
            _ => random.below(reach),
        };
        if random.one_in(2) {
            target.registers.read_any(offset, bytes);
            reads += 1;
        } else {
            write(target, offset, bytes, scratch, &mut random);
            writes += 1;
        }
    }
    saved.restore();
    check_all(machine)?;
    put(
        report,
        format_args!("seed={seed} reads={reads} writes={writes} bars={found}"),
    );
    Ok(())
}

fn find_targets(
    machine: &mut Machine,
    function: Function,
    targets: &mut [Option<Target>],
) -> Outcome<usize> {
    const COMMON: u8 = 1;
    let mut count = 0;
    let mut index = 0;
    while index < 6 {
        let Some(bar) = function.bar(index) else {
            index += 1;
            continue;
        };
        let mut target = Target {
            registers: machine.memory.mmio(bar.address, bar.size)?,
            common: None,
            table: None,
        };
        for (id, register) in function.capabilities() {
            if id == virtio_pci::CAPABILITY_VENDOR
                && function.read8(register + 3) == COMMON
                && function.read8(register + 4) == index
            {
                let start = u64::from(function.read32(register + 8));
                target.common = Some((start, start + u64::from(function.read32(register + 12))));
            }
            if id == MSIX && function.read32(register + 4) & 7 == u32::from(index) {
                let start = u64::from(function.read32(register + 4) & !7);
                let entries = u64::from(function.read16(register + 2) & 0x7ff) + 1;
                target.table = Some((start, start + 16 * entries));
            }
        }
        if let Some(slot) = targets.get_mut(count) {
            *slot = Some(target);
            count += 1;
        }
        index += if bar.wide { 2 } else { 1 };
    }
    Ok(count)
}

fn touches(area: Option<(u64, u64)>, offset: u64, bytes: u64) -> bool {
    area.is_some_and(|(start, end)| offset < end && offset + bytes > start)
}

fn write(target: &Target, offset: u64, bytes: u64, scratch: Dma, random: &mut Random) {
    /// Offsets of the queue addresses in the common area.
    const ADDRESSES: core::ops::Range<u64> = 0x20..0x38;
    let registers = target.registers;
    let addresses = target
        .common
        .map(|(start, _)| (start + ADDRESSES.start, start + ADDRESSES.end));
    if touches(addresses, offset, bytes) {
        // Rings lie in the scratch area, or where no RAM is.
        let offset = offset & !3;
        let value = match offset & 4 {
            0 => scratch.address() as u32 + random.below(scratch.size() as u64 - 32768) as u32,
            _ => random.pick(&[0, 0, 0x8000_0000]),
        };
        if touches(addresses, offset, 4) {
            registers.write32(offset, value);
        }
    } else if touches(target.table, offset, bytes) {
        // Messages stay ordinary interrupts of vectors that only count.
        let offset = offset & !3;
        let value = match offset >> 2 & 3 {
            0 => 0xfee0_0000 | random.next() as u32 & 0xc,
            1 => 0,
            2 => 0x30 + random.below(0xc0) as u32,
            _ => random.next() as u32,
        };
        registers.write32(offset, value);
    } else {
        let value = match random.below(4) {
            0 => random.next(),
            1 => 0,
            2 => random.below(16),
            _ => u64::MAX,
        };
        registers.write_any(offset, bytes, value);
    }
}
