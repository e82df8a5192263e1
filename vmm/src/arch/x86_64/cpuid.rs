//! CPUID: what KVM supports, made this CPU's own.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

use skerry_snapshot::CpuidLeaf;

use super::{ArchError, kvm};
use crate::machine::MachineShape;

const EBX_APIC_ID_SHIFT: u32 = 24;
const ECX_VMX: u32 = 1 << 5;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_XSAVE: u32 = 1 << 26;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const ECX_SVM: u32 = 1 << 2;

/// What KVM can show guests of this host's CPU. Asking is slow where CPUID itself is trapped (half
/// a millisecond), so it is done once a machine.
pub struct CpuFeatures {
    supported: CpuId,
    tsc_deadline: bool,
    tsc_scaling: bool,
}

impl CpuFeatures {
    /// Asks KVM.
    pub fn of(kvm_fd: &Kvm) -> Result<CpuFeatures, ArchError> {
        let supported = kvm_fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("tell which CPU features it supports"))?;
        Ok(CpuFeatures {
            supported,
            tsc_deadline: kvm_fd.check_extension(Cap::TscDeadlineTimer),
            tsc_scaling: kvm_fd.check_extension(Cap::TscControl),
        })
    }

    /// All leaves that KVM can show, with what it supports and does not list.
    pub fn feature_leaves(&self) -> Vec<CpuidLeaf> {
        let leaf = |e: &kvm_cpuid_entry2| {
            let mut ecx = e.ecx;
            if e.function == 1 {
                ecx |= ECX_X2APIC | ECX_HYPERVISOR;
                if self.tsc_deadline {
                    ecx |= ECX_TSC_DEADLINE;
                }
            }
            let edx = if e.function == 1 {
                e.edx | EDX_HTT
            } else {
                e.edx
            };
            CpuidLeaf(e.function, e.index, [e.eax, e.ebx, ecx, edx])
        };
        self.supported.as_slice().iter().map(leaf).collect()
    }

    /// Whether guests' counters can have another frequency than this host's.
    pub fn scales_tsc(&self) -> bool {
        self.tsc_scaling
    }

    /// The extended states that guests can have (the bits of XCR0); none if they have no XSAVE.
    pub fn extended_states(&self) -> Option<u64> {
        let leaf = |function| {
            let mut all = self.supported.as_slice().iter();
            all.find(|e| (e.function, e.index) == (function, 0))
        };
        let has = leaf(1).is_some_and(|e| e.ecx & ECX_XSAVE != 0);
        let states = leaf(0xd).filter(|_| has)?;
        Some(u64::from(states.edx) << 32 | u64::from(states.eax))
    }

    /// Physical address bits.
    pub fn phys_bits(&self) -> u8 {
        const LEAF: u32 = 0x8000_0008;
        const COMMON: u8 = 40;
        let leaf = self
            .supported
            .as_slice()
            .iter()
            .find(|e| e.function == LEAF);
        leaf.map_or(COMMON, |e| e.eax as u8)
    }

    /// The CPUID of virtual CPU `index`, in one socket of one-thread cores.
    pub fn for_cpu(&self, index: u32, shape: &MachineShape) -> CpuId {
        let mut entries: Vec<_> = self
            .supported
            .as_slice()
            .iter()
            .filter(|e| !TOPOLOGY.contains(&e.function))
            .copied()
            .collect();
        for entry in &mut entries {
            adjust(entry, index, shape, self.tsc_deadline);
        }
        let highest = entries.iter().find(|e| e.function == 0);
        let highest = highest.map_or(0, |e| e.eax);
        for leaf in TOPOLOGY.into_iter().filter(|leaf| *leaf <= highest) {
            entries.extend((0..3).map(|level| topology(leaf, level, index, shape.cpus)));
        }
        // Fewer entries than KVM's own list and a few: they fit. If they did not, the guest would
        // see KVM's.
        CpuId::from_entries(&entries).unwrap_or_else(|_| self.supported.clone())
    }
}

/// The leaves that list the levels of the topology. Newer KVMs leave them to the monitor.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// Bits of an APIC id that tell cores apart.
fn core_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// One level of the topology: threads, then cores, then the end of the list (Intel SDM vol. 2,
/// CPUID leaf 0xb).
fn topology(leaf: u32, level: u32, index: u32, count: u32) -> kvm_cpuid_entry2 {
    let (shift, processors, kind) = match level {
        0 => (0, 1, 1),
        1 => (core_bits(count), count, 2),
        _ => (0, 0, 0),
    };
    kvm_cpuid_entry2 {
        function: leaf,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: level | kind << 8,
        edx: index,
        ..Default::default()
    }
}

fn adjust(e: &mut kvm_cpuid_entry2, index: u32, shape: &MachineShape, tsc_deadline: bool) {
    let count = shape.cpus;
    let core_bits = core_bits(count);
    match e.function {
        1 => {
            // Intel SDM vol. 2, CPUID leaf 1: initial APIC id, logical processors, CLFLUSH size.
            e.ebx = e.ebx & 0x0000_ff00 | index << EBX_APIC_ID_SHIFT | count.min(255) << 16;
            e.ecx |= ECX_X2APIC | ECX_HYPERVISOR;
            if tsc_deadline {
                // KVM supports it whenever it has the capability, but does not list it.
                e.ecx |= ECX_TSC_DEADLINE;
            }
            if !shape.nested {
                e.ecx &= !ECX_VMX;
            }
            e.edx = if count > 1 {
                e.edx | EDX_HTT
            } else {
                e.edx & !EDX_HTT
            };
        }
        // Intel: caches. Level 3 is shared by all, the others are a core's own.
        4 if e.eax & 0x1f != 0 => {
            let level = e.eax >> 5 & 7;
            let sharing = if level >= 3 { count } else { 1 };
            let cores = (1 << core_bits) - 1;
            e.eax = e.eax & 0x3fff | (sharing.next_power_of_two() - 1) << 14 | cores << 26;
        }
        // AMD: caches, as leaf 4 but for the cores.
        0x8000_001d if e.eax & 0x1f != 0 => {
            let level = e.eax >> 5 & 7;
            let sharing = if level >= 3 { count } else { 1 };
            e.eax = e.eax & 0x3fff | (sharing.next_power_of_two() - 1) << 14;
        }
        0x8000_0001 if !shape.nested => e.ecx &= !ECX_SVM,
        0x8000_0008 => {
            // Physical address bits, and AMD's core count.
            let bits = (e.eax & 0xff).min(shape.phys_bits.into());
            e.eax = e.eax & !0xff | bits;
            e.ecx = core_bits << 12 | (count - 1) & 0xff;
        }
        // AMD: extended APIC id, node and core ids.
        0x8000_001e => {
            e.eax = index;
            e.ebx = index & 0xff;
            e.ecx = 0;
        }
        _ => {}
    }
}
