//! A snapshot as a stream of bytes, for those who keep it elsewhere.
//!
//! ```text
//! 0   8  "SKERRYST"
//! 8   4  stream version, little-endian
//! 12  …  messages: kind (1 byte), bytes that follow (4, little-endian), these
//! ```
//!
//! | kind | | bytes |
//! |---|---|---|
//! | 1 | BEGIN, the first | [`Begin`], JSON, at most 4 KiB |
//! | 2 | PAGES, any number | where in RAM they start (8, little-endian), then whole pages, at most 1 MiB. What comes again counts, and not what came before |
//! | 3 | STATE | a state file without the memory's records, which the receiver makes of what it wrote |
//! | 4 | END, the last | BLAKE3 of everything before its bytes |
//!
//! Over a connection the receiver answers with messages as well: ACCEPTED (16) to BEGIN, before which no
//! PAGES come; WORKING (17) now and then from END on; DONE (18) with the snapshot's id when that is durable.
//! REFUSED (19) with the reason may come instead of any of them, and nothing follows it.

mod receive;
mod send;

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::{Header, MemoryKind, SnapshotError};

pub use receive::{Arriving, Incoming};
pub use send::{KeptSnapshot, StreamWriter};

const MAGIC: [u8; 8] = *b"SKERRYST";
const VERSION: u32 = 1;

const BEGIN: u8 = 1;
const PAGES: u8 = 2;
const STATE: u8 = 3;
const END: u8 = 4;
const ACCEPTED: u8 = 16;
const WORKING: u8 = 17;
const DONE: u8 = 18;
const REFUSED: u8 = 19;

/// Bytes of a message's kind and length.
const HEAD: usize = 5;
/// The most that BEGIN and an answer have.
const MAX_TEXT: usize = 4096;
/// The most pages at once, in bytes.
const MAX_PAGES: usize = 1 << 20;
/// The most that STATE has: a state file's header and its records.
const MAX_STATE: usize = 300 << 20;
/// Guest pages are what PAGES are made of.
const PAGE: usize = 4096;

/// What a stream begins with: as much of the snapshot as its receiver has to know before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// The snapshot's id.
    pub id: String,
    /// Bytes of RAM.
    pub memory: u64,
    /// The id of the snapshot that it builds on, if it is a diff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

impl Begin {
    /// Of the snapshot that `header` describes.
    pub fn of(header: &Header) -> Begin {
        let parent = header.parent.as_ref().map(|parent| parent.id.clone());
        Begin {
            id: header.id.clone(),
            memory: header.memory.size,
            parent: parent.filter(|_| header.memory.kind == MemoryKind::Diff),
        }
    }
}

/// What a receiver answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has room for the snapshot.
    Accepted,
    /// It has all of it, and makes it durable.
    Working,
    /// The snapshot of this id is durable.
    Done(String),
    /// It is not taken, for this reason.
    Refused(String),
}

impl Answer {
    /// Writes it. A long text is cut.
    pub fn write(&self, to: &mut impl Write) -> Result<(), SnapshotError> {
        let (kind, text) = match self {
            Answer::Accepted => (ACCEPTED, ""),
            Answer::Working => (WORKING, ""),
            Answer::Done(id) => (DONE, id.as_str()),
            Answer::Refused(why) => (REFUSED, why.as_str()),
        };
        let text = &text[..text.floor_char_boundary(MAX_TEXT)];
        let mut bytes = Vec::with_capacity(HEAD + text.len());
        bytes.extend(head(kind, text.len()));
        bytes.extend(text.as_bytes());
        let written = to.write_all(&bytes).and_then(|()| to.flush());
        written.map_err(link("answer"))
    }

    /// Hears that what was begun is taken on.
    pub fn accepted(from: &mut impl Read) -> Result<(), SnapshotError> {
        match Answer::read(from)? {
            Answer::Accepted => Ok(()),
            other => Err(other.refusal()),
        }
    }

    /// Hears whether the snapshot `id` is durable, or still worked on.
    pub fn is_durable(from: &mut impl Read, id: &str) -> Result<bool, SnapshotError> {
        match Answer::read(from)? {
            Answer::Working => Ok(false),
            Answer::Done(done) if done == id => Ok(true),
            other => Err(other.refusal()),
        }
    }

    /// Nothing more could be sent, for `error`: a receiver that hung up may have said why.
    pub fn why_not(error: SnapshotError, from: &mut impl Read) -> SnapshotError {
        match &error {
            SnapshotError::Link { source, .. } if source.kind() != io::ErrorKind::TimedOut => {
                match Answer::read(from) {
                    Ok(Answer::Refused(why)) => SnapshotError::Refused(why),
                    _ => error,
                }
            }
            _ => error,
        }
    }

    /// What it comes to where it was not wanted.
    fn refusal(self) -> SnapshotError {
        match self {
            Answer::Refused(why) => SnapshotError::Refused(why),
            _ => malformed("an answer that does not belong there"),
        }
    }

    /// Reads one.
    pub fn read(from: &mut impl Read) -> Result<Answer, SnapshotError> {
        let mut fixed = [0; HEAD];
        let heard = link("hear the receiver of");
        from.read_exact(&mut fixed).map_err(&heard)?;
        let (kind, len) = of_head(fixed);
        if len > MAX_TEXT {
            return Err(malformed("an answer that is too long"));
        }
        let mut text = vec![0; len];
        from.read_exact(&mut text).map_err(heard)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(match (kind, len) {
            (ACCEPTED, 0) => Answer::Accepted,
            (WORKING, 0) => Answer::Working,
            (DONE, _) => Answer::Done(text),
            (REFUSED, _) => Answer::Refused(text),
            _ => return Err(malformed("an answer of no known kind")),
        })
    }
}

fn head(kind: u8, len: usize) -> [u8; HEAD] {
    let [a, b, c, d] = (len as u32).to_le_bytes();
    [kind, a, b, c, d]
}

fn of_head([kind, a, b, c, d]: [u8; HEAD]) -> (u8, usize) {
    (kind, u32::from_le_bytes([a, b, c, d]) as usize)
}

fn malformed(what: &str) -> SnapshotError {
    SnapshotError::Stream {
        what: what.to_owned(),
    }
}

fn link(what: &'static str) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::Link { what, source }
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
