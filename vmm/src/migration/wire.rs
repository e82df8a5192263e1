//! What goes over the link: messages of a kind, a length and so many bytes.

use std::io::{self, BufReader, Read, Write};
use std::time::Instant;

use skerry_link::{Connection, SILENCE};

use super::{MigrationError, link};

/// The most that a message but PAGES has.
const MAX_MESSAGE: u64 = 256 << 20;
/// The most that an answer has.
const MAX_ANSWER: u64 = 1 << 20;
/// The most that one PAGES has.
pub const MAX_PAGES: u64 = 4 << 20;

/// Kinds of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Hello,
    Accept,
    Refuse,
    Pages,
    State,
    Ready,
    Go,
    Running,
    Cancel,
    Failed,
    File,
    Data,
}

const KINDS: [Kind; 12] = [
    Kind::Hello,
    Kind::Accept,
    Kind::Refuse,
    Kind::Pages,
    Kind::State,
    Kind::Ready,
    Kind::Go,
    Kind::Running,
    Kind::Cancel,
    Kind::Failed,
    Kind::File,
    Kind::Data,
];

/// A link to another monitor.
pub struct Link(BufReader<Connection>);

impl Link {
    /// Over a connection.
    pub fn new(connection: Connection) -> Link {
        Link(BufReader::with_capacity(64 << 10, connection))
    }

    /// All that is said and heard from now on is over by then, or fails.
    pub fn bound(&self, end: Instant) {
        self.0.get_ref().bound(Some(end));
    }

    /// Nothing comes any more; the other side sees the end.
    pub fn end(&self) {
        self.0.get_ref().end();
    }

    /// Sends a message.
    pub fn send(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), MigrationError> {
        let mut head = [0; 9];
        head[0] = kind as u8;
        head[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let stream = self.0.get_mut();
        stream.allow(SILENCE);
        let sent = stream
            .write_all(&head)
            .and_then(|()| stream.write_all(bytes))
            .and_then(|()| stream.flush());
        sent.map_err(link("send to the other side"))
    }

    /// Sends pages: where they are, then their bytes, which the caller has copied.
    pub fn send_pages(&mut self, start: u64, pages: &[u8]) -> Result<(), MigrationError> {
        self.send_at(Kind::Pages, start, pages)
    }

    /// Sends bytes of the file that was announced last.
    pub fn send_data(&mut self, start: u64, bytes: &[u8]) -> Result<(), MigrationError> {
        self.send_at(Kind::Data, start, bytes)
    }

    fn send_at(&mut self, kind: Kind, start: u64, pages: &[u8]) -> Result<(), MigrationError> {
        let mut head = [0; 17];
        head[0] = kind as u8;
        head[1..9].copy_from_slice(&(8 + pages.len() as u64).to_le_bytes());
        head[9..].copy_from_slice(&start.to_le_bytes());
        let stream = self.0.get_mut();
        stream.allow(SILENCE);
        let sent = stream
            .write_all(&head)
            .and_then(|()| stream.write_all(pages));
        sent.map_err(link("send to the other side"))
    }

    /// Receives a message. `pages` is filled with the bytes of PAGES and DATA, whose place is returned. All of
    /// it has to come within [`SILENCE`].
    pub fn receive(&mut self, pages: &mut Vec<u8>) -> Result<Message, MigrationError> {
        self.0.get_ref().allow(SILENCE);
        let mut head = [0; 9];
        self.read(&mut head)?;
        let kind = KINDS.get(usize::from(head[0])).copied();
        let kind = kind.ok_or(MigrationError::Protocol("a message of no known kind"))?;
        let mut len = [0; 8];
        len.copy_from_slice(&head[1..]);
        let len = u64::from_le_bytes(len);
        if matches!(kind, Kind::Pages | Kind::Data) {
            if !(8..=8 + MAX_PAGES).contains(&len) {
                return Err(MigrationError::Protocol("too many pages at once"));
            }
            let mut start = [0; 8];
            self.read(&mut start)?;
            pages.resize(len as usize - 8, 0);
            self.read(pages)?;
            let start = u64::from_le_bytes(start);
            return Ok(match kind {
                Kind::Pages => Message::Pages(start),
                _ => Message::Data(start),
            });
        }
        let most = match kind {
            Kind::Hello | Kind::State => MAX_MESSAGE,
            _ => MAX_ANSWER,
        };
        if len > most {
            return Err(MigrationError::Protocol("an impossibly long message"));
        }
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            // It grows by what comes, not by what is said.
            let more = (len - bytes.len() as u64).min(MAX_PAGES) as usize;
            let at = bytes.len();
            bytes.resize(at + more, 0);
            self.read(&mut bytes[at..])?;
        }
        Ok(Message::Other(kind, bytes))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), MigrationError> {
        let read = self.0.read_exact(buffer);
        read.map_err(link("hear from the other side"))
    }

    /// The end of this link is the end of the process at the other side, and of nothing less.
    pub fn tells_the_end(&self) -> bool {
        self.0.get_ref().is_local()
    }

    /// Receives a message that is no PAGES.
    pub fn answer(&mut self) -> Result<(Kind, Vec<u8>), MigrationError> {
        match self.receive(&mut Vec::new())? {
            Message::Other(kind, bytes) => Ok((kind, bytes)),
            Message::Pages(_) | Message::Data(_) => {
                Err(MigrationError::Protocol("pages where an answer belongs"))
            }
        }
    }
}

/// A received message.
pub enum Message {
    /// Pages from this place on.
    Pages(u64),
    /// Bytes of a file from this place on.
    Data(u64),
    /// Anything else.
    Other(Kind, Vec<u8>),
}

/// The other side's process ended, or its connection was reset: it is not silent but gone.
pub fn is_gone(error: &MigrationError) -> bool {
    let MigrationError::Link { source, .. } = error else {
        return false;
    };
    matches!(
        source.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
