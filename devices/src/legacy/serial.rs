//! The 16550 serial port: vm-superio's, behind our bus.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use vm_superio::serial::SerialEvents;
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

/// A serial port.
pub struct Serial(Mutex<Port>);

impl Serial {
    /// A port that writes to `output`, which must not block, and interrupts on `line`. `resume` is
    /// rung whenever the guest has read all input.
    pub fn new(
        line: Arc<dyn IrqLine>,
        output: Box<dyn Write + Send>,
        resume: Option<Arc<EventFd>>,
    ) -> Serial {
        Serial(Mutex::new(Uart::with_events(
            Line(line),
            RoomAgain(resume),
            output,
        )))
    }

    /// Bytes that were typed; how many of them fitted.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut port = self.0.lock();
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
        self.0.lock().read(offset as u8).into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> Action {
        if let Err(e) = self.0.lock().write(offset as u8, value as u8) {
            log::debug!("serial port: {e}");
        }
        Action::None
    }
}
