//! A line of text in a fixed buffer: what a task reports, why it failed.

use core::fmt;

const BYTES: usize = 512;

/// Text of at most 511 bytes and its newline; what doesn't fit is cut.
pub struct Line {
    bytes: [u8; BYTES],
    length: usize,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self {
            bytes: [0; BYTES],
            length: 0,
        }
    }

    /// What was written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// What was written so far, as text.
    pub fn as_str(&self) -> &str {
        text(self.as_bytes())
    }

    /// Appends the newline.
    pub fn end(&mut self) {
        self.bytes[self.length] = b'\n';
        self.length += 1;
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays free for the newline.
        let room = BYTES - 1 - self.length;
        let taken = text.len().min(room);
        self.bytes[self.length..self.length + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        Ok(())
    }
}

const REASON_BYTES: usize = 112;

/// Why a task failed: the text after `reason=`. Small, because it travels in results.
pub struct Failure {
    text: [u8; REASON_BYTES],
    length: u8,
}

impl Failure {
    /// Formats the reason. Use [`failure!`](crate::failure).
    pub fn new(arguments: fmt::Arguments) -> Self {
        let mut line = Line::new();
        // Writing to a line cannot fail.
        let _ = fmt::Write::write_fmt(&mut line, arguments);
        let length = line.length.min(REASON_BYTES);
        let mut text = [0; REASON_BYTES];
        text[..length].copy_from_slice(&line.bytes[..length]);
        Self {
            text,
            length: length as u8,
        }
    }

    /// The reason.
    pub fn reason(&self) -> &str {
        text(&self.text[..usize::from(self.length)])
    }
}

/// A cut may have split a character.
fn text(bytes: &[u8]) -> &str {
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
    }
}

/// What a fallible step of a task gives.
pub type Outcome<T = ()> = Result<T, Failure>;

/// A [`Failure`] with a formatted reason: words joined by `-`, then details as `key=value`.
#[macro_export]
macro_rules! failure {
    ($($argument:tt)*) => { $crate::line::Failure::new(format_args!($($argument)*)) };
}
