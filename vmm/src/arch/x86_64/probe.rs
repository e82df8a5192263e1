//! The program that finds out whether this KVM runs what Linux consists of.
//!
//! It uses instructions that every x86-64 CPU executes by itself and that a software KVM, which
//! interprets the guest's kernel, may not know; and it makes a system call from ring 3 and looks at
//! the privilege level that it arrives with.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{ArchError, kvm};

/// Bytes of memory that the program needs, at address 0.
pub const PROBE_MEMORY: u64 = 0x20_0000;
/// The port that it reports to.
pub const PROBE_PORT: u16 = 0x80;
/// What it reports when everything worked.
pub const PROBE_PASSED: u8 = 0x5a;

const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x1100;
const USER: u64 = 0x1200;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const DIRECTORY: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
const STACK: u64 = 0x8000;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_CODE: u16 = 0x23;
const USER_DATA: u16 = 0x1b;

#[rustfmt::skip]
const MAIN: &[u8] = &[
    0x9b,                                           // fwait
    0xbf, 0x00, 0x90, 0x00, 0x00,                   // mov edi, 0x9000
    0xf0, 0x48, 0x0f, 0xc7, 0x0f,                   // lock cmpxchg16b [rdi]
    // Down to ring 3: ss, rsp, rflags, cs, rip.
    0x6a, USER_DATA as u8,                          // push USER_DATA
    0x68, 0x00, 0x80, 0x00, 0x00,                   // push STACK
    0x6a, 0x02,                                     // push 2
    0x6a, USER_CODE as u8,                          // push USER_CODE
    0x68, 0x00, 0x12, 0x00, 0x00,                   // push USER
    0x48, 0xcf,                                     // iretq
];

#[rustfmt::skip]
const USER_PROGRAM: &[u8] = &[
    0x0f, 0x05,                                     // syscall
    0xf4,                                           // hlt (never reached; #GP in ring 3)
];

#[rustfmt::skip]
const SYSCALL_HANDLER: &[u8] = &[
    0x8c, 0xc8,                                     // mov eax, cs
    0x24, 0x03,                                     // and al, 3     (the privilege level)
    0x34, PROBE_PASSED,                             // xor al, PROBE_PASSED
    0xe6, PROBE_PORT as u8,                         // out PROBE_PORT, al
    0xf4,                                           // hlt
    0xeb, 0xfd,                                     // jmp $-1
];

/// Writes the program into `memory` and points `vcpu` at it.
pub fn probe_program(memory: &GuestMemoryMmap, vcpu: &VcpuFd) -> Result<(), ArchError> {
    const USER_WRITABLE_PRESENT: u64 = 7;
    const LARGE: u64 = 1 << 7;
    memory.write_obj(PDPT | USER_WRITABLE_PRESENT, GuestAddress(PML4))?;
    memory.write_obj(DIRECTORY | USER_WRITABLE_PRESENT, GuestAddress(PDPT))?;
    memory.write_obj(USER_WRITABLE_PRESENT | LARGE, GuestAddress(DIRECTORY))?;
    for (address, code) in [
        (CODE, MAIN),
        (HANDLER, SYSCALL_HANDLER),
        (USER, USER_PROGRAM),
    ] {
        memory.write_slice(code, GuestAddress(address))?;
    }
    // null, kernel code, kernel data, user data, user code, TSS (two entries). SYSCALL derives
    // its segments from STAR; iretq loads the user ones from here.
    let tss = TSS << 16 | 0x0000_8b00_0000_0067;
    let gdt = [
        0u64,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        tss,
        0,
    ];
    for (i, descriptor) in gdt.into_iter().enumerate() {
        memory.write_obj(descriptor, GuestAddress(GDT + 8 * i as u64))?;
    }

    let mut sregs = vcpu.get_sregs().map_err(kvm("read a CPU's registers"))?;
    let segment = |selector, type_, l| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment(KERNEL_CODE, 0xb, 1);
    for s in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *s = segment(KERNEL_DATA, 0x3, 0);
    }
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: 0x28,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 0x37;
    sregs.cr0 = 0x8000_0011;
    sregs.cr3 = PML4;
    sregs.cr4 = 1 << 5 | 1 << 9;
    // Long mode and SYSCALL.
    sregs.efer = 0x501;
    vcpu.set_sregs(&sregs)
        .map_err(kvm("set a CPU's system registers"))?;
    let star = u64::from(KERNEL_CODE) << 32 | u64::from(KERNEL_DATA) << 48;
    for (index, data) in [
        (0xc000_0081, star),
        (0xc000_0082, HANDLER),
        (0xc000_0084, 0),
    ] {
        if let Ok(msrs) = Msrs::from_entries(&[kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }]) {
            vcpu.set_msrs(&msrs)
                .map_err(kvm("set a CPU's system call entry"))?;
        }
    }
    let regs = kvm_regs {
        rip: CODE,
        rsp: STACK,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("set a CPU's registers"))
}
