//! A command that runs in a container, seen from the agent.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::error::ContainerError;
use super::spec::TerminalSize;
use super::wire::{self, DATA, Kind};

/// Bytes of a command's last words.
const WORDS: usize = 256;

/// What comes of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Output; of a terminal, errors too.
    Output(Vec<u8>),
    /// Errors.
    Error(Vec<u8>),
    /// Its end, with its exit code: 128 and the signal's number if a signal killed it.
    Exit(i32),
}

/// A running command. It is killed if this is dropped before its end.
#[derive(Debug)]
pub struct Exec {
    id: String,
    connection: UnixStream,
}

/// Where a command's input goes; it can be used on another thread.
#[derive(Debug)]
pub struct ExecInput {
    connection: UnixStream,
}

impl Exec {
    pub(super) fn new(id: &str, connection: UnixStream) -> Exec {
        Exec {
            id: id.into(),
            connection,
        }
    }

    /// Where its input goes.
    pub fn input(&self) -> io::Result<ExecInput> {
        Ok(ExecInput {
            connection: self.connection.try_clone()?,
        })
    }

    /// Waits for its end: its exit code, and the last of what it said. It is killed if it takes longer than
    /// `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<(i32, String), ContainerError> {
        let (begin, mut said) = (Instant::now(), Vec::new());
        let what = format!("the command in container {}", self.id);
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(ContainerError::Slow { what, limit });
            }
            // A socket that knows no limit is an error of the system, which the next read tells.
            let _ = self.connection.set_read_timeout(Some(left));
            match self.event() {
                Ok(ExecEvent::Exit(code)) => {
                    let said = String::from_utf8_lossy(&said).trim().to_owned();
                    return Ok((code, said));
                }
                Ok(ExecEvent::Output(bytes) | ExecEvent::Error(bytes)) => {
                    said.extend(bytes);
                    let old = said.len().saturating_sub(WORDS);
                    said.drain(..old);
                }
                Err(_) if begin.elapsed() >= limit => {
                    return Err(ContainerError::Slow { what, limit });
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for what comes next. After the end, or if the shim was killed, this is an error.
    pub fn event(&mut self) -> Result<ExecEvent, ContainerError> {
        let refused = |why: String| ContainerError::Refused {
            id: self.id.clone(),
            why,
        };
        let frame = wire::receive(&mut self.connection)
            .map_err(|e| refused(format!("the connection to the command broke: {e}")))?;
        match frame {
            Some((Kind::Output, bytes)) => Ok(ExecEvent::Output(bytes)),
            Some((Kind::Error, bytes)) => Ok(ExecEvent::Error(bytes)),
            Some((Kind::Exit, code)) => {
                let code = serde_json::from_slice(&code);
                code.map(ExecEvent::Exit)
                    .map_err(|e| refused(e.to_string()))
            }
            Some(_) => Err(refused("it said something unexpected".into())),
            None => Err(refused("the container ended with the command".into())),
        }
    }
}

impl ExecInput {
    /// Gives it something to read.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(DATA) {
            wire::send(&mut self.connection, Kind::Input, part)?;
        }
        Ok(())
    }

    /// Tells it that nothing more comes.
    pub fn close(&mut self) -> io::Result<()> {
        wire::send(&mut self.connection, Kind::Input, b"")
    }

    /// Changes its terminal's size.
    pub fn resize(&mut self, size: TerminalSize) -> io::Result<()> {
        wire::send_json(&mut self.connection, Kind::Resize, &size)
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        // Also for an input that is still held. It may be closed already.
        let _ = self.connection.shutdown(Shutdown::Both);
    }
}
