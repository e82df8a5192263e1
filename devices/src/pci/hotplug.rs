//! The registers by which functions come and go while the guest runs: ACPI's methods of the slots read and
//! write them (ACPI 6.5 §6.3; our own layout, in the DSDT).
//!
//! | offset | 32 bits, one a slot | |
//! |---|---|---|
//! | 0 | read | functions that have come; a read clears them |
//! | 4 | read | functions that are asked back; a read clears them |
//! | 8 | write | functions that the guest gives back |
//!
//! Only what was asked back can be given back. It is gone from the bus at once; what is behind it, the
//! machine's thread takes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::{PciRoot, SLOTS};
use crate::bus::{Action, BusDevice, Slot};

/// Bytes of the registers.
pub const HOTPLUG_LEN: u64 = 12;

const CAME: u64 = 0;
const ASKED: u64 = 4;
const EJECT: u64 = 8;
/// The host bridge stays.
const MOVABLE: u32 = !1;

/// The registers, and what was asked for.
pub struct Hotplug {
    pci: Arc<PciRoot>,
    came: AtomicU32,
    /// To be read by the guest.
    going: AtomicU32,
    /// Asked back, and not given back yet.
    asked: AtomicU32,
    /// Given back, and still to be taken away.
    ejected: AtomicU32,
}

/// What is kept of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HotplugState {
    came: u32,
    going: u32,
    asked: u32,
    ejected: u32,
}

fn bit(slot: Slot) -> u32 {
    1u32.checked_shl(slot.0.into()).unwrap_or(0)
}

fn slots(bits: u32) -> impl Iterator<Item = Slot> {
    (0..SLOTS as u8)
        .map(Slot)
        .filter(move |slot| bits & bit(*slot) != 0)
}

impl Hotplug {
    /// Of the slots of `pci`.
    pub fn new(pci: Arc<PciRoot>) -> Hotplug {
        Hotplug {
            pci,
            came: AtomicU32::new(0),
            going: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            ejected: AtomicU32::new(0),
        }
    }

    /// There is a function now. The guest is still to be told that it may look.
    pub fn came(&self, slot: Slot) {
        self.came.fetch_or(bit(slot), Ordering::SeqCst);
    }

    /// Asks a function back, also once more. The guest is still to be told that it may look.
    pub fn ask_back(&self, slot: Slot) {
        self.asked.fetch_or(bit(slot), Ordering::SeqCst);
        self.going.fetch_or(bit(slot), Ordering::SeqCst);
    }

    /// What was asked back and is not taken away yet.
    pub fn asked_back(&self) -> Vec<Slot> {
        let ejected = self.ejected.load(Ordering::SeqCst);
        slots(self.asked.load(Ordering::SeqCst) | ejected).collect()
    }

    /// What was given back since this was asked last. It is to be taken away.
    pub fn take_ejected(&self) -> Vec<Slot> {
        let ejected = self.ejected.swap(0, Ordering::SeqCst);
        for register in [&self.came, &self.going, &self.asked] {
            register.fetch_and(!ejected, Ordering::SeqCst);
        }
        slots(ejected).collect()
    }

    /// What is to be kept.
    pub fn save(&self) -> HotplugState {
        let load = |register: &AtomicU32| register.load(Ordering::SeqCst);
        HotplugState {
            came: load(&self.came),
            going: load(&self.going),
            asked: load(&self.asked),
            ejected: load(&self.ejected),
        }
    }

    /// Takes what was kept, when all functions are in their slots.
    pub fn restore(&self, state: &HotplugState) {
        let store = |register: &AtomicU32, bits: u32| {
            register.store(bits & MOVABLE, Ordering::SeqCst);
        };
        store(&self.came, state.came);
        store(&self.going, state.going);
        store(&self.asked, state.asked);
        store(&self.ejected, state.ejected);
        slots(state.ejected & MOVABLE).for_each(|slot| self.pci.remove(slot));
    }

    fn eject(&self, bits: u32) -> Action {
        // Whoever has its bit gives it back: another CPU that is late does not take what comes after it.
        let given = bits & self.asked.fetch_and(!bits, Ordering::SeqCst);
        if given == 0 {
            // A guest may leave a function alone that it was not asked for. It is there when it looks again.
            return Action::None;
        }
        slots(given).for_each(|slot| self.pci.remove(slot));
        self.ejected.fetch_or(given, Ordering::SeqCst);
        Action::Eject
    }
}

impl BusDevice for Hotplug {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (CAME, 4) => self.came.swap(0, Ordering::SeqCst).into(),
            (ASKED, 4) => self.going.swap(0, Ordering::SeqCst).into(),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Action {
        match (offset, size) {
            (EJECT, 4) => self.eject(value as u32),
            _ => Action::None,
        }
    }
}

#[cfg(test)]
#[path = "hotplug_test.rs"]
mod tests;
