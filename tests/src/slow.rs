//! A link between two Unix sockets that carries no more than so many bytes a second.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes that it carries at once.
const CHUNK: usize = 64 << 10;

/// Takes one connection at `from` and lets it go on to `to`, at `rate` bytes a second; what comes back is not
/// slowed down. It ends with the connection.
pub fn link(from: &Path, to: &Path, rate: u64) {
    let listener = UnixListener::bind(from).expect("a listener");
    let to = to.to_owned();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().expect("a connection");
        let far = UnixStream::connect(to).expect("the other end");
        let (back, forth) = (near.try_clone(), far.try_clone());
        let (back, forth) = (back.expect("a socket"), forth.expect("a socket"));
        std::thread::spawn(move || carry(far, back, None));
        carry(near, forth, Some(rate));
    });
}

/// Carries bytes one way until either end is gone.
fn carry(mut from: UnixStream, mut to: UnixStream, rate: Option<u64>) {
    let mut bytes = vec![0; CHUNK];
    let mut free = Instant::now();
    while let Ok(size @ 1..) = from.read(&mut bytes) {
        if let Some(rate) = rate {
            free = free.max(Instant::now()) + Duration::from_secs_f64(size as f64 / rate as f64);
            std::thread::sleep(free.saturating_duration_since(Instant::now()));
        }
        if to.write_all(&bytes[..size]).is_err() {
            break;
        }
    }
    // Whichever it was, the other one hears of it.
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Write);
}
