//! What a guest finds in memory when it starts: boot information, command line, initramfs, tables.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{ArchError, acpi, identity, layout, registers};
use crate::kernel::{Entry, Kernel};
use crate::machine::MachineShape;

/// How the first CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// At a PVH entry, in 32-bit protected mode.
    Pvh {
        /// Its address.
        entry: u64,
    },
    /// At Linux's 64-bit entry.
    Linux64 {
        /// Its address.
        entry: u64,
    },
}

const START_MAGIC: u32 = 0x336e_c578;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;
/// Linux's own limit for its command line, when the kernel does not say (COMMAND_LINE_SIZE).
const LINUX_COMMAND_LINE: usize = 2048;

/// What a firmware does for a jump to its reset vector: it resets the machine. Real mode.
#[rustfmt::skip]
const RESET_STUB: &[u8] = &[
    0xba, (RESET_PORT & 0xff) as u8, (RESET_PORT >> 8) as u8, // mov dx, RESET_PORT
    0xb0, 0x01,                                               // mov al, 1
    0xee,                                                     // out dx, al
    0xf4,                                                     // hlt
    0xeb, 0xfd,                                               // jmp to the hlt
];
const RESET_PORT: u64 = layout::ACPI_REGISTERS + 2;

/// Writes everything that `kernel` wants to find, and says where its first CPU starts.
pub fn prepare_boot(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    cmdline: &str,
    initramfs: Option<&mut File>,
    shape: &MachineShape,
) -> Result<Boot, ArchError> {
    write_command_line(memory, kernel, cmdline)?;
    let initramfs = initramfs
        .map(|file| load_initramfs(memory, file, kernel.end, shape.memory))
        .transpose()?;
    let rsdp = acpi::write_tables(memory, shape)?;
    identity::write(memory)?;
    memory.write_slice(RESET_STUB, GuestAddress(layout::RESET_VECTOR))?;
    let map = memory_map(shape.memory);
    let boot = match kernel.entry {
        Entry::Pvh(entry) => {
            write_start_info(memory, &map, rsdp, initramfs)?;
            Boot::Pvh { entry }
        }
        Entry::Linux64(entry) => {
            write_boot_params(memory, kernel, cmdline.len(), &map, rsdp, initramfs)?;
            write_page_tables(memory)?;
            Boot::Linux64 { entry }
        }
    };
    for (i, descriptor) in registers::gdt(matches!(boot, Boot::Linux64 { .. }))
        .into_iter()
        .enumerate()
    {
        memory.write_obj(descriptor, GuestAddress(layout::GDT + 8 * i as u64))?;
    }
    Ok(boot)
}

fn write_command_line(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    cmdline: &str,
) -> Result<(), ArchError> {
    let max = match (&kernel.setup_header, kernel.entry) {
        (Some(header), _) if header.cmdline_size != 0 => header.cmdline_size as usize,
        (_, Entry::Linux64(_)) => LINUX_COMMAND_LINE - 1,
        _ => layout::COMMAND_LINE_MAX - 1,
    };
    let max = max.min(layout::COMMAND_LINE_MAX - 1);
    if cmdline.len() > max {
        return Err(ArchError::CommandLine {
            len: cmdline.len(),
            max,
        });
    }
    if cmdline.bytes().any(|b| b == 0) {
        return Err(ArchError::CommandLineZero);
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(
        0u8,
        GuestAddress(layout::COMMAND_LINE + cmdline.len() as u64),
    )?;
    Ok(())
}

/// Puts the initramfs at the end of low memory; (address, size).
fn load_initramfs(
    memory: &GuestMemoryMmap,
    file: &mut File,
    kernel_end: u64,
    ram: u64,
) -> Result<(u64, u64), ArchError> {
    let size = file.seek(SeekFrom::End(0)).map_err(ArchError::Initramfs)?;
    file.rewind().map_err(ArchError::Initramfs)?;
    let low_end = ram.min(layout::LOW_RAM_END);
    let start = kernel_end.next_multiple_of(4096);
    let room = low_end.saturating_sub(start);
    let address = low_end
        .checked_sub(size)
        .map(|a| a & !0xfff)
        .filter(|a| *a >= start);
    let address = address.ok_or(ArchError::Room {
        what: "the initramfs",
        needed: size,
        room,
    })?;
    memory.read_exact_volatile_from(GuestAddress(address), file, size as usize)?;
    Ok((address, size))
}

/// The E820 map: (address, length, type).
fn memory_map(ram: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_MEMORY_END, E820_RAM),
        (
            layout::LOW_MEMORY_END,
            layout::ACPI - layout::LOW_MEMORY_END,
            E820_RESERVED,
        ),
        (layout::ACPI, layout::IDENTITY - layout::ACPI, E820_ACPI),
        (layout::IDENTITY, layout::IDENTITY_LEN, E820_RESERVED),
        (
            layout::IDENTITY + layout::IDENTITY_LEN,
            layout::ACPI + layout::ACPI_LEN - layout::IDENTITY - layout::IDENTITY_LEN,
            E820_ACPI,
        ),
    ];
    for (start, len) in layout::ram(ram) {
        let first = start.max(layout::KERNEL);
        map.push((first, start + len - first, E820_RAM));
    }
    map.push((
        layout::ECAM,
        skerry_devices::pci::ECAM_BUS_SIZE,
        E820_RESERVED,
    ));
    map.sort_unstable();
    map
}

fn write_start_info(
    memory: &GuestMemoryMmap,
    map: &[(u64, u64, u32)],
    rsdp: u64,
    initramfs: Option<(u64, u64)>,
) -> Result<(), ArchError> {
    for (i, (addr, size, type_)) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: *addr,
            size: *size,
            type_: *type_,
            reserved: 0,
        };
        memory.write_obj(
            Plain(entry),
            GuestAddress(layout::PVH_MEMMAP + (size_of_val(&entry) * i) as u64),
        )?;
    }
    if let Some((paddr, size)) = initramfs {
        let module = hvm_modlist_entry {
            paddr,
            size,
            cmdline_paddr: 0,
            reserved: 0,
        };
        memory.write_obj(Plain(module), GuestAddress(layout::PVH_MODULES))?;
    }
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        flags: 0,
        nr_modules: initramfs.is_some().into(),
        modlist_paddr: if initramfs.is_some() {
            layout::PVH_MODULES
        } else {
            0
        },
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    memory.write_obj(Plain(info), GuestAddress(layout::BOOT_INFO))?;
    Ok(())
}

fn write_boot_params(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    cmdline_len: usize,
    map: &[(u64, u64, u32)],
    rsdp: u64,
    initramfs: Option<(u64, u64)>,
) -> Result<(), ArchError> {
    // Documentation/arch/x86/boot.rst: an unknown boot loader of its own.
    const LOADER: u8 = 0xff;
    const BOOT_FLAG: u16 = 0xaa55;
    const HEADER_MAGIC: u32 = 0x5372_6448;
    let mut params = boot_params::default();
    if let Some(header) = kernel.setup_header {
        params.hdr = header;
    }
    params.hdr.type_of_loader = LOADER;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    if params.hdr.kernel_alignment == 0 {
        params.hdr.kernel_alignment = 0x20_0000;
    }
    if let Some((address, size)) = initramfs {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    params.acpi_rsdp_addr = rsdp;
    for (slot, (addr, size, type_)) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *type_,
        };
    }
    params.e820_entries = map.len() as u8;
    memory.write_obj(Plain(params), GuestAddress(layout::BOOT_INFO))?;
    Ok(())
}

/// Maps the first 4 GiB as they are, by 2 MiB pages.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), ArchError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let (pml4, pdpt, directories) = (
        layout::PAGE_TABLES,
        layout::PAGE_TABLES + 0x1000,
        layout::PAGE_TABLES + 0x2000,
    );
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..4 {
        let directory = directories + 0x1000 * gib;
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + 8 * gib))?;
        for i in 0..512 {
            let page = (gib << 30) + (i << 21);
            memory.write_obj(
                page | PRESENT_WRITABLE | LARGE,
                GuestAddress(directory + 8 * i),
            )?;
        }
    }
    Ok(())
}

/// A structure of plain integers, for writing into guest memory.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: only used with the `repr(C)` structures of boot protocols above, which are integers
// without padding between them that would matter, and for which every bit pattern is a value.
unsafe impl<T: Copy + Default + Send + Sync> vm_memory::ByteValued for Plain<T> {}
