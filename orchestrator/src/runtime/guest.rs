//! Commands in a VM: over its vsock to the agent in its guest, if there is one.

use std::io;
use std::path::Path;
use std::time::Duration;

use skerry_exec::wire::{HEAD, frame, head};
use skerry_exec::{ExecSpec, GUEST_PORT, Kind, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{RuntimeError, system};

/// A guest's agent answers within this.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of the line that a monitor answers with.
const LINE: usize = 32;
/// Bytes of an agent's answer: it is the guest's, which may say anything.
const ANSWER: usize = 16 << 10;

/// Runs a command in the guest whose monitor's vsock is at `vsock`.
pub async fn exec(vsock: &Path, spec: ExecSpec) -> Result<UnixStream, RuntimeError> {
    let unfit = |what: &str| Err(RuntimeError::Unfit(what.to_owned()));
    let mut stream = match UnixStream::connect(vsock).await {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound) => {
            return unfit(
                "it has no vsock, over which its guest is reached: set `vsock: true` in its spec and start it \
                 again",
            );
        }
        Err(e) => return Err(system("connect to its vsock")(e)),
    };
    let asked = async {
        if !connected(&mut stream).await? {
            return Ok(None);
        }
        let request = serde_json::to_vec(&Request::Exec(spec))?;
        stream.write_all(&frame(Kind::Request, &request)?).await?;
        answer(&mut stream).await.map(Some)
    };
    match timeout(PATIENCE, asked).await {
        Err(_) => unfit("the agent in its guest does not answer"),
        Ok(Err(e)) => Err(system("talk to the agent in its guest")(e)),
        Ok(Ok(None)) => unfit(
            "no agent listens in its guest: run `skerry-guest` in it, from its init or as a service (a guest \
             that still boots may do so soon)",
        ),
        Ok(Ok(Some(Reply::Refused(why)))) => Err(RuntimeError::Unfit(printable(&why))),
        Ok(Ok(Some(Reply::Done))) => Ok(stream),
    }
}

/// Asks the monitor for the agent's port. Whether somebody listens there.
async fn connected(stream: &mut UnixStream) -> io::Result<bool> {
    let line = format!("CONNECT {GUEST_PORT}\n");
    // A monitor whose guest refuses closes the connection, perhaps already.
    if stream.write_all(line.as_bytes()).await.is_err() {
        return Ok(false);
    }
    let mut said = Vec::with_capacity(LINE);
    // A byte at a time: what follows the line is the agent's.
    while said.last() != Some(&b'\n') && said.len() < LINE {
        match stream.read_u8().await {
            Ok(byte) => said.push(byte),
            Err(_) => return Ok(false),
        }
    }
    Ok(said.starts_with(b"OK "))
}

async fn answer(stream: &mut UnixStream) -> io::Result<Reply> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut first = [0; HEAD];
    stream.read_exact(&mut first).await?;
    let (kind, length) = head(first)?;
    if kind != Kind::Answer || length > ANSWER {
        return Err(wrong("what listens there is no agent"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// A guest's words without what would command a terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
#[path = "guest_test.rs"]
mod tests;
