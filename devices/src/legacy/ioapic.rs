//! The IOAPIC (Intel 82093AA), for KVM's split irqchip: pins become message-signalled interrupts.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};
use crate::irq::{IrqLine, MsiSend};

/// Pins, and redirection entries.
pub const PINS: usize = 24;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const VECTOR: u64 = 0xff;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are the chip's.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;

/// Version 0x20 has the EOI register; the high byte is the last entry.
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;

/// The chip's registers, which are all that is kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoApicState {
    select: u8,
    id: u8,
    entries: [u64; PINS],
    /// Level-triggered pins that were driven while their interrupt was not ended, by bit.
    waiting: u32,
}

/// An IOAPIC whose first pin is GSI 0.
pub struct IoApic {
    state: Mutex<IoApicState>,
    msi: Arc<dyn MsiSend>,
}

/// The message that a redirection entry stands for (Intel SDM vol. 3 §11.11).
fn message(entry: u64) -> (u64, u32) {
    let destination = entry >> 56 & 0xff;
    let logical = entry >> 11 & 1;
    let address = 0xfee0_0000 | destination << 12 | logical << 2;
    let delivery = entry >> 8 & 7;
    let level = u64::from(entry & LEVEL != 0);
    let data = entry & VECTOR | delivery << 8 | level << 14 | level << 15;
    (address, data as u32)
}

fn is_live_level(entry: u64) -> bool {
    entry & LEVEL != 0 && entry & MASKED == 0
}

impl IoApic {
    /// A chip with all pins masked.
    pub fn new(msi: Arc<dyn MsiSend>) -> IoApic {
        IoApic {
            state: Mutex::new(IoApicState {
                select: 0,
                id: 0,
                entries: [MASKED; PINS],
                waiting: 0,
            }),
            msi,
        }
    }

    /// What is to be kept.
    pub fn save(&self) -> IoApicState {
        self.state.lock().clone()
    }

    /// Takes what was kept.
    pub fn restore(&self, kept: &IoApicState) {
        let mut state = self.state.lock();
        *state = kept.clone();
        self.announce(&state);
    }

    /// KVM reports the end of these pins' interrupts alone; edges need nothing.
    fn announce(&self, state: &IoApicState) {
        let live = state.entries.iter().filter(|e| is_live_level(**e));
        let pins: Vec<_> = live.map(|e| message(*e)).collect();
        // Under the state's lock, so that the last writer's pins are the ones that stay.
        self.msi.set_pins(&pins);
    }

    /// Drives a pin once. A level-triggered one waits for the end of the interrupt before.
    fn pulse(&self, pin: usize) {
        let mut state = self.state.lock();
        let Some(entry) = state.entries.get_mut(pin) else {
            return;
        };
        if *entry & MASKED != 0 {
            return;
        }
        if *entry & LEVEL != 0 {
            if *entry & REMOTE_IRR != 0 {
                state.waiting |= 1 << pin;
                return;
            }
            *entry |= REMOTE_IRR;
        }
        let (address, data) = message(*entry);
        drop(state);
        self.msi.send(address, data);
    }

    /// A CPU ended the level-triggered interrupt `vector`.
    pub fn end_of_interrupt(&self, vector: u8) {
        let again = {
            let mut state = self.state.lock();
            let mut ended = 0u32;
            for (pin, entry) in state.entries.iter_mut().enumerate() {
                if *entry & LEVEL != 0 && *entry & VECTOR == u64::from(vector) {
                    *entry &= !REMOTE_IRR;
                    ended |= 1 << pin;
                }
            }
            let again = state.waiting & ended;
            state.waiting &= !ended;
            again
        };
        for pin in (0..PINS).filter(|pin| again >> pin & 1 == 1) {
            self.pulse(pin);
        }
    }

    fn write_register(&self, value: u32) {
        let mut state = self.state.lock();
        let select = state.select;
        match select {
            0 => state.id = (value >> 24) as u8 & 0xf,
            0x10..0x40 => {
                let Some(entry) = state.entries.get_mut(usize::from(select - 0x10) / 2) else {
                    return;
                };
                let old = *entry;
                let value = u64::from(value);
                let written = if select.is_multiple_of(2) {
                    old >> 32 << 32 | value
                } else {
                    old & 0xffff_ffff | value << 32
                };
                *entry = written & !READ_ONLY | old & READ_ONLY;
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
                if is_live_level(old) || is_live_level(*entry) {
                    self.announce(&state);
                }
            }
            _ => {}
        }
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let state = self.state.lock();
        let value = match (offset, state.select) {
            (SELECT, select) => select.into(),
            (WINDOW, 0 | 2) => u32::from(state.id) << 24,
            (WINDOW, 1) => VERSION,
            (WINDOW, select @ 0x10..0x40) => {
                let entry = state
                    .entries
                    .get(usize::from(select - 0x10) / 2)
                    .copied()
                    .unwrap_or(MASKED);
                (entry >> (32 * (select % 2))) as u32
            }
            _ => 0,
        };
        value.into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> Action {
        match offset {
            SELECT => self.state.lock().select = value as u8,
            WINDOW => self.write_register(value as u32),
            EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
        Action::None
    }
}

/// One pin of an IOAPIC.
pub struct IoApicPin {
    chip: Arc<IoApic>,
    pin: usize,
}

impl IoApicPin {
    /// The pin of GSI `pin`.
    pub fn new(chip: Arc<IoApic>, pin: usize) -> IoApicPin {
        IoApicPin { chip, pin }
    }
}

impl IrqLine for IoApicPin {
    fn pulse(&self) {
        self.chip.pulse(self.pin);
    }
}

#[cfg(test)]
#[path = "ioapic_test.rs"]
mod tests;
