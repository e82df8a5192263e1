//! x86-64: CPUID, registers, boot, ACPI.

mod acpi;
mod boot;
mod cpuid;
mod identity;
pub mod layout;
mod probe;
mod registers;
mod slots;
mod state;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use skerry_devices::legacy::PINS;
use thiserror::Error;

use crate::machine::MachineShape;

pub use boot::{Boot, prepare_boot};
pub use cpuid::CpuFeatures;
pub use identity::renew as renew_identity;
pub use probe::{PROBE_MEMORY, PROBE_PASSED, PROBE_PORT, probe_program};
pub use state::{
    ClockState, CpuState, CpuTold, MsrIndices, accommodate, facts, lacking, machine_tsc,
    machine_tsc_read, restore_clock, restore_vcpu, save_clock, save_vcpu, tsc_khz, was_paused,
};

/// What can go wrong in setting an x86 machine up.
#[derive(Debug, Error)]
pub enum ArchError {
    /// KVM refused.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The guest runs guests of its own.
    #[error(
        "the guest uses virtualisation itself, whose state cannot be kept: stop its hypervisor, or give it nested=off"
    )]
    Nested,
    /// The kernel, its initramfs or its command line do not fit.
    #[error(
        "{what} does not fit: it needs {needed:#x} bytes and guest memory has {room:#x} for it. Give the guest more memory"
    )]
    Room {
        /// What does not fit.
        what: &'static str,
        /// Its size.
        needed: u64,
        /// What there is.
        room: u64,
    },
    /// The command line is too long.
    #[error("the kernel's command line has {len} bytes and this kernel takes {max}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// The most that the kernel takes.
        max: usize,
    },
    /// The command line has a byte that ends it.
    #[error("the kernel's command line contains a zero byte")]
    CommandLineZero,
    /// The initramfs could not be read.
    #[error("cannot read the initramfs")]
    Initramfs(#[source] std::io::Error),
    /// Guest memory was addressed wrongly.
    #[error("guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> ArchError {
    move |source| ArchError::Kvm { what, source }
}

/// Makes a new VM an x86 PC without a PIC and a PIT: local APICs in the kernel, the IOAPIC here.
pub fn prepare_vm(vm: &VmFd) -> Result<(), ArchError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(kvm("place its task state segment"))?;
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    split.args[0] = PINS as u64;
    vm.enable_cap(&split)
        .map_err(kvm("split its interrupt controllers"))
}

/// Sets up virtual CPU `index`. The first one starts at `boot`; the others wait. Returns what it was told
/// of its features.
pub fn setup_vcpu(
    features: &CpuFeatures,
    vcpu: &VcpuFd,
    index: u32,
    shape: &MachineShape,
    boot: Option<&Boot>,
) -> Result<CpuTold, ArchError> {
    let cpuid = features.for_cpu(index, shape);
    vcpu.set_cpuid2(&cpuid)
        .map_err(kvm("set a CPU's features"))?;
    registers::set_msrs(vcpu)?;
    if let Some(boot) = boot {
        registers::set_entry(vcpu, boot)?;
    }
    Ok(CpuTold(cpuid.as_slice().to_vec()))
}
