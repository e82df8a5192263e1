//! MSI-X (PCIe 6.0 §6.1.4): the table, masks and pending bits.
//!
//! Firing takes no lock: a vector's mask and pending bit are atomics, ordered so that an interrupt
//! raised while the guest unmasks is sent once and never lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::irq::{MsiSource, MsiVector};

/// Bytes of one table entry.
pub const MSIX_ENTRY: u64 = 16;

const MASKED: u32 = 1;

/// One vector as the device sees it.
pub struct MsixVector {
    masked: AtomicBool,
    pending: AtomicBool,
    /// Made when the guest first unmasks it: a vector that is never used costs nothing.
    vector: OnceLock<Arc<dyn MsiVector>>,
}

impl MsixVector {
    /// Sends the interrupt, or remembers it while it is masked.
    pub fn fire(&self) {
        if self.masked.load(Ordering::SeqCst) {
            self.pending.store(true, Ordering::SeqCst);
            // The guest may have unmasked in between and not seen the pending bit.
            if self.masked.load(Ordering::SeqCst) || !self.pending.swap(false, Ordering::SeqCst) {
                return;
            }
        }
        if let Some(vector) = self.vector.get() {
            vector.fire();
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// What is kept of a table; its control register is in configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    entries: Vec<MsixEntryState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MsixEntryState {
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
}

struct Table {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

/// A function's MSI-X table.
pub struct Msix {
    table: Mutex<Table>,
    vectors: Vec<Arc<MsixVector>>,
    source: Arc<dyn MsiSource>,
}

impl Msix {
    /// A table of `vectors` entries, all masked.
    pub fn new(vectors: u16, source: Arc<dyn MsiSource>) -> Msix {
        let masked = Entry {
            control: MASKED,
            ..Entry::default()
        };
        Msix {
            table: Mutex::new(Table {
                entries: vec![masked; vectors.into()],
                enabled: false,
                masked: false,
            }),
            vectors: (0..vectors)
                .map(|_| {
                    Arc::new(MsixVector {
                        masked: AtomicBool::new(true),
                        pending: AtomicBool::new(false),
                        vector: OnceLock::new(),
                    })
                })
                .collect(),
            source,
        }
    }

    /// Number of vectors.
    pub fn len(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Whether the function has no vectors.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// A vector to fire, if there is one of that number.
    pub fn vector(&self, index: u16) -> Option<Arc<MsixVector>> {
        self.vectors.get(usize::from(index)).cloned()
    }

    /// The message control register was written: bit 15 enables, bit 14 masks the function.
    pub fn set_control(&self, control: u16) {
        let mut table = self.table.lock();
        table.enabled = control >> 15 & 1 == 1;
        table.masked = control >> 14 & 1 == 1;
        for index in 0..self.vectors.len() {
            self.apply(&table, index, false);
        }
    }

    /// Reads the table.
    pub fn table_read(&self, offset: u64, size: u8) -> u64 {
        let table = self.table.lock();
        let Some(e) = table.entries.get((offset / MSIX_ENTRY) as usize) else {
            return 0;
        };
        let low = e.address;
        let high = u64::from(e.control) << 32 | u64::from(e.data);
        match (offset % MSIX_ENTRY, size) {
            (0, 8) => low,
            (8, 8) => high,
            (0, 4) => low & 0xffff_ffff,
            (4, 4) => low >> 32,
            (8, 4) => high & 0xffff_ffff,
            (12, 4) => high >> 32,
            // Anything else is undefined (PCIe 6.0 §7.7.2.8).
            _ => 0,
        }
    }

    /// Writes the table.
    pub fn table_write(&self, offset: u64, size: u8, value: u64) {
        let mut table = self.table.lock();
        let index = (offset / MSIX_ENTRY) as usize;
        let Some(e) = table.entries.get_mut(index) else {
            return;
        };
        let old = (e.address, e.data);
        match (offset % MSIX_ENTRY, size) {
            (0, 8) => e.address = value & !3,
            (8, 8) => (e.data, e.control) = (value as u32, (value >> 32) as u32 & MASKED),
            (0, 4) => e.address = e.address >> 32 << 32 | value & 0xffff_fffc,
            (4, 4) => e.address = e.address & 0xffff_ffff | value << 32,
            (8, 4) => e.data = value as u32,
            (12, 4) => e.control = value as u32 & MASKED,
            _ => return,
        }
        let changed = old != (e.address, e.data);
        self.apply(&table, index, changed);
    }

    /// Reads the pending bits.
    pub fn pending_read(&self, offset: u64, size: u8) -> u64 {
        let first = (offset as usize).saturating_mul(8);
        (0..usize::from(size) * 8)
            .filter(|bit| {
                let vector = self.vectors.get(first.saturating_add(*bit));
                vector.is_some_and(|v| v.pending.load(Ordering::SeqCst))
            })
            .fold(0, |bits, bit| bits | 1 << bit)
    }

    /// What is to be kept.
    pub fn save(&self) -> MsixState {
        let table = self.table.lock();
        let entries = table.entries.iter().zip(&self.vectors);
        MsixState {
            entries: entries
                .map(|(e, vector)| MsixEntryState {
                    address: e.address,
                    data: e.data,
                    control: e.control,
                    pending: vector.pending.load(Ordering::SeqCst),
                })
                .collect(),
        }
    }

    /// Takes what was kept, with the control register that goes with it. Interrupts that were pending and
    /// are not masked are sent. False if it is another table's.
    pub fn restore(&self, state: &MsixState, control: u16) -> bool {
        {
            let mut table = self.table.lock();
            if state.entries.len() != table.entries.len() {
                return false;
            }
            for ((e, vector), saved) in table
                .entries
                .iter_mut()
                .zip(&self.vectors)
                .zip(&state.entries)
            {
                (e.address, e.data, e.control) =
                    (saved.address & !3, saved.data, saved.control & MASKED);
                vector.pending.store(saved.pending, Ordering::SeqCst);
            }
        }
        self.set_control(control);
        true
    }

    /// Forgets everything (function reset).
    pub fn reset(&self) {
        for vector in &self.vectors {
            vector.pending.store(false, Ordering::SeqCst);
        }
    }

    fn apply(&self, table: &Table, index: usize, message_changed: bool) {
        let (Some(e), Some(vector)) = (table.entries.get(index), self.vectors.get(index)) else {
            return;
        };
        let masked = !table.enabled || table.masked || e.control & MASKED != 0;
        let was_masked = vector.masked.load(Ordering::SeqCst);
        if !masked && (was_masked || message_changed) && !self.route(vector, e) {
            return;
        }
        vector.masked.store(masked, Ordering::SeqCst);
        if !masked && vector.pending.swap(false, Ordering::SeqCst) {
            vector.fire();
        }
    }

    fn route(&self, vector: &MsixVector, e: &Entry) -> bool {
        let made = match vector.vector.get() {
            Some(made) => Ok(made),
            None => self
                .source
                .vector()
                .map(|new| vector.vector.get_or_init(|| new)),
        };
        match made.and_then(|v| v.route(e.address, e.data)) {
            Ok(()) => true,
            Err(error) => {
                log::error!("cannot route an interrupt to {:#x}: {error}", e.address);
                false
            }
        }
    }
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
