//! The few devices of a PC that Linux still looks for, and the registers of hardware-reduced ACPI.

mod acpi;
mod i8042;
mod ioapic;
mod pvpanic;
mod rtc;
mod serial;

pub use acpi::{AcpiEvents, AcpiRegisters};
pub use i8042::I8042;
pub use ioapic::{IoApic, IoApicPin, IoApicState, PINS};
pub use pvpanic::PvPanic;
pub use rtc::{Rtc, RtcState};
pub use serial::{Serial, SerialState};
