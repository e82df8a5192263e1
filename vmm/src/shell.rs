//! A VM before it is known what runs in it: what takes KVM its time, and nothing else.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use skerry_vmm_api::config::MemoryConfig;

use crate::arch;
use crate::machine::MachineError;
use crate::memory::Reservation;

/// How large a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// CPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// What its RAM is aligned for.
    pub hugepage_size: Option<u64>,
}

impl Size {
    /// Of a configured VM.
    pub fn of(cpus: u32, memory: &MemoryConfig) -> Size {
        Size {
            cpus,
            memory: memory.size,
            hugepage_size: memory.hugepage_size,
        }
    }
}

/// What this host's KVM offers. Asking takes it half a millisecond, so it is asked once.
pub struct Offer {
    /// Features of CPUs.
    pub features: arch::CpuFeatures,
    /// Registers of CPUs that can be kept.
    pub msrs: arch::MsrIndices,
}

impl Offer {
    /// Asks.
    pub fn of(kvm: &Kvm) -> Result<Offer, MachineError> {
        Ok(Offer {
            features: arch::CpuFeatures::of(kvm)?,
            msrs: arch::MsrIndices::of(kvm)?,
        })
    }
}

/// A VM with CPUs, interrupt controllers and a place for its RAM.
pub struct Shell {
    /// Its CPUs, in order. They go before the VM.
    pub(crate) cpus: Vec<VcpuFd>,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) place: Arc<Reservation>,
    pub(crate) offer: Arc<Offer>,
    size: Size,
}

impl Shell {
    /// Makes one.
    pub fn new(
        kvm: &Kvm,
        offer: &Arc<Offer>,
        cpus: u32,
        memory: &MemoryConfig,
    ) -> Result<Shell, MachineError> {
        let failed = |what| move |source| MachineError::Kvm { what, source };
        let place = Arc::new(Reservation::new(memory)?);
        let vm = Arc::new(kvm.create_vm().map_err(failed("create a VM"))?);
        // Memory comes first: once there is an interrupt chip, adding a region makes KVM wait for
        // every CPU of the host (milliseconds).
        place.show(&vm)?;
        arch::prepare_vm(&vm)?;
        let create = |index: u32| {
            let cpu = vm.create_vcpu(index.into());
            cpu.map_err(failed("create a CPU"))
        };
        Ok(Shell {
            cpus: (0..cpus).map(create).collect::<Result<_, _>>()?,
            vm,
            place,
            offer: offer.clone(),
            size: Size::of(cpus, memory),
        })
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        self.size
    }
}
