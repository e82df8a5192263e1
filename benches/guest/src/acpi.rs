//! The ACPI tables this program needs: FADT (power off, reset), MADT (processors, IOAPIC), MCFG (ECAM), and
//! `\_S5_` in the DSDT. ACPI 6.5, chapter 5.

use crate::failure;
use crate::line::Outcome;
use crate::memory::Memory;
use crate::port;
use crate::start::Start;

const HEADER_BYTES: usize = 36;
const PROCESSORS: usize = 256;
const IOAPIC_DEFAULT: u64 = 0xfec0_0000;

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A generic address structure: one register, in I/O or memory space.
#[derive(Clone, Copy)]
pub struct Register {
    space: u8,
    address: u64,
}

impl Register {
    fn parse(table: &[u8], at: usize) -> Option<Self> {
        let register = Self {
            space: *table.get(at)?,
            address: le64(table, at + 4)?,
        };
        (register.address != 0 && register.space <= 1).then_some(register)
    }

    /// The register's I/O port, if it is one.
    pub fn port(self) -> Option<u16> {
        (self.space == 1).then_some(self.address as u16)
    }

    /// Writes one byte.
    pub fn write8(self, memory: &mut Memory, value: u8) -> Outcome {
        match self.port() {
            Some(port) => port::write8(port, value),
            None => memory.mmio(self.address, 1)?.write8(0, value),
        }
        Ok(())
    }

    /// Writes two bytes.
    pub fn write16(self, memory: &mut Memory, value: u16) -> Outcome {
        match self.port() {
            Some(port) => port::write16(port, value),
            None => memory.mmio(self.address, 2)?.write16(0, value),
        }
        Ok(())
    }
}

/// The fixed hardware.
#[derive(Clone, Copy, Default)]
pub struct Fixed {
    pub hardware_reduced: bool,
    pub sleep_control: Option<Register>,
    pub pm1a_control: Option<Register>,
    pub reset: Option<(Register, u8)>,
    /// SLP_TYP of `\_S5_`.
    pub sleep_type: Option<u8>,
}

/// PCI configuration space in memory.
#[derive(Clone, Copy)]
pub struct Ecam {
    pub address: u64,
    pub first_bus: u8,
    pub last_bus: u8,
}

/// What the tables say.
pub struct Acpi {
    pub fixed: Fixed,
    pub ecam: Option<Ecam>,
    pub ioapic: u64,
    ioapic_gsi_base: u32,
    apic_ids: [u32; PROCESSORS],
    processors: usize,
    /// GSI of each legacy interrupt, and its MPS INTI flags.
    overrides: [(u32, u16); 16],
}

impl Acpi {
    /// Reads the tables.
    pub fn read(start: &Start, memory: &mut Memory) -> Outcome<Self> {
        let mut acpi = Self {
            fixed: Fixed::default(),
            ecam: None,
            ioapic: IOAPIC_DEFAULT,
            ioapic_gsi_base: 0,
            apic_ids: [0; PROCESSORS],
            processors: 0,
            overrides: core::array::from_fn(|irq| (irq as u32, 0)),
        };
        let rsdp = find_rsdp(start, memory)?;
        let xsdt_address = le64(rsdp, 24).unwrap_or(0);
        let (root, entry_bytes) = if rsdp[15] >= 2 && xsdt_address != 0 {
            (table(memory, xsdt_address)?, 8)
        } else {
            (table(memory, le32(rsdp, 16).unwrap_or(0).into())?, 4)
        };
        for entry in root[HEADER_BYTES..].chunks_exact(entry_bytes) {
            let address = match entry_bytes {
                8 => le64(entry, 0).unwrap_or(0),
                _ => le32(entry, 0).unwrap_or(0).into(),
            };
            let table = table(memory, address)?;
            match &table[..4] {
                b"FACP" => acpi.read_fadt(memory, table)?,
                b"APIC" => acpi.read_madt(table),
                b"MCFG" => acpi.read_mcfg(table),
                _ => {}
            }
        }
        Ok(acpi)
    }

    /// LAPIC IDs of the enabled processors.
    pub fn apic_ids(&self) -> &[u32] {
        &self.apic_ids[..self.processors]
    }

    /// The IOAPIC's pin of a legacy interrupt, and its flags (bits 0–1 polarity, 2–3 trigger).
    pub fn legacy_interrupt(&self, irq: u8) -> (u32, u16) {
        let (gsi, flags) = self
            .overrides
            .get(usize::from(irq))
            .copied()
            .unwrap_or((irq.into(), 0));
        (gsi - self.ioapic_gsi_base.min(gsi), flags)
    }

    fn read_fadt(&mut self, memory: &mut Memory, fadt: &[u8]) -> Outcome {
        const RESET_REGISTER_SUPPORTED: u32 = 1 << 10;
        const HARDWARE_REDUCED: u32 = 1 << 20;
        let flags = le32(fadt, 112).unwrap_or(0);
        let fixed = &mut self.fixed;
        fixed.hardware_reduced = flags & HARDWARE_REDUCED != 0;
        if flags & RESET_REGISTER_SUPPORTED != 0 {
            fixed.reset = Register::parse(fadt, 116).zip(fadt.get(128).copied());
        }
        fixed.pm1a_control = Register::parse(fadt, 172).or_else(|| {
            let address = le32(fadt, 64)?;
            (address != 0).then_some(Register {
                space: 1,
                address: address.into(),
            })
        });
        fixed.sleep_control = Register::parse(fadt, 244);
        let dsdt = match le64(fadt, 140).unwrap_or(0) {
            0 => le32(fadt, 40).unwrap_or(0).into(),
            address => address,
        };
        if dsdt != 0 {
            self.fixed.sleep_type = find_sleep_type(table(memory, dsdt)?);
        }
        Ok(())
    }

    fn read_madt(&mut self, madt: &[u8]) {
        const ENABLED: u32 = 1;
        let mut at = HEADER_BYTES + 8;
        while let (Some(&kind), Some(&length)) = (madt.get(at), madt.get(at + 1)) {
            let Some(entry) = madt.get(at..at + usize::from(length)) else {
                break;
            };
            match kind {
                0 if le32(entry, 4).unwrap_or(0) & ENABLED != 0 => {
                    self.add_processor(entry[3].into())
                }
                1 => {
                    self.ioapic = le32(entry, 4).unwrap_or(0).into();
                    self.ioapic_gsi_base = le32(entry, 8).unwrap_or(0);
                }
                2 => {
                    let gsi = le32(entry, 4).unwrap_or(0);
                    let flags = le16(entry, 8).unwrap_or(0);
                    if let Some(slot) = self.overrides.get_mut(usize::from(entry[3])) {
                        *slot = (gsi, flags);
                    }
                }
                9 if le32(entry, 8).unwrap_or(0) & ENABLED != 0 => {
                    self.add_processor(le32(entry, 4).unwrap_or(0));
                }
                _ => {}
            }
            at += usize::from(length).max(2);
        }
    }

    fn add_processor(&mut self, apic_id: u32) {
        if self.processors < PROCESSORS && !self.apic_ids().contains(&apic_id) {
            self.apic_ids[self.processors] = apic_id;
            self.processors += 1;
        }
    }

    fn read_mcfg(&mut self, mcfg: &[u8]) {
        let Some(entry) = mcfg.get(44..60) else {
            return;
        };
        if le16(entry, 8) == Some(0) {
            let address = le64(entry, 0).unwrap_or(0);
            self.ecam = Some(Ecam {
                address,
                first_bus: entry[10],
                last_bus: entry[11],
            });
        }
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn find_rsdp(start: &Start, memory: &mut Memory) -> Outcome<&'static [u8]> {
    const SIGNATURE: &[u8] = b"RSD PTR ";
    if start.rsdp != 0 {
        let rsdp = memory.table(start.rsdp, 36)?;
        if rsdp.starts_with(SIGNATURE) && sum(&rsdp[..20]) == 0 {
            return Ok(rsdp);
        }
        return Err(failure!("bad-rsdp address={:#x}", start.rsdp));
    }
    let area = memory.table(0xe_0000, 0x2_0000)?;
    for offset in (0..area.len() - 36).step_by(16) {
        let rsdp = &area[offset..offset + 36];
        if rsdp.starts_with(SIGNATURE) && sum(&rsdp[..20]) == 0 {
            return Ok(rsdp);
        }
    }
    Err(failure!("no-acpi"))
}

fn table(memory: &mut Memory, address: u64) -> Outcome<&'static [u8]> {
    let header = memory.table(address, HEADER_BYTES)?;
    let length = le32(header, 4).unwrap_or(0) as usize;
    if !(HEADER_BYTES..1 << 20).contains(&length) {
        return Err(failure!("bad-table address={address:#x} length={length}"));
    }
    let table = memory.table(address, length)?;
    if sum(table) != 0 {
        return Err(failure!(
            "bad-table-checksum address={address:#x} length={length}"
        ));
    }
    Ok(table)
}

/// `Name (_S5_, Package () { SLP_TYPa, … })` somewhere in the byte code.
fn find_sleep_type(dsdt: &[u8]) -> Option<u8> {
    const PACKAGE: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    let name = dsdt.windows(5).position(|bytes| bytes == b"_S5_\x12")?;
    let package = dsdt.get(name + 4..)?;
    debug_assert_eq!(package[0], PACKAGE);
    // The package length takes one byte plus what its top two bits say, then comes the number of elements.
    let length_bytes = 1 + usize::from(package.get(1)? >> 6);
    let element = package.get(1 + length_bytes + 1..)?;
    match *element.first()? {
        BYTE_PREFIX => element.get(1).copied(),
        value @ 0..=1 => Some(value),
        _ => None,
    }
}
