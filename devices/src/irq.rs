//! How devices reach the guest: interrupt lines and message-signalled vectors.
//!
//! Devices know these traits only. The machine implements them on irqfds and KVM's routing.

use std::io;
use std::sync::Arc;

/// A wired interrupt, one pin of the IOAPIC.
pub trait IrqLine: Send + Sync {
    /// Drives the pin once (edge).
    fn pulse(&self);
}

/// One message-signalled interrupt of a function.
pub trait MsiVector: Send + Sync {
    /// Sends the interrupt.
    fn fire(&self);
    /// Where the guest wants it: the message's address and data, from its MSI-X table.
    fn route(&self, address: u64, data: u32) -> io::Result<()>;
}

/// Where functions get their vectors from.
pub trait MsiSource: Send + Sync {
    /// A new vector; it goes nowhere until it is routed.
    fn vector(&self) -> io::Result<Arc<dyn MsiVector>>;
}

/// Sends a message-signalled interrupt once: what an IOAPIC does with its pins.
pub trait MsiSend: Send + Sync {
    /// Delivers `data` to `address`.
    fn send(&self, address: u64, data: u32);
    /// Tells the hypervisor the messages of the IOAPIC's pins (address, data), so that it can
    /// report their end of interrupt.
    fn set_pins(&self, pins: &[(u64, u32)]);
}
