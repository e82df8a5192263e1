//! The 16550 serial port: vm-superio's, behind our bus.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState as UartState};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Action, BusDevice};
use crate::irq::IrqLine;

struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse();
        Ok(())
    }
}

/// Tells the input's worker that the receive buffer has room again.
struct RoomAgain(Option<Arc<EventFd>>);

impl SerialEvents for RoomAgain {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if let Some(resume) = &self.0 {
            let _ = resume.write(1);
        }
    }
}

type Port = Uart<Line, RoomAgain, Box<dyn Write + Send>>;

/// What is kept of a port: its registers, and what was typed and not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    divisor: (u8, u8),
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

impl From<&SerialState> for UartState {
    fn from(state: &SerialState) -> UartState {
        UartState {
            baud_divisor_low: state.divisor.0,
            baud_divisor_high: state.divisor.1,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        }
    }
}

impl From<UartState> for SerialState {
    fn from(state: UartState) -> SerialState {
        SerialState {
            divisor: (state.baud_divisor_low, state.baud_divisor_high),
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }
}

/// Interrupts that wait, in the port's identification register: data was received, the transmitter is empty.
const WAITING: u8 = 1 << 2 | 1 << 1;

/// A serial port.
pub struct Serial {
    port: Mutex<Port>,
    line: Arc<dyn IrqLine>,
}

impl Serial {
    /// A port that writes to `output`, which must not block, and interrupts on `line`. `resume` is
    /// rung whenever the guest has read all input.
    pub fn new(
        line: Arc<dyn IrqLine>,
        output: Box<dyn Write + Send>,
        resume: Option<Arc<EventFd>>,
    ) -> Serial {
        let port = Uart::with_events(Line(line.clone()), RoomAgain(resume), output);
        Serial {
            port: Mutex::new(port),
            line,
        }
    }

    /// The same port with what was kept of one. Fails if more was typed than a port holds.
    pub fn restored(
        line: Arc<dyn IrqLine>,
        output: Box<dyn Write + Send>,
        resume: Option<Arc<EventFd>>,
        state: &SerialState,
    ) -> io::Result<Serial> {
        let (events, pulses) = (RoomAgain(resume), Line(line.clone()));
        match Uart::from_state(&state.into(), pulses, events, output) {
            Ok(port) => Ok(Serial {
                port: Mutex::new(port),
                line,
            }),
            Err(e) => Err(io::Error::other(format!("{e:?}"))),
        }
    }

    /// What is to be kept.
    pub fn save(&self) -> SerialState {
        self.port.lock().state().into()
    }

    /// Says again what the guest has not heard of. What is typed while a machine is made of its state comes before
    /// its interrupt controllers know of the port, and a port does not repeat itself.
    pub fn announce(&self) {
        if self.port.lock().state().interrupt_identification & WAITING != 0 {
            self.line.pulse();
        }
    }

    /// Bytes that were typed; how many of them fitted.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut port = self.port.lock();
        if port.fifo_capacity() == 0 {
            return 0;
        }
        // Loopback mode takes nothing from outside; typed bytes are lost there.
        port.enqueue_raw_bytes(bytes).unwrap_or(bytes.len())
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, size: u8) -> u64 {
        if size != 1 {
            return u64::MAX;
        }
        self.port.lock().read(offset as u8).into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> Action {
        if let Err(e) = self.port.lock().write(offset as u8, value as u8) {
            log::debug!("serial port: {e}");
        }
        Action::None
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
