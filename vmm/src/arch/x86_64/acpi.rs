//! ACPI tables: hardware-reduced, with everything that Linux cannot find by itself.
//!
//! The tables and AML are written by the `acpi_tables` crate; ACPI 6.5 is the source.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Equal, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method,
    MethodCall, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope,
    Store,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use skerry_devices::legacy::AcpiEvents;
use skerry_devices::pci::ECAM_BUS_SIZE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{ArchError, layout, slots};
use crate::machine::MachineShape;

const OEM: [u8; 6] = *b"SKERRY";
const TABLE: [u8; 8] = *b"SKERRYVM";

/// Writes all tables; where the root pointer is.
pub fn write_tables(memory: &GuestMemoryMmap, shape: &MachineShape) -> Result<u64, ArchError> {
    // The root pointer comes first, at the start of the area.
    let mut writer = Writer {
        memory,
        next: layout::ACPI + Rsdp::len().next_multiple_of(16) as u64,
    };
    let dsdt = writer.put(&dsdt(shape))?;
    let tables = [
        writer.put(&fadt(dsdt))?,
        writer.put(&madt(shape))?,
        writer.put(&mcfg())?,
    ];
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    for table in tables {
        xsdt.add_entry(table);
    }
    let xsdt = writer.put(&xsdt)?;
    let mut bytes = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut bytes);
    memory.write_slice(&bytes, GuestAddress(layout::ACPI))?;
    Ok(layout::ACPI)
}

struct Writer<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<u64, ArchError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        let end = at + bytes.len() as u64;
        let room = layout::IDENTITY.saturating_sub(at);
        if bytes.len() as u64 > room {
            return Err(ArchError::Room {
                what: "an ACPI table",
                needed: bytes.len() as u64,
                room,
            });
        }
        self.memory.write_slice(&bytes, GuestAddress(at))?;
        self.next = end.next_multiple_of(16);
        Ok(at)
    }
}

fn port(address: u64) -> GAS {
    GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

fn fadt(dsdt: u64) -> impl Aml {
    // §5.2.9.3: no VGA to probe, and no legacy devices beyond what the DSDT lists.
    const NO_VGA: u16 = 1 << 2;
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.sleep_control_reg = port(layout::ACPI_REGISTERS);
    fadt.sleep_status_reg = port(layout::ACPI_REGISTERS + 1);
    fadt.reset_reg = port(layout::ACPI_REGISTERS + 2);
    fadt.reset_value = 1;
    fadt.finalize()
}

fn madt(shape: &MachineShape) -> impl Aml {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        1,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for cpu in 0..shape.cpus {
        // At most 64 CPUs: their ids fit.
        madt.add_structure(ProcessorLocalApic::new(
            cpu as u8,
            cpu as u8,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM, TABLE, 1);
    mcfg.add_ecam(layout::ECAM, 0, 0, 0);
    mcfg
}

fn name(path: &str) -> Path {
    Path::new(path)
}

fn dsdt(shape: &MachineShape) -> Sdt {
    let mut aml = Vec::new();
    // S5 is sleep type 5 (§7.4.2.6).
    Name::new(name("_S5_"), &Package::new(vec![&5u8, &0u8, &0u8, &0u8])).to_aml_bytes(&mut aml);
    pci_root(shape, &mut aml);
    slots::describe(&mut aml);
    board_resources(&mut aml);
    serial_port(&mut aml);
    if shape.pvpanic {
        pvpanic(&mut aml);
    }
    power_button(&mut aml);
    generation(&mut aml);
    clock(&mut aml);
    events(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, 1);
    dsdt.append_slice(&aml);
    dsdt
}

fn in_system_bus(device: &dyn Aml, aml: &mut Vec<u8>) {
    Scope::new(name("_SB_"), vec![device]).to_aml_bytes(aml);
}

fn pci_root(shape: &MachineShape, aml: &mut Vec<u8>) {
    let window_end = layout::PCI_WINDOW + layout::PCI_WINDOW_LEN - 1;
    let high = shape.high_window();
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let config_ports = IO::new(layout::PCI_PORTS as u16, layout::PCI_PORTS as u16, 1, 8);
    let ports_below = AddressSpace::new_io(0u16, layout::PCI_PORTS as u16 - 1, None);
    let ports_above = AddressSpace::new_io(layout::PCI_PORTS as u16 + 8, 0xffffu16, None);
    let low = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI_WINDOW as u32,
        window_end as u32,
        None,
    );
    let high = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        high.0,
        high.1,
        None,
    );
    let crs = ResourceTemplate::new(vec![
        &bus,
        &config_ports,
        &ports_below,
        &ports_above,
        &low,
        &high,
    ]);
    in_system_bus(
        &Device::new(
            name("PCI0"),
            vec![
                &Name::new(name("_HID"), &EISAName::new("PNP0A08")),
                &Name::new(name("_CID"), &EISAName::new("PNP0A03")),
                &Name::new(name("_SEG"), &0u8),
                &Name::new(name("_BBN"), &0u8),
                &Name::new(name("_UID"), &0u8),
                &Name::new(name("_CCA"), &1u8),
                &Name::new(name("_CRS"), &crs),
            ],
        ),
        aml,
    );
}

/// The configuration space is nobody's to give away (PCI firmware specification §4.1.2).
fn board_resources(aml: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, layout::ECAM as u32, ECAM_BUS_SIZE as u32);
    in_system_bus(
        &Device::new(
            name("MBRD"),
            vec![
                &Name::new(name("_HID"), &EISAName::new("PNP0C02")),
                &Name::new(name("_UID"), &0u8),
                &Name::new(name("_CRS"), &ResourceTemplate::new(vec![&ecam])),
            ],
        ),
        aml,
    );
}

fn serial_port(aml: &mut Vec<u8>) {
    let irq = Interrupt::new(true, true, false, false, layout::COM1_GSI as u32);
    let io = IO::new(layout::COM1 as u16, layout::COM1 as u16, 0, 8);
    in_system_bus(
        &Device::new(
            name("COM1"),
            vec![
                &Name::new(name("_HID"), &EISAName::new("PNP0501")),
                &Name::new(name("_UID"), &0u8),
                &Name::new(name("_DDN"), &"COM1"),
                &Name::new(name("_CRS"), &ResourceTemplate::new(vec![&irq, &io])),
            ],
        ),
        aml,
    );
}

fn pvpanic(aml: &mut Vec<u8>) {
    let io = IO::new(layout::PVPANIC as u16, layout::PVPANIC as u16, 0, 1);
    in_system_bus(
        &Device::new(
            name("PEVT"),
            vec![
                &Name::new(name("_HID"), &"QEMU0001"),
                &Name::new(name("_CRS"), &ResourceTemplate::new(vec![&io])),
            ],
        ),
        aml,
    );
}

fn power_button(aml: &mut Vec<u8>) {
    in_system_bus(
        &Device::new(
            name("PWRB"),
            vec![
                &Name::new(name("_HID"), &EISAName::new("PNP0C0C")),
                &Name::new(name("_UID"), &0u8),
            ],
        ),
        aml,
    );
}

/// Where the number of the machine's generation is: it is another one in every clone (Microsoft, Virtual
/// Machine Generation ID).
fn generation(aml: &mut Vec<u8>) {
    let address = Package::new(vec![&(layout::IDENTITY as u32), &0u32]);
    in_system_bus(
        &Device::new(
            name("VGEN"),
            vec![
                &Name::new(name("_HID"), &"SKRYVGID"),
                &Name::new(
                    name("_CID"),
                    &Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"]),
                ),
                &Name::new(name("_DDN"), &"VM_Gen_Counter"),
                &Name::new(name("ADDR"), &address),
            ],
        ),
        aml,
    );
}

/// Where the page is that says when the clock was disrupted (vmclock, as in QEMU's and Linux's
/// `vmclock-abi.h`).
fn clock(aml: &mut Vec<u8>) {
    let page = Memory32Fixed::new(false, layout::VMCLOCK as u32, 0x1000);
    in_system_bus(
        &Device::new(
            name("VCLK"),
            vec![
                &Name::new(name("_HID"), &"AMZNC10C"),
                &Name::new(name("_CID"), &"VMCLOCK"),
                &Name::new(name("_DDN"), &"VMCLOCK"),
                &Name::new(name("_CRS"), &ResourceTemplate::new(vec![&page])),
            ],
        ),
        aml,
    );
}

/// The Generic Event Device (§5.6.9): its interrupt says that the event register has something.
fn events(aml: &mut Vec<u8>) {
    let irq = Interrupt::new(true, true, false, false, layout::ACPI_EVENTS_GSI as u32);
    let region = OpRegion::new(
        name("EREG"),
        OpRegionSpace::SystemIO,
        &(layout::ACPI_EVENTS as u16),
        &1u8,
    );
    let field = Field::new(
        name("EREG"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let (register, power_button) = (name("EVTS"), name("\\_SB_.PWRB"));
    let read = Store::new(&Local(0), &register);
    let button = AcpiEvents::POWER_BUTTON;
    let masked = And::new(&Local(1), &Local(0), &button);
    let pressed = Equal::new(&Local(1), &button);
    let notify = Notify::new(&power_button, &0x80u8);
    let on_press = If::new(&pressed, vec![&notify]);
    let (generation, clock) = (name("\\_SB_.VGEN"), name("\\_SB_.VCLK"));
    let identity = AcpiEvents::IDENTITY;
    let masked_identity = And::new(&Local(1), &Local(0), &identity);
    let another = Equal::new(&Local(1), &identity);
    let (tell_generation, tell_clock) = (
        Notify::new(&generation, &0x80u8),
        Notify::new(&clock, &0x80u8),
    );
    let on_identity = If::new(&another, vec![&tell_generation, &tell_clock]);
    let pci = AcpiEvents::PCI;
    let masked_pci = And::new(&Local(1), &Local(0), &pci);
    let changed = Equal::new(&Local(1), &pci);
    let look = MethodCall::new(name(slots::LOOK), Vec::new());
    let on_change = If::new(&changed, vec![&look]);
    in_system_bus(
        &Device::new(
            name("GED_"),
            vec![
                &Name::new(name("_HID"), &"ACPI0013"),
                &Name::new(name("_UID"), &0u8),
                &Name::new(name("_CRS"), &ResourceTemplate::new(vec![&irq])),
                &region,
                &field,
                &Method::new(
                    name("_EVT"),
                    1,
                    true,
                    vec![
                        &read,
                        &masked,
                        &on_press,
                        &masked_identity,
                        &on_identity,
                        &masked_pci,
                        &on_change,
                    ],
                ),
            ],
        ),
        aml,
    );
}
