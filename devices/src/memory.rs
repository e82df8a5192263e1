//! Guest memory as devices see it: a guest range becomes a host pointer, or nothing.

use std::any::Any;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The guest's RAM. Cloning shares it; the mapping lives as long as any clone.
#[derive(Clone)]
pub struct GuestRam(Arc<Mapped>);

struct Mapped {
    memory: GuestMemoryMmap,
    /// Unmaps it when it is dropped, if the memory does not itself.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl GuestRam {
    /// Shares `memory` with devices.
    pub fn new(memory: GuestMemoryMmap) -> Self {
        GuestRam(Arc::new(Mapped {
            memory,
            _owner: None,
        }))
    }

    /// Shares `memory`, which is mapped for as long as `owner` lives.
    pub fn owned_by(memory: GuestMemoryMmap, owner: Arc<dyn Any + Send + Sync>) -> Self {
        GuestRam(Arc::new(Mapped {
            memory,
            _owner: Some(owner),
        }))
    }

    /// The memory itself, for code that loads or inspects the guest.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.0.memory
    }

    /// The host address of `len` bytes of RAM at `addr`, if they are all in one region.
    ///
    /// The pointer is valid while any clone of this `GuestRam` lives. The guest may change the
    /// bytes at any time: read each of them once, and volatile.
    pub fn host_range(&self, addr: u64, len: usize) -> Option<*mut u8> {
        let slice = self.0.memory.get_slice(GuestAddress(addr), len).ok()?;
        Some(slice.ptr_guard_mut().as_ptr())
    }
}
