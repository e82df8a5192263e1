//! The interrupt descriptor table, the counters that handlers bump, and the ring-0 services behind `ud2`.
//!
//! Handlers do nothing but count and acknowledge. Whoever waits for an interrupt spins in ring 3 on the vector's
//! counter, so the time from the device to the waiter holds as little emulated ring 0 as possible.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::boot;

const MAGIC: u64 = boot::SERVICE_MAGIC as u64;

/// #UD: how ring 3 calls a service.
const INVALID_OPCODE: usize = 6;
/// First vector that devices may use.
const FIRST_DEVICE: u8 = 0x30;
/// Last vector that devices may use; 0xff is the spurious one.
const LAST_DEVICE: u8 = 0xfe;

/// What ring 3 asks of ring 0, in the order of the stubs in `boot.rs`.
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Service {
    WriteMsr,
    ReadMsr,
    InterruptsOn,
    Print,
    TripleFault,
    FlushTlb,
    Halt,
}

impl Service {
    fn address(self) -> u64 {
        stub(&raw const boot::service_stubs, self as usize)
    }
}

/// An interrupt vector of the boot processor, and what has arrived on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Vector(u8);

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    static irq_counters: [AtomicU32; 256];
}

impl Vector {
    /// The vector's number.
    pub fn number(self) -> u8 {
        self.0
    }

    /// How many interrupts this vector has taken.
    pub fn count(self) -> u32 {
        // SAFETY: the counters are 256 words of .bss that live as long as the program; atomics may be shared.
        unsafe { irq_counters[self.0 as usize].load(Ordering::Acquire) }
    }
}

const VECTORS: usize = (LAST_DEVICE - FIRST_DEVICE) as usize + 1;

/// The device vectors, each with the source that it was given to. A source keeps its vector.
pub struct Vectors {
    sources: [u32; VECTORS],
    used: usize,
}

impl Vectors {
    /// All device vectors free.
    pub const fn new() -> Self {
        Self {
            sources: [0; VECTORS],
            used: 0,
        }
    }

    /// The vector of a source; a new one if it has none yet. None when all are taken.
    pub fn of(&mut self, source: u32) -> Option<Vector> {
        let known = self.sources[..self.used]
            .iter()
            .position(|other| *other == source);
        let index = match known {
            Some(index) => index,
            None if self.used < VECTORS => {
                self.sources[self.used] = source;
                self.used += 1;
                self.used - 1
            }
            None => return None,
        };
        Some(Vector(FIRST_DEVICE + index as u8))
    }
}

/// Which stubs acknowledge: by MSR or by memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Eoi {
    X2Apic,
    XApic,
}

fn gate(vector: usize, handler: u64) {
    // Present, for ring 0, an interrupt gate.
    let attributes: u64 = 0x8e00;
    let low = (handler & 0xffff)
        | (u64::from(boot::KERNEL_CODE) << 16)
        | (attributes << 32)
        | ((handler >> 16 & 0xffff) << 48);
    // SAFETY: only the boot processor writes the table, one whole gate at a time; `vector` is below 256 by the
    // array's own bounds check.
    unsafe { idt[vector] = [low, handler >> 32] };
}

fn stub(first: *const u8, index: usize) -> u64 {
    first as u64 + (index * boot::STUB_BYTES) as u64
}

/// Fills the table for exceptions and services. Device vectors follow with [`install_devices`].
pub fn install() {
    for vector in 0..boot::EXCEPTIONS {
        gate(vector, stub(&raw const boot::exception_stubs, vector));
    }
    gate(INVALID_OPCODE, &raw const boot::service_entry as u64);
}

/// Fills the table's device vectors.
pub fn install_devices(eoi: Eoi) {
    let first = match eoi {
        Eoi::X2Apic => &raw const boot::irq_stubs_x2apic,
        Eoi::XApic => &raw const boot::irq_stubs_xapic,
    };
    for vector in usize::from(FIRST_DEVICE)..256 {
        gate(vector, stub(first, vector));
    }
}

/// The MSR doesn't exist here, or not with this value.
#[derive(Debug)]
pub struct MsrRefused;

/// Writes an MSR.
///
/// # Safety
/// The MSR must not change how memory is addressed or what code runs.
pub unsafe fn write_msr(msr: u32, value: u64) -> Result<(), MsrRefused> {
    let refused: u64;
    // SAFETY: the service's gate is installed first thing in the program; the rest is the caller's promise.
    unsafe {
        asm!("ud2", inout("r10") MAGIC => _, inout("r9") Service::WriteMsr.address() => _,
            in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, out("r8") refused);
    }
    if refused == 0 {
        Ok(())
    } else {
        Err(MsrRefused)
    }
}

/// Reads an MSR.
pub fn read_msr(msr: u32) -> Result<u64, MsrRefused> {
    let (low, high): (u32, u32);
    let refused: u64;
    // SAFETY: the service's gate is installed first thing in the program; reading an MSR changes no memory, and
    // an MSR that doesn't exist is reported in r8.
    unsafe {
        asm!("ud2", inout("r10") MAGIC => _, inout("r9") Service::ReadMsr.address() => _,
            in("ecx") msr, out("eax") low, out("edx") high, out("r8") refused);
    }
    if refused == 0 {
        Ok(u64::from(high) << 32 | u64::from(low))
    } else {
        Err(MsrRefused)
    }
}

/// Lets interrupts in.
pub fn enable() {
    // SAFETY: the handlers only touch their counter and the LAPIC's EOI register.
    unsafe {
        asm!("ud2", inout("r10") MAGIC => _, inout("r9") Service::InterruptsOn.address() => _)
    };
}

/// Forgets cached translations, after an entry of the page tables changed.
pub fn flush_tlb() {
    // SAFETY: reloads CR3 with its own value.
    unsafe {
        asm!("ud2", inout("r10") MAGIC => _, inout("r9") Service::FlushTlb.address() => _, out("rax") _)
    };
}

/// Prints up to 16 bytes (the transmitter's FIFO) on COM1.
pub fn print(bytes: &[u8]) {
    for chunk in bytes.chunks(16) {
        // SAFETY: the service reads `rcx` bytes at `rsi`, the chunk, and writes no memory.
        unsafe {
            asm!("ud2", inout("r10") MAGIC => _, inout("r9") Service::Print.address() => _,
                inout("rsi") chunk.as_ptr() => _, inout("rcx") chunk.len() => _,
                out("rdi") _, out("rdx") _, out("rax") _, options(readonly));
        }
    }
}

/// Resets the processor by a triple fault.
pub fn triple_fault() -> ! {
    // SAFETY: the service doesn't return, and nothing runs after it.
    unsafe {
        asm!("ud2", in("r10") MAGIC, in("r9") Service::TripleFault.address(), options(noreturn))
    }
}

/// Halts for ever with interrupts off.
pub fn halt() -> ! {
    // SAFETY: the service doesn't return, and nothing runs after it.
    unsafe { asm!("ud2", in("r10") MAGIC, in("r9") Service::Halt.address(), options(noreturn)) }
}

/// Where an exception's handler goes on in ring 3: says what happened and stops.
pub extern "C" fn ring3_exception() -> ! {
    static REPORTING: AtomicBool = AtomicBool::new(false);
    if REPORTING.swap(true, Ordering::Relaxed) {
        // The report itself failed.
        triple_fault();
    }
    // SAFETY: the handler wrote the record before it came here, and no other exception can be under way: this
    // code runs on the boot processor alone.
    let [vector, error, rip, rsp, cr2] = unsafe { boot::exception_record };
    crate::say!(
        "fail exception vector={vector} rip={rip:#x} error={error:#x} cr2={cr2:#x} rsp={rsp:#x}"
    );
    crate::say!("skerry-payload: done ok=0 fail=1");
    crate::off::power_off_blindly()
}
