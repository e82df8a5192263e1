//! PCI: one root bus with its functions, reached through ECAM and through ports 0xcf8/0xcfc.

mod config;
mod hotplug;
mod msix;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use thiserror::Error;

use crate::bus::{Action, BusDevice, Slot};
pub use config::{Bar, ConfigSpace, Identity};
pub use hotplug::{HOTPLUG_LEN, Hotplug, HotplugState};
pub use msix::{MSIX_ENTRY, Msix, MsixState, MsixVector};

/// Devices on bus 0, the host bridge among them.
pub const SLOTS: usize = 32;
/// Configuration space of one bus in ECAM (PCIe 6.0 §7.2.2).
pub const ECAM_BUS_SIZE: u64 = 1 << 20;

/// What the address port keeps of what is written.
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// A function's configuration space.
///
/// `offset` is below 4096 and the access is naturally aligned; `size` is 1, 2 or 4.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space.
    fn config_read(&self, offset: u16, size: u8) -> u32;
    /// Writes configuration space.
    fn config_write(&self, offset: u16, size: u8, value: u32) -> Action;
}

/// Why a function could not be added.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PciError {
    /// All slots are taken.
    #[error("no PCI slot is free: one machine holds {} devices", SLOTS - 1)]
    Full,
    /// A function was in a slot where another one is now, or that does not exist.
    #[error("PCI slot {0} is taken, or there is none of that number")]
    Taken(u8),
}

type Slots = [Option<Arc<dyn PciFunction>>; SLOTS];

/// The root bus.
pub struct PciRoot {
    slots: ArcSwap<Slots>,
    /// What was written to port 0xcf8.
    address: AtomicU32,
}

impl Default for PciRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl PciRoot {
    /// A bus with nothing but its host bridge.
    pub fn new() -> PciRoot {
        let mut slots = Slots::default();
        slots[0] = Some(Arc::new(HostBridge(ConfigSpace::new(Identity {
            // QEMU's generic PCI Express host bridge, which needs no driver.
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_0000,
            subsystem: 0x1100,
        }))));
        PciRoot {
            slots: ArcSwap::from_pointee(slots),
            address: AtomicU32::new(0),
        }
    }

    /// The first free slot that is not `reserved`.
    pub fn free_slot(&self, reserved: impl Fn(Slot) -> bool) -> Result<Slot, PciError> {
        let mut slots = (0..SLOTS as u8).map(Slot);
        let free = slots.find(|slot| self.is_free(*slot) && !reserved(*slot));
        free.ok_or(PciError::Full)
    }

    /// Whether there is such a slot, and nothing in it.
    pub fn is_free(&self, slot: Slot) -> bool {
        matches!(self.slots.load().get(usize::from(slot.0)), Some(None))
    }

    /// Puts a function into a slot.
    pub fn insert(&self, slot: Slot, function: Arc<dyn PciFunction>) {
        self.slots.rcu(|slots| {
            let mut slots = Slots::clone(slots);
            if let Some(place) = slots.get_mut(usize::from(slot.0)) {
                *place = Some(function.clone());
            }
            slots
        });
    }

    /// Takes the function in a slot off the bus.
    pub fn remove(&self, slot: Slot) {
        self.slots.rcu(|slots| {
            let mut slots = Slots::clone(slots);
            if let Some(place) = slots.get_mut(usize::from(slot.0)) {
                *place = None;
            }
            slots
        });
    }

    /// What was written to the address port, to be kept.
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Takes what was kept of the address port.
    pub fn set_address(&self, address: u32) {
        self.address
            .store(address & ADDRESS_BITS, Ordering::Relaxed);
    }

    fn read(&self, bus: u8, device: u8, function: u8, offset: u16, size: u8) -> u64 {
        let slots = self.slots.load();
        match slots.get(usize::from(device)) {
            Some(Some(f)) if bus == 0 && function == 0 && aligned(offset, size) => {
                f.config_read(offset, size).into()
            }
            // Master abort.
            _ => u64::MAX,
        }
    }

    fn write(
        &self,
        bus: u8,
        device: u8,
        function: u8,
        offset: u16,
        size: u8,
        value: u64,
    ) -> Action {
        let slots = self.slots.load();
        match slots.get(usize::from(device)) {
            Some(Some(f)) if bus == 0 && function == 0 && aligned(offset, size) => {
                f.config_write(offset, size, value as u32)
            }
            _ => Action::None,
        }
    }
}

fn aligned(offset: u16, size: u8) -> bool {
    size <= 4 && offset.is_multiple_of(size.into())
}

/// The memory-mapped configuration space.
pub struct Ecam(pub Arc<PciRoot>);

impl Ecam {
    fn parts(offset: u64) -> (u8, u8, u8, u16) {
        (
            (offset >> 20) as u8,
            (offset >> 15 & 0x1f) as u8,
            (offset >> 12 & 7) as u8,
            (offset & 0xfff) as u16,
        )
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let (bus, device, function, register) = Ecam::parts(offset);
        self.0.read(bus, device, function, register, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Action {
        let (bus, device, function, register) = Ecam::parts(offset);
        self.0.write(bus, device, function, register, size, value)
    }
}

/// Ports 0xcf8 to 0xcff: address, then data (PCI 3.0 §3.2.2.3.2).
pub struct ConfigPorts(pub Arc<PciRoot>);

impl ConfigPorts {
    /// Where an access to the data port leads, if the address enables it.
    fn target(&self, offset: u64) -> Option<(u8, u8, u8, u16)> {
        let address = self.0.address.load(Ordering::Relaxed);
        (address >> 31 == 1).then(|| {
            let register = (address & 0xfc) as u16 + (offset & 3) as u16;
            (
                (address >> 16) as u8,
                (address >> 11 & 0x1f) as u8,
                (address >> 8 & 7) as u8,
                register,
            )
        })
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset {
            0 if size == 4 => self.0.address.load(Ordering::Relaxed).into(),
            4..8 => match self.target(offset) {
                Some((b, d, f, register)) => self.0.read(b, d, f, register, size),
                None => u64::MAX,
            },
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Action {
        match offset {
            0 if size == 4 => self.0.set_address(value as u32),
            4..8 => {
                if let Some((b, d, f, register)) = self.target(offset) {
                    return self.0.write(b, d, f, register, size, value);
                }
            }
            _ => {}
        }
        Action::None
    }
}

struct HostBridge(ConfigSpace);

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u16, size: u8) -> u32 {
        self.0.read(offset, size)
    }

    fn config_write(&self, _offset: u16, _size: u8, _value: u32) -> Action {
        Action::None
    }
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
