//! The keyboard controller, as far as it resets the machine: ports 0x60 to 0x64.

use crate::bus::{Action, BusDevice};

const COMMAND: u64 = 4;
const PULSE_RESET: u64 = 0xfe;

/// A keyboard controller without a keyboard.
pub struct I8042;

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        // Status: both buffers empty.
        0
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> Action {
        if offset == COMMAND && value & 0xff == PULSE_RESET {
            Action::Reboot
        } else {
            Action::None
        }
    }
}
