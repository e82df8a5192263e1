//! The host's side of a vsock: `CONNECT port`, `OK`, then bytes; and a port of the host that gives back
//! what it is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
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

/// A port of the host on which all guests of a socket get back what they send. It is closed when dropped.
pub struct EchoServer {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Serves `port` of the vsock whose socket is, or will be, at `socket`.
    pub fn start(socket: &Path, port: u32) -> EchoServer {
        let mut path = socket.as_os_str().to_owned();
        path.push(format!("_{port}"));
        let path = PathBuf::from(path);
        let listener = UnixListener::bind(&path).expect("a listener");
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || give_back(stream));
            }
        });
        EchoServer {
            path,
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // It wakes up to see that, if it can be reached.
        if UnixStream::connect(&self.path).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Until the guest, or its monitor, is gone.
fn give_back(mut stream: UnixStream) {
    let mut buffer = [0; 4096];
    while let Ok(n) = stream.read(&mut buffer)
        && n > 0
        && stream.write_all(&buffer[..n]).is_ok()
    {}
}
