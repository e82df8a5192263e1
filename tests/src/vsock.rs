//! The host's side of a vsock: `CONNECT port`, `OK`, then bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::eventually;

/// Connects to a port of the guest; retries until it listens.
pub fn connect(socket: &Path, port: u32, limit: Duration) -> UnixStream {
    eventually(&format!("the guest listens on port {port}"), limit, || {
        try_connect(socket, port)
    })
}

fn try_connect(socket: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .ok()?;
    writeln!(stream, "CONNECT {port}").ok()?;
    let mut line = String::new();
    // One byte at a time: what follows the line is the guest's.
    BufReader::with_capacity(1, &stream)
        .read_line(&mut line)
        .ok()?;
    line.starts_with("OK ").then_some(stream)
}

/// Sends `data` to an echoing port and panics unless the same comes back.
pub fn echo(stream: &mut UnixStream, data: &[u8]) {
    let mut writer = stream.try_clone().expect("a socket");
    std::thread::scope(|s| {
        s.spawn(move || writer.write_all(data).expect("the guest reads"));
        let mut back = vec![0; data.len()];
        stream.read_exact(&mut back).expect("the guest answers");
        assert!(back == data, "the guest's echo differs");
    });
}
