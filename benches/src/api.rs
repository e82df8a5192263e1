//! A monitor's API, ours or Firecracker's: JSON in HTTP/1.1 over a Unix socket, one connection a request.
//!
//! Blocking and without a runtime, since what is measured begins when a request is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How long a monitor may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_POLL: Duration = Duration::from_micros(100);
/// How long an answer may take: a snapshot's is long.
const ANSWER: Duration = Duration::from_secs(120);
/// Bytes of an answer that are read at most.
const MAX_ANSWER: u64 = 1 << 20;

/// A monitor's API.
pub struct Api {
    socket: PathBuf,
}

/// A request whose answer was not read yet.
pub struct Sent {
    stream: UnixStream,
    what: String,
}

impl Api {
    /// Waits until somebody listens on `socket`.
    pub fn wait(socket: &Path) -> Result<Api> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(e) = UnixStream::connect(socket) {
            if Instant::now() > deadline {
                return Err(e).with_context(|| format!("nobody serves {}", socket.display()));
            }
            std::thread::sleep(CONNECT_POLL);
        }
        Ok(Api {
            socket: socket.to_owned(),
        })
    }

    /// Sends a request and doesn't wait.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Result<Sent> {
        let what = format!("{method} {path}");
        let body = body.to_string();
        let request = format!(
            "{what} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(&self.socket).with_context(|| what.clone())?;
        stream
            .set_read_timeout(Some(ANSWER))
            .and_then(|()| stream.write_all(request.as_bytes()))
            .with_context(|| what.clone())?;
        Ok(Sent { stream, what })
    }

    /// Sends a PUT and reads its answer.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.send("PUT", path, body)?.answer()
    }
}

impl Sent {
    /// Reads the answer: null if it has no body. A refusal is an error.
    pub fn answer(self) -> Result<Value> {
        let Sent { stream, what } = self;
        let (status, body) = read(stream).with_context(|| what.clone())?;
        if !(200..300).contains(&status) {
            bail!(
                "{what} was refused ({status}): {}",
                String::from_utf8_lossy(&body)
            );
        }
        match body.is_empty() {
            true => Ok(Value::Null),
            false => serde_json::from_slice(&body).with_context(|| format!("{what}: the answer")),
        }
    }
}

/// The status and the body of an answer (RFC 9112; neither monitor sends chunks).
fn read(stream: impl Read) -> Result<(u16, Vec<u8>)> {
    let mut stream = BufReader::new(stream.take(MAX_ANSWER));
    let mut line = String::new();
    stream.read_line(&mut line).context("the answer")?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("`{}` is no answer", line.trim_end()))?;
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line).context("the answer")?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("the answer's length")?;
        }
    }
    let mut body = vec![0; usize::try_from(length.min(MAX_ANSWER)).unwrap_or(0)];
    stream.read_exact(&mut body).context("the answer's body")?;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn bodies_are_as_long_as_they_say() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}next";
        assert_eq!(read(&text[..]).unwrap(), (200, b"{}".to_vec()));
        let text = b"HTTP/1.1 204 \r\nServer: x\r\n\r\n";
        assert_eq!(read(&text[..]).unwrap(), (204, Vec::new()));
        for broken in ["", "HTTP", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n{}"] {
            assert!(read(broken.as_bytes()).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_refusal_is_an_error_that_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let accept = || listener.accept().unwrap().0;
            // The first connection only asks whether somebody listens.
            drop(accept());
            let mut stream = accept();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            stream
                .write_all(b"HTTP/1.1 400 Bad\r\nContent-Length: 6\r\n\r\n[\"no\"]")
                .unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let api = Api::wait(&socket).unwrap();
        let refusal = api.put("/vm.x", &serde_json::json!({ "a": 1 }));
        let refusal = refusal.unwrap_err().to_string();
        assert!(
            refusal.contains("(400)") && refusal.contains("no"),
            "{refusal}"
        );
        let request = server.join().unwrap();
        assert!(request.starts_with("PUT /vm.x HTTP/1.1\r\n") && request.ends_with("{\"a\":1}"));
    }
}
