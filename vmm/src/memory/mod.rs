//! Guest memory: one memfd, mapped as the regions of the architecture's layout.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags};
use skerry_vmm_api::config::MemoryConfig;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use crate::arch::layout;

/// Why guest memory could not be made.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// More than the host has.
    #[error("memory size={size} is more than this host has ({host} bytes): give the guest less")]
    TooLarge {
        /// What was asked for, in bytes.
        size: u64,
        /// What the host has, in bytes.
        host: u64,
    },
    /// Huge pages are not there.
    #[error(
        "cannot reserve {size} bytes of huge pages: raise /proc/sys/vm/nr_hugepages or drop hugepages=on"
    )]
    HugePages {
        /// What was asked for, in bytes.
        size: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {what} guest memory")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// KVM refused.
    #[error("KVM cannot map guest memory")]
    Kvm(#[source] kvm_ioctls::Error),
}

/// Makes guest memory of `config`.
pub fn create(config: &MemoryConfig) -> Result<GuestMemoryMmap, MemoryError> {
    let host = host_memory();
    if config.size > host {
        return Err(MemoryError::TooLarge {
            size: config.size,
            host,
        });
    }
    let system = |what| move |source: io::Error| MemoryError::System { what, source };
    let memfd = memfd(config).map_err(|e| failed(config, "create", e))?;
    let file = Arc::new(File::from(memfd));
    rustix::fs::ftruncate(&file, config.size).map_err(|e| failed(config, "size", e.into()))?;
    if config.hugepages {
        // Reserve all of it now: a guest that touched a missing one would be killed.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, config.size)
            .map_err(|e| failed(config, "reserve", e.into()))?;
    }
    // Other processes may get it (vhost-user), and none may take memory away under the guest.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|e| failed(config, "seal", e.into()))?;
    let mut regions = Vec::new();
    let mut offset = 0;
    for (base, len) in layout::ram(config.size) {
        let flags = libc::MAP_SHARED
            | libc::MAP_NORESERVE
            | if config.prefault {
                libc::MAP_POPULATE
            } else {
                0
            };
        let mapping = MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .build()
            .map_err(|e| system("map")(io::Error::other(e)))?;
        advise(config, mapping.as_ptr(), mapping.size());
        offset += len;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base));
        regions.push(region.ok_or_else(|| system("place")(io::ErrorKind::InvalidInput.into()))?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| system("map")(io::Error::other(e)))
}

fn failed(config: &MemoryConfig, what: &'static str, source: io::Error) -> MemoryError {
    if config.hugepages {
        MemoryError::HugePages {
            size: config.size,
            source,
        }
    } else {
        MemoryError::System { what, source }
    }
}

fn memfd(config: &MemoryConfig) -> io::Result<OwnedFd> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if config.hugepages {
        flags |= MemfdFlags::HUGETLB;
        if let Some(size) = config.hugepage_size {
            // The page size's logarithm goes into the flags' top bits (memfd_create(2)).
            flags |= MemfdFlags::from_bits_retain(size.trailing_zeros() << 26);
        }
    }
    Ok(rustix::fs::memfd_create("skerry-ram", flags)?)
}

fn advise(config: &MemoryConfig, start: *mut u8, len: usize) {
    use rustix::mm::{Advice, madvise};
    let mut advices = vec![Advice::LinuxDontDump];
    if config.thp && !config.hugepages {
        advices.push(Advice::LinuxHugepage);
    }
    if config.mergeable {
        advices.push(Advice::LinuxMergeable);
    }
    for advice in advices {
        // SAFETY: the range is our own mapping, and none of these changes its content.
        if let Err(e) = unsafe { madvise(start.cast(), len, advice) } {
            log::debug!("{advice:?} of guest memory: {e}");
        }
    }
}

/// All of the host's memory, in bytes.
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// Shows `memory` to the guest.
pub fn map_into(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
    for (slot, region) in memory.iter().enumerate() {
        let host = region.get_host_address(vm_memory::MemoryRegionAddress(0));
        let host = host.map_err(|e| MemoryError::System {
            what: "address",
            source: io::Error::other(e),
        })?;
        let kvm_region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region is mapped for as long as the machine that owns both lives; it drops
        // the VM first.
        unsafe { vm.set_user_memory_region(kvm_region) }.map_err(MemoryError::Kvm)?;
    }
    Ok(())
}
