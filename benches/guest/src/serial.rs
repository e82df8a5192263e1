//! COM1: lines out, bytes in.

use core::fmt::{self, Write};

use crate::line::Line;
use crate::{interrupts, port};

/// COM1's first port.
pub const COM1: u16 = 0x3f8;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 1;

/// Turns the FIFOs on, so that the line status needs asking only once every 16 bytes.
pub fn enable_fifo() {
    port::write8(FIFO_CONTROL, 1);
}

/// Prints bytes as they are.
pub fn print(bytes: &[u8]) {
    interrupts::print(bytes);
}

/// The next byte received, if there is one.
pub fn receive() -> Option<u8> {
    (port::read8(LINE_STATUS) & DATA_READY != 0).then(|| port::read8(COM1))
}

/// Prints one line. Use [`say!`](crate::say).
pub fn say(arguments: fmt::Arguments) {
    let mut line = Line::new();
    // Writing to a line cannot fail: what doesn't fit is cut.
    let _ = line.write_fmt(arguments);
    line.end();
    print(line.as_bytes());
}

/// Prints a formatted line on COM1.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::serial::say(format_args!($($argument)*)) };
}
