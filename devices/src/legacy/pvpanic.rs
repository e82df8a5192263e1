//! pvpanic: one port through which the guest's kernel says that it panicked (QEMU's pvpanic
//! specification).

use crate::bus::{Action, BusDevice};

const PANICKED: u64 = 1;
const CRASH_LOADED: u64 = 2;

/// The panic port.
pub struct PvPanic;

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        PANICKED | CRASH_LOADED
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) -> Action {
        if value & PANICKED != 0 {
            return Action::GuestPanic;
        }
        if value & CRASH_LOADED != 0 {
            log::warn!("the guest's kernel panicked and runs its crash kernel");
        }
        Action::None
    }
}
