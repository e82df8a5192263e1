//! A UDP server of the host that gives back what it is sent.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How soon it sees that it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// The server. It is closed when dropped.
pub struct UdpEcho {
    /// Its address.
    pub at: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Serves a free port of one of the host's addresses.
    pub fn start(address: &str) -> UdpEcho {
        let socket = UdpSocket::bind((address, 0)).expect("a port");
        socket.set_read_timeout(Some(LOOK)).expect("a limit");
        let at = socket.local_addr().expect("an address");
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !seen.load(Ordering::Relaxed) {
                if let Ok((size, from)) = socket.recv_from(&mut bytes) {
                    // Whoever sent it may be gone.
                    let _ = socket.send_to(&bytes[..size], from);
                }
            }
        });
        UdpEcho {
            at,
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
