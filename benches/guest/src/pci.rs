//! PCI bus 0: configuration space by ECAM and by the two old ports, BARs, capabilities, MSI-X.

use crate::acpi::Ecam;
use crate::failure;
use crate::interrupts::Vector;
use crate::line::Outcome;
use crate::memory::{Memory, Mmio};
use crate::port;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const FUNCTION_BYTES: u64 = 4096;
const BUS_BYTES: u64 = 1 << 20;
const FUNCTIONS: usize = 64;

const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const CLASS: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0e;
const BAR0: u16 = 0x10;
const SUBSYSTEM: u16 = 0x2c;
const CAPABILITIES: u16 = 0x34;
const MULTIFUNCTION: u8 = 0x80;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITY_MSIX: u8 = 0x11;

/// A device and function number on bus 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub device: u8,
    pub function: u8,
}

impl Address {
    /// Device and function as one number, as in a requester ID on bus 0.
    pub fn number(self) -> u16 {
        u16::from(self.device) << 3 | u16::from(self.function)
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}

/// A way to reach configuration space.
#[derive(Clone, Copy)]
pub enum Space {
    /// In memory, one page a function.
    Ecam(Mmio),
    /// By the ports 0xcf8 and 0xcfc; registers up to 0xff.
    Ports,
}

impl Space {
    /// The ECAM that MCFG describes, for bus 0.
    pub fn ecam(memory: &mut Memory, ecam: Ecam) -> Outcome<Self> {
        if ecam.first_bus != 0 {
            return Err(failure!(
                "ecam-without-bus-0 first={} last={}",
                ecam.first_bus,
                ecam.last_bus
            ));
        }
        Ok(Space::Ecam(memory.mmio(ecam.address, BUS_BYTES)?))
    }

    fn select(address: Address, register: u16) {
        let address = ENABLE | u32::from(address.number()) << 8 | u32::from(register & 0xfc);
        port::write32(ADDRESS_PORT, address);
    }

    fn offset(address: Address, register: u16) -> u64 {
        u64::from(address.number()) * FUNCTION_BYTES + u64::from(register)
    }

    /// Reads one byte.
    pub fn read8(self, address: Address, register: u16) -> u8 {
        match self {
            Space::Ecam(memory) => memory.read8(Self::offset(address, register)),
            Space::Ports => {
                Self::select(address, register);
                port::read8(DATA_PORT + (register & 3))
            }
        }
    }

    /// Reads an aligned word.
    pub fn read16(self, address: Address, register: u16) -> u16 {
        match self {
            Space::Ecam(memory) => memory.read16(Self::offset(address, register)),
            Space::Ports => {
                Self::select(address, register);
                port::read16(DATA_PORT + (register & 2))
            }
        }
    }

    /// Reads an aligned double word.
    pub fn read32(self, address: Address, register: u16) -> u32 {
        match self {
            Space::Ecam(memory) => memory.read32(Self::offset(address, register)),
            Space::Ports => {
                Self::select(address, register);
                port::read32(DATA_PORT)
            }
        }
    }

    /// Writes one byte.
    pub fn write8(self, address: Address, register: u16, value: u8) {
        match self {
            Space::Ecam(memory) => memory.write8(Self::offset(address, register), value),
            Space::Ports => {
                Self::select(address, register);
                port::write8(DATA_PORT + (register & 3), value);
            }
        }
    }

    /// Writes an aligned word.
    pub fn write16(self, address: Address, register: u16, value: u16) {
        match self {
            Space::Ecam(memory) => memory.write16(Self::offset(address, register), value),
            Space::Ports => {
                Self::select(address, register);
                port::write16(DATA_PORT + (register & 2), value);
            }
        }
    }

    /// Writes an aligned double word.
    pub fn write32(self, address: Address, register: u16, value: u32) {
        match self {
            Space::Ecam(memory) => memory.write32(Self::offset(address, register), value),
            Space::Ports => {
                Self::select(address, register);
                port::write32(DATA_PORT, value);
            }
        }
    }
}

/// A function that answered.
#[derive(Clone, Copy)]
pub struct Function {
    pub address: Address,
    pub vendor: u16,
    pub device: u16,
    /// Class, subclass, interface, revision.
    pub class: u32,
    pub subsystem: u16,
    space: Space,
}

/// A memory BAR.
#[derive(Clone, Copy)]
pub struct Bar {
    pub address: u64,
    pub size: u64,
    pub wide: bool,
}

/// The functions of bus 0.
pub struct Bus {
    functions: [Option<Function>; FUNCTIONS],
    count: usize,
}

impl Bus {
    /// Asks every device number for its functions.
    pub fn scan(space: Space) -> Self {
        let mut bus = Self {
            functions: [None; FUNCTIONS],
            count: 0,
        };
        for device in 0..32 {
            for function in 0..8 {
                let Some(found) = Function::read(space, Address { device, function }) else {
                    if function == 0 {
                        break;
                    }
                    continue;
                };
                if bus.count < FUNCTIONS {
                    bus.functions[bus.count] = Some(found);
                    bus.count += 1;
                }
                if function == 0 && space.read8(found.address, HEADER_TYPE) & MULTIFUNCTION == 0 {
                    break;
                }
            }
        }
        bus
    }

    /// What was found, by address.
    pub fn functions(&self) -> impl Iterator<Item = Function> + '_ {
        self.functions[..self.count].iter().flatten().copied()
    }
}

impl Function {
    /// The function at an address, if there is one.
    pub fn read(space: Space, address: Address) -> Option<Self> {
        let id = space.read32(address, 0);
        if id == 0 || id & 0xffff == 0xffff {
            return None;
        }
        Some(Self {
            address,
            vendor: id as u16,
            device: (id >> 16) as u16,
            class: space.read32(address, CLASS),
            subsystem: space.read16(address, SUBSYSTEM + 2),
            space,
        })
    }

    /// Reads a byte of its configuration space.
    pub fn read8(self, register: u16) -> u8 {
        self.space.read8(self.address, register)
    }

    /// Reads a word of its configuration space.
    pub fn read16(self, register: u16) -> u16 {
        self.space.read16(self.address, register)
    }

    /// Reads a double word of its configuration space.
    pub fn read32(self, register: u16) -> u32 {
        self.space.read32(self.address, register)
    }

    /// Writes a word of its configuration space.
    pub fn write16(self, register: u16, value: u16) {
        self.space.write16(self.address, register, value);
    }

    /// Lets it decode memory and master the bus.
    pub fn enable(self) {
        let command = self.read16(COMMAND);
        let wanted = command | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX;
        if command != wanted {
            self.write16(COMMAND, wanted);
        }
    }

    /// The address of a memory BAR, as it is.
    pub fn bar_address(self, index: u8) -> Option<u64> {
        let register = BAR0 + 4 * u16::from(index);
        let low = self.read32(register);
        if low & 1 != 0 {
            return None;
        }
        let high = if low >> 1 & 3 == 2 {
            self.read32(register + 4)
        } else {
            0
        };
        let address = u64::from(high) << 32 | u64::from(low & !0xf);
        (address != 0).then_some(address)
    }

    /// Puts a memory BAR elsewhere, with decoding off meanwhile.
    pub fn move_bar(self, index: u8, address: u64) {
        let register = BAR0 + 4 * u16::from(index);
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command & !COMMAND_MEMORY);
        self.space.write32(self.address, register, address as u32);
        if self.read32(register) >> 1 & 3 == 2 {
            let high = (address >> 32) as u32;
            self.space.write32(self.address, register + 4, high);
        }
        self.write16(COMMAND, command);
    }

    /// A memory BAR and its size, found out with decoding off as the specification asks.
    pub fn bar(self, index: u8) -> Option<Bar> {
        let register = BAR0 + 4 * u16::from(index);
        let low = self.read32(register);
        if low & 1 != 0 {
            return None;
        }
        let wide = low >> 1 & 3 == 2;
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command & !COMMAND_MEMORY);
        let mask = |register, value| {
            self.space.write32(self.address, register, u32::MAX);
            let mask = self.read32(register);
            self.space.write32(self.address, register, value);
            mask
        };
        let (mut sizes, mut address) =
            (u64::from(mask(register, low) & !0xf), u64::from(low & !0xf));
        if wide {
            let high = self.read32(register + 4);
            sizes |= u64::from(mask(register + 4, high)) << 32;
            address |= u64::from(high) << 32;
        } else if sizes != 0 {
            sizes |= 0xffff_ffff << 32;
        }
        self.write16(COMMAND, command);
        (sizes != 0).then(|| Bar {
            address,
            size: sizes.wrapping_neg(),
            wide,
        })
    }

    /// Its capabilities: identifier and register of each. The list is bounded against loops.
    pub fn capabilities(self) -> impl Iterator<Item = (u8, u16)> {
        let mut next = match self.read16(STATUS) & STATUS_CAPABILITIES {
            0 => 0,
            _ => self.read8(CAPABILITIES) & !3,
        };
        (0..48).map_while(move |_| {
            (next != 0).then(|| {
                let register = u16::from(next);
                let header = self.read16(register);
                next = (header >> 8) as u8 & !3;
                (header as u8, register)
            })
        })
    }
}

/// A function's MSI-X table.
#[derive(Clone, Copy)]
pub struct MsiX {
    function: Function,
    register: u16,
    table: Mmio,
    pending: Mmio,
    entries: u16,
}

impl MsiX {
    const ENABLE: u16 = 1 << 15;
    const FUNCTION_MASK: u16 = 1 << 14;
    const ENTRY_BYTES: u64 = 16;
    const ENTRY_MASKED: u32 = 1;
    const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

    /// Finds it. None when the function has none.
    pub fn new(function: Function, memory: &mut Memory) -> Outcome<Option<Self>> {
        let Some((_, register)) = function
            .capabilities()
            .find(|(id, _)| *id == CAPABILITY_MSIX)
        else {
            return Ok(None);
        };
        let entries = (function.read16(register + 2) & 0x7ff) + 1;
        let mut area = |register, bytes| {
            let place = function.read32(register);
            let Some(bar) = function.bar_address((place & 7) as u8) else {
                return Err(failure!(
                    "msix-bar-unassigned function={}",
                    function.address
                ));
            };
            memory.mmio(bar + u64::from(place & !7), bytes)
        };
        let table = area(register + 4, u64::from(entries) * Self::ENTRY_BYTES)?;
        let pending = area(register + 8, u64::from(entries).div_ceil(64) * 8)?;
        Ok(Some(Self {
            function,
            register,
            table,
            pending,
            entries,
        }))
    }

    /// How many vectors the table has.
    pub fn entries(self) -> u16 {
        self.entries
    }

    /// Turns message interrupts on; every entry keeps its mask.
    pub fn enable(self) {
        let control = self.function.read16(self.register + 2);
        self.function.write16(
            self.register + 2,
            (control | Self::ENABLE) & !Self::FUNCTION_MASK,
        );
    }

    /// Sends an entry's interrupts to a vector of the processor `apic_id`, unmasked.
    pub fn route(self, entry: u16, vector: Vector, apic_id: u32) {
        let at = u64::from(entry) * Self::ENTRY_BYTES;
        self.table
            .write32(at, Self::MESSAGE_ADDRESS | apic_id << 12);
        self.table.write32(at + 4, 0);
        self.table.write32(at + 8, vector.number().into());
        self.mask(entry, false);
    }

    /// Masks or unmasks an entry.
    pub fn mask(self, entry: u16, masked: bool) {
        let at = u64::from(entry) * Self::ENTRY_BYTES + 12;
        self.table
            .write32(at, if masked { Self::ENTRY_MASKED } else { 0 });
    }

    /// Whether an interrupt waits for its entry to be unmasked.
    pub fn pending(self, entry: u16) -> bool {
        let word = self.pending.read32(u64::from(entry / 32) * 4);
        word >> (entry % 32) & 1 != 0
    }
}
