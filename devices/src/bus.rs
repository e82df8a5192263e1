//! Address buses: which device answers at which address.
//!
//! Reads return values and writes return [`Action`]s; neither blocks. The layout is an immutable
//! snapshot that vCPUs read without a lock and that is replaced whole when a BAR moves.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use thiserror::Error;

/// What the machine must do after a guest's write. The bus never does it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// The driver set DRIVER_OK: start the function's queues.
    Activate(Slot),
    /// The driver wrote 0 to the device status: stop the function's queues.
    Reset(Slot),
    /// The function's BARs or its memory decoding changed: map them where they are now.
    ChangeLayout(Slot),
    /// The guest gave functions back that it was asked for: they are to be taken away.
    Eject,
    /// The guest powers the machine off (ACPI S5).
    PowerOff,
    /// The guest asks for a reset (i8042, ACPI reset register).
    Reboot,
    /// The guest's kernel panicked (pvpanic).
    GuestPanic,
}

/// A device number on PCI bus 0, from 0 to 31. Every function Skerry offers is function 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u8);

/// A device that answers at a range of addresses.
///
/// `offset` is relative to the range's start and `size` is 1, 2, 4 or 8 bytes. Implementations
/// never block and never panic, whatever the guest does.
pub trait BusDevice: Send + Sync {
    /// The value at `offset`, in the low `size` bytes.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Takes the value in the low `size` bytes.
    fn write(&self, offset: u64, size: u8, value: u64) -> Action;
}

/// Why a range could not be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps around.
    #[error("range {base:#x}+{len:#x} is empty or beyond the address space")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device is there already.
    #[error("range {base:#x}+{len:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// First address of the range that is there.
        other: u64,
    },
}

#[derive(Clone)]
struct Range {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// A map from addresses to devices.
pub struct Bus {
    ranges: ArcSwap<Vec<Range>>,
    edit: Mutex<()>,
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Bus {
            ranges: ArcSwap::from_pointee(Vec::new()),
            edit: Mutex::new(()),
        }
    }

    /// Puts `device` at `base`, `len` bytes long.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|n| base.checked_add(n))
            .ok_or(BusError::BadRange { base, len })?;
        let _edit = self.edit.lock();
        let mut ranges = Vec::clone(&self.ranges.load());
        let at = ranges.partition_point(|r| r.base < base);
        let clash = ranges[..at]
            .last()
            .filter(|r| r.last >= base)
            .or_else(|| ranges.get(at).filter(|r| r.base <= last));
        if let Some(r) = clash {
            return Err(BusError::Overlap {
                base,
                len,
                other: r.base,
            });
        }
        ranges.insert(at, Range { base, last, device });
        self.ranges.store(Arc::new(ranges));
        Ok(())
    }

    /// Takes away the range that starts at `base`; false if there is none.
    pub fn remove(&self, base: u64) -> bool {
        let _edit = self.edit.lock();
        let mut ranges = Vec::clone(&self.ranges.load());
        let before = ranges.len();
        ranges.retain(|r| r.base != base);
        let found = ranges.len() != before;
        self.ranges.store(Arc::new(ranges));
        found
    }

    /// Reads `data.len()` bytes at `addr`. What nobody answers reads as all ones, as on hardware.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(size) = access_size(data.len()) else {
            return;
        };
        let ranges = self.ranges.load();
        if let Some((range, offset)) = find(&ranges, addr, size) {
            let value = range.device.read(offset, size).to_le_bytes();
            data.copy_from_slice(&value[..data.len()]);
        }
    }

    /// Writes `data` at `addr`. What nobody answers is dropped.
    pub fn write(&self, addr: u64, data: &[u8]) -> Action {
        let Some(size) = access_size(data.len()) else {
            return Action::None;
        };
        let ranges = self.ranges.load();
        match find(&ranges, addr, size) {
            Some((range, offset)) => {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                range.device.write(offset, size, u64::from_le_bytes(value))
            }
            None => Action::None,
        }
    }
}

fn access_size(len: usize) -> Option<u8> {
    matches!(len, 1 | 2 | 4 | 8).then_some(len as u8)
}

/// The range that holds all `size` bytes at `addr`.
fn find(ranges: &[Range], addr: u64, size: u8) -> Option<(&Range, u64)> {
    let at = ranges.partition_point(|r| r.base <= addr);
    let range = &ranges[at.checked_sub(1)?];
    let last = addr.checked_add(u64::from(size) - 1)?;
    (last <= range.last).then(|| (range, addr - range.base))
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
