//! Physical memory: the page tables that ring 3 extends by itself, MMIO windows, and RAM for devices to use.

use core::arch::asm;
use core::sync::atomic::{Ordering, fence};

use crate::boot;
use crate::failure;
use crate::interrupts;
use crate::line::Outcome;
use crate::start::{Range, Start};

const FOUR_GIB: u64 = 1 << 32;
const LARGE_PAGE: u64 = 1 << 21;
const TABLE_BYTES: u64 = 4096;
/// Physical addresses below this are mapped one to one when they are mapped.
const IDENTITY_END: u64 = 1 << 46;
/// Physical addresses above that are mapped here, in the order of their first use.
const WINDOW: u64 = 1 << 46;
const WINDOW_PAGES: usize = 64;
const PRESENT: u64 = 1;
/// Present, writable, user, accessed.
const TABLE_FLAGS: u64 = 0x27;
/// Present, writable, user, accessed, dirty, large.
const PAGE_FLAGS: u64 = 0xe7;

unsafe extern "C" {
    static mut pml4: [u64; 512];
}

/// A stretch of device registers. Every access is checked against its bounds.
#[derive(Clone, Copy)]
pub struct Mmio {
    address: u64,
    size: u64,
}

macro_rules! mmio_access {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads a register.
        pub fn $read(self, offset: u64) -> $type {
            // SAFETY: `at` has checked that the register lies in this mapped stretch.
            unsafe { (self.at(offset, size_of::<$type>()) as *const $type).read_volatile() }
        }

        /// Writes a register.
        pub fn $write(self, offset: u64, value: $type) {
            // SAFETY: `at` has checked that the register lies in this mapped stretch; it isn't RAM.
            unsafe { (self.at(offset, size_of::<$type>()) as *mut $type).write_volatile(value) }
        }
    };
}

impl Mmio {
    fn at(self, offset: u64, bytes: usize) -> u64 {
        assert!(
            offset + bytes as u64 <= self.size,
            "register {offset:#x} outside of {:#x}",
            self.size
        );
        self.address + offset
    }

    mmio_access!(read8, write8, u8);
    mmio_access!(read16, write16, u16);
    mmio_access!(read32, write32, u32);

    /// Reads 1, 2, 4 or 8 bytes at any offset, aligned or not.
    pub fn read_any(self, offset: u64, bytes: u64) -> u64 {
        let at = self.at(offset, bytes as usize);
        let value: u64;
        // SAFETY: `at` has checked the bounds. Assembly, because Rust's pointers must be aligned.
        unsafe {
            match bytes {
                1 => asm!("movzx {v:e}, byte ptr [{at}]", at = in(reg) at, v = out(reg) value),
                2 => asm!("movzx {v:e}, word ptr [{at}]", at = in(reg) at, v = out(reg) value),
                4 => asm!("mov {v:e}, [{at}]", at = in(reg) at, v = out(reg) value),
                _ => asm!("mov {v}, [{at}]", at = in(reg) at, v = out(reg) value),
            }
        }
        value
    }

    /// Writes 1, 2, 4 or 8 bytes at any offset, aligned or not.
    pub fn write_any(self, offset: u64, bytes: u64, value: u64) {
        let at = self.at(offset, bytes as usize);
        // SAFETY: `at` has checked the bounds, and it isn't RAM. Assembly, because Rust's pointers must be aligned.
        unsafe {
            match bytes {
                1 => asm!("mov [{at}], {v}", at = in(reg) at, v = in(reg_byte) value as u8),
                2 => asm!("mov [{at}], {v:x}", at = in(reg) at, v = in(reg) value),
                4 => asm!("mov [{at}], {v:e}", at = in(reg) at, v = in(reg) value),
                _ => asm!("mov [{at}], {v}", at = in(reg) at, v = in(reg) value),
            }
        }
    }

    /// Bytes in this stretch.
    pub fn size(self) -> u64 {
        self.size
    }

    /// A part of it.
    pub fn part(self, offset: u64, size: u64) -> Option<Mmio> {
        let end = offset.checked_add(size)?;
        (end <= self.size).then_some(Mmio {
            address: self.address + offset,
            size,
        })
    }
}

/// RAM that devices may read and write while the program holds it. Its address is the same for both.
///
/// The bytes are reached by copies and volatile accesses: the device may change them at any time.
#[derive(Clone, Copy)]
pub struct Dma {
    address: u64,
    size: usize,
}

impl Dma {
    /// Physical and virtual address.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn size(self) -> usize {
        self.size
    }

    /// A part of it.
    pub fn part(self, offset: usize, size: usize) -> Dma {
        assert!(
            offset <= self.size && size <= self.size - offset,
            "part outside of its memory"
        );
        Dma {
            address: self.address + offset as u64,
            size,
        }
    }

    /// Pointer to an element of `T` at a byte offset, checked.
    pub fn pointer<T>(self, offset: usize) -> *mut T {
        assert!(
            offset + size_of::<T>() <= self.size,
            "element outside of its memory"
        );
        (self.address + offset as u64) as *mut T
    }

    /// Reads an element of plain integers.
    pub fn read<T: Copy>(self, offset: usize) -> T {
        // SAFETY: `pointer` has checked the bounds; the callers' types are plain integers and arrays of them.
        unsafe { self.pointer::<T>(offset).read_volatile() }
    }

    /// Writes an element of plain integers.
    pub fn write<T: Copy>(self, offset: usize, value: T) {
        // SAFETY: `pointer` has checked the bounds, and the arena gave this memory to the holder alone.
        unsafe { self.pointer::<T>(offset).write_volatile(value) }
    }

    /// Copies bytes out.
    pub fn read_bytes(self, offset: usize, bytes: &mut [u8]) {
        let from = self.part(offset, bytes.len());
        fence(Ordering::Acquire);
        // SAFETY: `part` has checked the bounds; the arena's memory and a Rust buffer don't overlap.
        unsafe {
            core::ptr::copy_nonoverlapping(
                from.address as *const u8,
                bytes.as_mut_ptr(),
                bytes.len(),
            )
        }
    }

    /// Copies bytes in.
    pub fn write_bytes(self, offset: usize, bytes: &[u8]) {
        let to = self.part(offset, bytes.len());
        // SAFETY: as for `read_bytes`.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.address as *mut u8, bytes.len())
        }
        fence(Ordering::Release);
    }

    /// All of it as words.
    ///
    /// # Safety
    /// No device may have any of it in flight, and the holder must drop the slice before that changes.
    pub unsafe fn words(self) -> &'static mut [u64] {
        // SAFETY: the arena gave this memory to the holder alone, aligned to more than a word and zeroed; the
        // rest is the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u64, self.size / 8) }
    }

    /// All of it as bytes.
    ///
    /// # Safety
    /// As for [`words`](Self::words).
    pub unsafe fn bytes(self) -> &'static mut [u8] {
        // SAFETY: as for `words`.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u8, self.size) }
    }

    /// Fills all of it with one byte.
    pub fn fill(self, byte: u8) {
        // SAFETY: the memory is this holder's; see the type.
        unsafe { core::ptr::write_bytes(self.address as *mut u8, byte, self.size) }
    }
}

/// Free RAM of the machine, given out from the bottom, and the page tables.
pub struct Memory {
    next: u64,
    end: u64,
    window: [u64; WINDOW_PAGES],
    window_used: usize,
}

/// Everything allocated after a mark goes back with it.
#[derive(Clone, Copy)]
pub struct Mark(u64);

impl Memory {
    /// Takes the RAM behind the payload's image.
    pub fn new(start: &Start) -> Outcome<Self> {
        let image_end = &raw const boot::payload_end as u64;
        // Without a map, assume that the 16 MiB behind the image exist.
        let mut end = image_end + (16 << 20);
        if let Some(range) = start.ranges().iter().find(|range| {
            range.kind == Range::RAM
                && range.address <= image_end
                && range.address + range.size > image_end
        }) {
            // The last page stays free: `mem` turns its bits over, and page tables grow from the end.
            end = (range.address + range.size).min(FOUR_GIB) - TABLE_BYTES;
        } else if !start.ranges().is_empty() {
            return Err(failure!("no-ram-behind-the-image end={image_end:#x}"));
        }
        Ok(Self {
            next: image_end,
            end,
            window: [0; WINDOW_PAGES],
            window_used: 0,
        })
    }

    /// Zeroed RAM below 4 GiB. `align` is a power of two.
    pub fn allocate(&mut self, size: usize, align: u64) -> Outcome<Dma> {
        let address = (self.next + align - 1) & !(align - 1);
        let end = address + size as u64;
        if end > self.end {
            return Err(failure!(
                "out-of-memory wanted={size} free={}",
                self.end - self.next
            ));
        }
        self.next = end;
        let memory = Dma { address, size };
        memory.fill(0);
        Ok(memory)
    }

    /// Remembers how much is in use.
    pub fn mark(&self) -> Mark {
        Mark(self.next)
    }

    /// Gives back what was allocated since. No device may use it any longer.
    pub fn release(&mut self, mark: Mark) {
        self.next = mark.0;
    }

    /// Maps device registers.
    pub fn mmio(&mut self, physical: u64, size: u64) -> Outcome<Mmio> {
        let address = self.map(physical, size)?;
        Ok(Mmio { address, size })
    }

    /// Maps physical memory that something else filled in (tables of the firmware) for reading.
    pub fn table(&mut self, physical: u64, size: usize) -> Outcome<&'static [u8]> {
        let address = self.map(physical, size as u64)?;
        // SAFETY: mapped just now; firmware tables lie outside of the RAM that the map calls free, or in RAM that
        // isn't allocated before they were read, and any byte is a valid u8.
        Ok(unsafe { core::slice::from_raw_parts(address as *const u8, size) })
    }

    /// Makes physical memory reachable and says where.
    pub fn map(&mut self, physical: u64, size: u64) -> Outcome<u64> {
        let Some(end) = physical.checked_add(size) else {
            return Err(failure!("address-overflow address={physical:#x}"));
        };
        if end <= FOUR_GIB {
            return Ok(physical);
        }
        let first = physical & !(LARGE_PAGE - 1);
        let pages = (end - first).div_ceil(LARGE_PAGE);
        let base = if end <= IDENTITY_END {
            first
        } else {
            self.window_for(first, pages)?
        };
        for page in 0..pages {
            self.map_large_page(base + page * LARGE_PAGE, first + page * LARGE_PAGE)?;
        }
        Ok(base + (physical - first))
    }

    /// Consecutive pages of the window for addresses beyond the identity map.
    fn window_for(&mut self, first: u64, pages: u64) -> Outcome<u64> {
        let pages = pages as usize;
        let used = &self.window[..self.window_used];
        let slot = match used.windows(pages.min(WINDOW_PAGES)).position(|slots| {
            slots
                .iter()
                .enumerate()
                .all(|(index, &page)| page == first + index as u64 * LARGE_PAGE)
        }) {
            Some(slot) => slot,
            None if self.window_used + pages <= WINDOW_PAGES => {
                let slot = self.window_used;
                for index in 0..pages {
                    self.window[slot + index] = first + index as u64 * LARGE_PAGE;
                }
                self.window_used += pages;
                slot
            }
            None => return Err(failure!("window-full address={first:#x}")),
        };
        Ok(WINDOW + slot as u64 * LARGE_PAGE)
    }

    fn map_large_page(&mut self, at: u64, physical: u64) -> Outcome {
        let mut table = &raw mut pml4 as *mut u64;
        for shift in [39, 30] {
            // SAFETY: `table` is one of the payload's tables: 512 entries, mapped one to one, used by this
            // processor alone while it runs this.
            let entry = unsafe { table.add((at >> shift & 511) as usize) };
            // SAFETY: as above.
            let mut value = unsafe { entry.read_volatile() };
            if value & PRESENT == 0 {
                let next = self.page_table()?;
                value = next | TABLE_FLAGS;
                // SAFETY: as above; the new table is zeroed, so nothing becomes reachable yet.
                unsafe { entry.write_volatile(value) };
            }
            table = (value & 0x000f_ffff_ffff_f000) as *mut u64;
        }
        // SAFETY: as above.
        let entry = unsafe { table.add((at >> 21 & 511) as usize) };
        let value = physical | PAGE_FLAGS;
        // SAFETY: the page lies above 4 GiB of virtual addresses, where no Rust object lives.
        unsafe {
            if entry.read_volatile() != value {
                let replaces = entry.read_volatile() & PRESENT != 0;
                entry.write_volatile(value);
                if replaces {
                    interrupts::flush_tlb();
                }
            }
        }
        Ok(())
    }

    /// A zeroed page table. From the top of the arena, where no mark's release reaches.
    fn page_table(&mut self) -> Outcome<u64> {
        let address = (self.end - TABLE_BYTES) & !(TABLE_BYTES - 1);
        if address < self.next {
            return Err(failure!("out-of-memory-for-page-tables"));
        }
        self.end = address;
        Dma {
            address,
            size: TABLE_BYTES as usize,
        }
        .fill(0);
        Ok(address)
    }
}
