//! Guest memory: a file mapped as the regions of the architecture's layout.
//!
//! Its place in our address space is reserved and shown to KVM first, so that a VM can be prepared before
//! it is known what will run in it.

mod dirty;
mod fault;
mod prefault;
mod ram;
mod raw;
mod reserve;
mod restore;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use skerry_devices::memory::GuestRam;
use skerry_vmm_api::config::MemoryConfig;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::arch::layout;
pub use dirty::{DirtyTracker, TrackError};
pub use fault::FaultServer;
pub use prefault::Prefault;
pub use ram::Ram;
pub use reserve::Reservation;
pub use restore::{RestoreError, Restored, copied, fetched, mapped};

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

/// Makes guest memory of `config`, all zeroes, at a reserved place.
pub fn create(config: &MemoryConfig, place: &Arc<Reservation>) -> Result<Ram, MemoryError> {
    create_with(config, place, true)
}

/// The same, with no page of it there yet. Huge pages are reserved by the mapping itself.
fn create_untouched(config: &MemoryConfig, place: &Arc<Reservation>) -> Result<Ram, MemoryError> {
    create_with(config, place, false)
}

fn create_with(
    config: &MemoryConfig,
    place: &Arc<Reservation>,
    touch: bool,
) -> Result<Ram, MemoryError> {
    let memfd = memfd(config).map_err(|e| failed(config, "create", e))?;
    let file = Arc::new(File::from(memfd));
    rustix::fs::ftruncate(&file, config.size).map_err(|e| failed(config, "size", e.into()))?;
    if config.hugepages && touch {
        // Reserve all of it now: a guest that touched a missing one would be killed.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, config.size)
            .map_err(|e| failed(config, "reserve", e.into()))?;
    }
    // Other processes may get it (vhost-user), and none may take memory away under the guest.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|e| failed(config, "seal", e.into()))?;
    let flags = libc::MAP_SHARED
        | if config.prefault && touch {
            libc::MAP_POPULATE
        } else {
            0
        };
    Ok(Ram::shared(map_at(place, config, &file, flags)?))
}

/// Maps a file as guest memory at a reserved place, its regions one behind the other.
fn map_at(
    place: &Arc<Reservation>,
    config: &MemoryConfig,
    file: &Arc<File>,
    flags: i32,
) -> Result<GuestRam, MemoryError> {
    let system = |what| move |source: io::Error| MemoryError::System { what, source };
    // Huge pages are reserved with their mapping, so that the guest finds them; anything else is not counted
    // against the host before it is there.
    let flags = match config.hugepages {
        true => flags,
        false => flags | libc::MAP_NORESERVE,
    };
    let mut regions = Vec::new();
    let mut offset = 0;
    for (base, len) in layout::ram(config.size) {
        let host = place
            .map(file, offset, len, flags)
            .map_err(|e| failed(config, "map", e))?;
        // SAFETY: the range was mapped just now, and stays mapped for as long as the reservation lives,
        // which the memory made below owns.
        let mapping = unsafe {
            MmapRegionBuilder::new(len as usize)
                .with_raw_mmap_pointer(host)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(flags)
                .with_file_offset(FileOffset::from_arc(file.clone(), offset))
                .build()
        };
        let mapping = mapping.map_err(|e| system("map")(io::Error::other(e)))?;
        advise(config, mapping.as_ptr(), mapping.size());
        offset += len;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base));
        regions.push(region.ok_or_else(|| system("place")(io::ErrorKind::InvalidInput.into()))?);
    }
    let memory = GuestMemoryMmap::from_regions(regions);
    let memory = memory.map_err(|e| system("map")(io::Error::other(e)))?;
    Ok(GuestRam::owned_by(memory, place.clone()))
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
