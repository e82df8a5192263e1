//! Port I/O from ring 3.
//!
//! These functions are safe: no port of a machine that this program runs on makes a device write into the
//! program's memory (legacy DMA controllers are neither present nor programmed).

use core::arch::asm;

/// Reads a byte.
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: see the module: ports don't touch memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Reads two bytes.
pub fn read16(port: u16) -> u16 {
    let value;
    // SAFETY: see the module: ports don't touch memory.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) };
    value
}

/// Reads four bytes.
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: see the module: ports don't touch memory.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// Writes a byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: see the module: ports don't touch memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

/// Writes two bytes.
pub fn write16(port: u16, value: u16) {
    // SAFETY: see the module: ports don't touch memory.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack)) };
}

/// Writes four bytes.
pub fn write32(port: u16, value: u32) {
    // SAFETY: see the module: ports don't touch memory.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}
