//! Where things are in an x86 guest's physical memory and port space.

/// RAM below 4 GiB ends here at the latest; what is more continues at [`HIGH_RAM`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM above 4 GiB.
pub const HIGH_RAM: u64 = 0x1_0000_0000;

/// BARs below 4 GiB.
pub const PCI_WINDOW: u64 = 0xc000_0000;
/// Its length.
pub const PCI_WINDOW_LEN: u64 = 0x2800_0000;
/// PCI configuration space of bus 0.
pub const ECAM: u64 = 0xe800_0000;
/// The IOAPIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that KVM needs on Intel.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// The boot-time segment descriptors.
pub const GDT: u64 = 0x500;
/// The start info structure of PVH, or Linux's boot parameters.
pub const BOOT_INFO: u64 = 0x6000;
/// PVH: the memory map and the list of modules, after the start info.
pub const PVH_MEMMAP: u64 = 0x7000;
/// PVH: the list of modules.
pub const PVH_MODULES: u64 = 0x7f00;
/// Boot-time page tables: one page each of the top three levels' first entries.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for it.
pub const COMMAND_LINE_MAX: usize = 0x1_0000;
/// Conventional memory ends here.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The ACPI tables, in what a PC reserves for its firmware.
pub const ACPI: u64 = 0xe_0000;
/// Room for them.
pub const ACPI_LEN: u64 = 0x2_0000;
/// Who the machine is: its generation's number (VMGenID), then what its clock is (vmclock), a page each.
pub const IDENTITY: u64 = 0xf_c000;
/// The vmclock page.
pub const VMCLOCK: u64 = IDENTITY + 0x1000;
/// Room for both.
pub const IDENTITY_LEN: u64 = 0x2000;
/// Where a PC's CPU starts, and where Linux jumps in real mode to restart a machine whose ACPI is
/// hardware-reduced and that has no EFI.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Kernels go here.
pub const KERNEL: u64 = 0x10_0000;

/// Serial port.
pub const COM1: u64 = 0x3f8;
/// Its interrupt.
pub const COM1_GSI: usize = 4;
/// Keyboard controller.
pub const I8042: u64 = 0x60;
/// Real-time clock.
pub const RTC: u64 = 0x70;
/// Guest panics.
pub const PVPANIC: u64 = 0x505;
/// ACPI sleep control, sleep status and reset.
pub const ACPI_REGISTERS: u64 = 0x600;
/// ACPI events.
pub const ACPI_EVENTS: u64 = 0x608;
/// Their interrupt.
pub const ACPI_EVENTS_GSI: usize = 9;
/// Functions that come and go.
pub const PCI_HOTPLUG: u64 = 0x610;
/// PCI configuration space by ports.
pub const PCI_PORTS: u64 = 0xcf8;

/// RAM regions of a machine with `size` bytes: (address, length).
pub fn ram(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(LOW_RAM_END);
    let mut regions = vec![(0, low)];
    if size > low {
        regions.push((HIGH_RAM, size - low));
    }
    regions
}
