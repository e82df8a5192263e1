//! A place for guest memory in our address space.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use skerry_vmm_api::config::MemoryConfig;

use super::{MemoryError, host_memory};
use crate::arch::layout;

/// Where places begin: far below what the kernel maps by itself, which comes from the top down, and above
/// what a program is linked to.
const LOWEST: u64 = 0x1000_0000_0000;
/// And above which none begins.
const HIGHEST: u64 = 0x4000_0000_0000;
/// Places begin at multiples of this, so that huge pages of any size fit.
const ALIGN: u64 = 1 << 30;
/// Attempts at a place that is free.
const ATTEMPTS: usize = 16;

/// A range of addresses, of the size of a machine's RAM. It is unmapped when dropped.
///
/// Nothing is mapped there until the memory is: to map over something that KVM has been shown makes it look
/// for what it has mapped of it, for a millisecond at 8 GiB.
pub struct Reservation {
    host: u64,
    size: u64,
}

impl Reservation {
    /// Finds a place for memory of `config`.
    pub fn new(config: &MemoryConfig) -> Result<Reservation, MemoryError> {
        let (size, host) = (config.size, host_memory());
        if size > host {
            return Err(MemoryError::TooLarge { size, host });
        }
        let failed = |source| MemoryError::System {
            what: "find room for",
            source,
        };
        let mut last = io::ErrorKind::OutOfMemory.into();
        for _ in 0..ATTEMPTS {
            let mut random = [0; 8];
            // Where it is need not be guessed by anybody; that it is found does not hang on it.
            let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
            let place = u64::from_le_bytes(random) % (HIGHEST - LOWEST) + LOWEST;
            let host = place / ALIGN * ALIGN;
            match try_place(host, size) {
                Ok(()) => return Ok(Reservation { host, size }),
                Err(e) => last = e,
            }
        }
        Err(failed(last))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Maps `len` bytes of a file from `offset` on at the same offset of the place.
    pub(super) fn map(
        &self,
        file: &File,
        offset: u64,
        len: u64,
        flags: i32,
    ) -> io::Result<*mut u8> {
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let host = (self.host + offset) as *mut u8;
        // SAFETY: a new mapping at a place where nothing is, or none.
        let mapped = unsafe {
            libc::mmap(
                host.cast(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_FIXED_NOREPLACE,
                file.as_raw_fd(),
                offset as i64,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(host)
    }

    /// Shows the place to the guest as its RAM. What is mapped there later is seen at once.
    pub fn show(&self, vm: &VmFd) -> Result<(), MemoryError> {
        let mut offset = 0;
        for (slot, (base, len)) in layout::ram(self.size).into_iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: base,
                memory_size: len,
                userspace_addr: self.host + offset,
            };
            offset += len;
            // SAFETY: the range stays ours for as long as the machine that owns both lives; it drops the
            // VM first.
            unsafe { vm.set_user_memory_region(region) }.map_err(MemoryError::Kvm)?;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: what is mapped there was mapped by `map`, and whoever uses it owns a share of this.
        unsafe { libc::munmap(self.host as *mut libc::c_void, self.size as usize) };
    }
}

/// Finds out whether nothing is mapped at a place.
fn try_place(host: u64, size: u64) -> io::Result<()> {
    // SAFETY: a new mapping at a place where nothing is, or none; and it is only this that is unmapped.
    unsafe {
        let mapped = libc::mmap(
            host as *mut libc::c_void,
            size as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        );
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A kernel that does not know the flag takes the place for a hint.
        libc::munmap(mapped, size as usize);
        if mapped as u64 != host {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
    }
    Ok(())
}
