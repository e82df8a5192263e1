//! Registers of a CPU that starts: PVH's 32-bit entry and Linux's 64-bit one.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::{ArchError, Boot, kvm, layout};

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enabled, write-back by default.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), ArchError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    for (index, data) in [
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ] {
        // Never more than the one entry that fits.
        if let Ok(msrs) = Msrs::from_entries(&[entry(index, data)]) {
            // Both only say what hardware does anyway: a KVM that lacks one is as good.
            vcpu.set_msrs(&msrs)
                .map_err(kvm("set a CPU's model-specific registers"))?;
        }
    }
    Ok(())
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// A flat 4 GiB segment.
fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

const CODE: u8 = 0xb;
const DATA: u8 = 0x3;
const BUSY_TSS: u8 = 0xb;

/// The same segments as descriptors, for guests that reload them: null, code, data, TSS.
pub const fn gdt(long: bool) -> [u64; 4] {
    let code = if long {
        0x00af_9b00_0000_ffff
    } else {
        0x00cf_9b00_0000_ffff
    };
    [0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
}

fn set_segments(sregs: &mut kvm_sregs, long: bool) {
    sregs.cs = segment(0x8, CODE, long);
    let data = segment(0x10, DATA, false);
    for s in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *s = data;
    }
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: 0x18,
        type_: BUSY_TSS,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = size_of_val(&gdt(long)) as u16 - 1;
}

pub fn set_entry(vcpu: &VcpuFd, boot: &Boot) -> Result<(), ArchError> {
    let mut sregs = vcpu.get_sregs().map_err(kvm("read a CPU's registers"))?;
    let regs = match *boot {
        // The PVH boot ABI of Xen: EBX holds the start info, paging is off.
        Boot::Pvh { entry } => {
            set_segments(&mut sregs, false);
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            kvm_regs {
                rip: entry,
                rbx: layout::BOOT_INFO,
                rflags: 2,
                ..Default::default()
            }
        }
        // Linux's 64-bit boot protocol: RSI holds the boot parameters, paging maps all of it.
        Boot::Linux64 { entry } => {
            set_segments(&mut sregs, true);
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            kvm_regs {
                rip: entry,
                rsi: layout::BOOT_INFO,
                rflags: 2,
                ..Default::default()
            }
        }
    };
    vcpu.set_sregs(&sregs)
        .map_err(kvm("set a CPU's system registers"))?;
    vcpu.set_regs(&regs).map_err(kvm("set a CPU's registers"))
}
