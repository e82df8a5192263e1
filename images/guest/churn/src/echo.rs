//! Datagrams to a server that gives them back: what comes back is what was sent. That some are lost is
//! nobody's fault.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::load::Wrong;
use crate::pattern;

/// Bytes of a datagram: it fits every network.
const SIZE: usize = 1024;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long nothing is sent after an answer.
const REST: Duration = Duration::from_millis(20);

/// What the thread has seen.
#[derive(Default)]
struct Seen {
    answers: AtomicU64,
    wrong: Mutex<Option<String>>,
    over: AtomicBool,
}

/// A thread that sends datagrams, one at a time.
pub struct Echo {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts sending to `server`, an address and a port.
    pub fn start(server: &str) -> Result<Self, Wrong> {
        let failed = |error| Wrong::Other(format!("datagrams to {server}: {error}"));
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(failed)?;
        socket.connect(server).map_err(failed)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let seen = Arc::new(Seen::default());
        let theirs = seen.clone();
        Ok(Self {
            seen,
            thread: Some(std::thread::spawn(move || exchange(&socket, &theirs))),
        })
    }

    /// How many datagrams came back, unless one was another.
    pub fn answers(&self) -> Result<u64, Wrong> {
        let wrong = self.seen.wrong.lock();
        match &*wrong.unwrap_or_else(PoisonError::into_inner) {
            None => Ok(self.seen.answers.load(Ordering::Relaxed)),
            Some(what) => Err(Wrong::Other(what.clone())),
        }
    }
}

/// A datagram: its number, then a pattern of that number.
fn datagram(number: u32) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    pattern::fill(&mut bytes, number, u64::from(number));
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn exchange(socket: &UdpSocket, seen: &Seen) {
    let mut answer = [0; SIZE + 1];
    let mut number = 0u32;
    while !seen.over.load(Ordering::Relaxed) {
        number = number.wrapping_add(1);
        // A network that is down for a moment loses it, as it may.
        let _ = socket.send(&datagram(number));
        // Late answers to what was sent before come first.
        loop {
            let size = match socket.recv(&mut answer) {
                Ok(size) => size,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
                        std::thread::sleep(PATIENCE);
                    }
                    break;
                }
            };
            let Some(got) = number_of(&answer[..size], number) else {
                let found = format!("a datagram of {size} bytes came back as another");
                let mut wrong = seen.wrong.lock().unwrap_or_else(PoisonError::into_inner);
                *wrong = Some(found);
                return;
            };
            seen.answers.fetch_add(1, Ordering::Relaxed);
            if got == number {
                std::thread::sleep(REST);
                break;
            }
        }
    }
}

/// The number of a datagram that was sent, up to `last`.
fn number_of(bytes: &[u8], last: u32) -> Option<u32> {
    let number = u32::from_le_bytes(*bytes.first_chunk()?);
    (number <= last && bytes == datagram(number)).then_some(number)
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.seen.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An exchange with a server that changes datagrams as `change` says.
    fn exchanged(change: fn(&mut [u8])) -> (Echo, JoinHandle<()>) {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let at = server.local_addr().expect("an address").to_string();
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; SIZE];
            for _ in 0..3 {
                let (size, from) = server.recv_from(&mut bytes).expect("a datagram");
                change(&mut bytes[..size]);
                server.send_to(&bytes[..size], from).expect("sent");
            }
        });
        (Echo::start(&at).expect("a socket"), thread)
    }

    #[test]
    fn what_comes_back_is_counted() {
        let (echo, server) = exchanged(|_| {});
        server.join().expect("three datagrams");
        while echo.answers().expect("all as it should be") < 3 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_comes_back_as_another_is_told() {
        let (echo, _server) = exchanged(|bytes| bytes[500] ^= 1);
        loop {
            if let Err(wrong) = echo.answers() {
                assert!(wrong.to_string().contains("1024 bytes"), "{wrong}");
                return;
            }
            std::thread::yield_now();
        }
    }
}
