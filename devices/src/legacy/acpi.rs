//! Hardware-reduced ACPI: sleep control and status, reset, and the events of the Generic Event
//! Device (ACPI 6.5 §4.8.3.7, §4.8.3.6, §5.6.9).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::{Action, BusDevice};
use crate::irq::IrqLine;

/// The sleep type of S5 in our `_S5` package.
const S5: u64 = 5;
const SLEEP_ENABLE: u64 = 1 << 5;
/// The FADT's reset value.
const RESET_VALUE: u64 = 1;

/// Three byte registers: sleep control, sleep status, reset.
pub struct AcpiRegisters;

impl BusDevice for AcpiRegisters {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> Action {
        match offset {
            0 if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == S5 => Action::PowerOff,
            2 if value & 0xff == RESET_VALUE => Action::Reboot,
            _ => Action::None,
        }
    }
}

/// The event register: pending events, which a read returns and clears.
pub struct AcpiEvents {
    pending: AtomicU8,
    line: Arc<dyn IrqLine>,
}

impl AcpiEvents {
    /// Bit 0: the power button.
    pub const POWER_BUTTON: u8 = 1;
    /// Bit 1: the machine is another one than it was (VMGenID, vmclock).
    pub const IDENTITY: u8 = 2;

    /// Bit 2: functions have come, or are asked back.
    pub const PCI: u8 = 4;

    /// Events are announced on `line`.
    pub fn new(line: Arc<dyn IrqLine>) -> AcpiEvents {
        AcpiEvents {
            pending: AtomicU8::new(0),
            line,
        }
    }

    /// Pending events, to be kept.
    pub fn save(&self) -> u8 {
        self.pending.load(Ordering::SeqCst)
    }

    /// Takes what was kept. Its interrupt was sent when the events came.
    pub fn restore(&self, pending: u8) {
        self.pending.store(pending, Ordering::SeqCst);
    }

    /// Presses the power button.
    pub fn power_button(&self) {
        self.announce(Self::POWER_BUTTON);
    }

    /// Says that the machine is another one now.
    pub fn identity_changed(&self) {
        self.announce(Self::IDENTITY);
    }

    /// Says that there is something to be read of the PCI bus.
    pub fn pci_changed(&self) {
        self.announce(Self::PCI);
    }

    fn announce(&self, event: u8) {
        self.pending.fetch_or(event, Ordering::SeqCst);
        self.line.pulse();
    }
}

impl BusDevice for AcpiEvents {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        self.pending.swap(0, Ordering::SeqCst).into()
    }

    fn write(&self, _offset: u64, _size: u8, _value: u64) -> Action {
        Action::None
    }
}
