//! Frames: a byte for their kind, a length (32 bits, big-endian), and so many bytes.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How much input or output a frame may carry, in bytes.
pub const DATA: usize = 64 << 10;
/// How long a frame may be, in bytes.
pub const LONGEST: usize = 4 << 20;
/// Bytes before those that a frame carries.
pub const HEAD: usize = 5;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Request,
    /// An answer.
    Answer,
    /// Input of a command; empty at its end.
    Input,
    /// Output of a command.
    Output,
    /// Errors of a command.
    Error,
    /// The size of a command's terminal.
    Resize,
    /// The exit code of a command.
    Exit,
}

const KINDS: [(Kind, u8); 7] = [
    (Kind::Request, b'q'),
    (Kind::Answer, b'a'),
    (Kind::Input, b'0'),
    (Kind::Output, b'1'),
    (Kind::Error, b'2'),
    (Kind::Resize, b'r'),
    (Kind::Exit, b'x'),
];

/// A frame, as it is sent.
///
/// # Errors
/// If it would be too long.
pub fn frame(kind: Kind, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|n| *n as usize <= LONGEST);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    let code = KINDS
        .iter()
        .find(|(one, _)| *one == kind)
        .map_or(0, |(_, code)| *code);
    let mut frame = Vec::with_capacity(HEAD + bytes.len());
    frame.push(code);
    frame.extend(length.to_be_bytes());
    frame.extend(bytes);
    Ok(frame)
}

/// A frame's kind and how many bytes it carries, of what comes first of it.
///
/// # Errors
/// If there is no such kind, or the frame is longer than one of its kind may be.
pub fn head(head: [u8; HEAD]) -> io::Result<(Kind, usize)> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let [code, length @ ..] = head;
    let kind = KINDS.iter().find(|(_, known)| *known == code);
    let (kind, _) = kind.ok_or_else(|| wrong("a frame of unknown kind"))?;
    let length = u32::from_be_bytes(length) as usize;
    let most = match kind {
        Kind::Input | Kind::Output | Kind::Error => DATA,
        _ => LONGEST,
    };
    match length > most {
        true => Err(wrong("a frame that is too long")),
        false => Ok((*kind, length)),
    }
}

/// Sends a frame.
///
/// # Errors
/// If it is too long, or the other side does not take it.
pub fn send(to: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&frame(kind, bytes)?)
}

/// Sends a frame of JSON.
///
/// # Errors
/// As [`send`].
pub fn send_json(to: &mut impl Write, kind: Kind, message: &impl Serialize) -> io::Result<()> {
    send(to, kind, &serde_json::to_vec(message)?)
}

/// Receives a frame. Nothing if the other side has closed.
///
/// # Errors
/// If it is none, or is cut off.
pub fn receive(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut first = [0; HEAD];
    match from.read(&mut first[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut first[1..])?,
    }
    let (kind, length) = head(first)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(Some((kind, bytes)))
}

/// Receives a frame of JSON of one kind.
///
/// # Errors
/// If it is of another kind, or none, or is cut off.
pub fn receive_json<M: DeserializeOwned>(from: &mut impl Read, kind: Kind) -> io::Result<M> {
    match receive(from)? {
        Some((found, bytes)) if found == kind => Ok(serde_json::from_slice(&bytes)?),
        Some(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame of another kind",
        )),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}
