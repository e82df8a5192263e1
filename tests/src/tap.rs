//! Taps with an address of their own, removed when dropped.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A tap interface: the host is .1 of its network, the guest .2.
pub struct Tap {
    /// The interface's name.
    pub name: String,
    network: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Tap {
    /// Makes a tap.
    pub fn new() -> Tap {
        Tap::make(&[])
    }

    /// Makes a tap with several queues.
    pub fn multi_queue() -> Tap {
        Tap::make(&["multi_queue"])
    }

    fn make(options: &[&str]) -> Tap {
        // Unique among the test programs of one host, and short enough for an interface.
        let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let tap = Tap {
            name: format!("skt{}n{n}", pid % 100_000),
            network: format!("10.{}.{}", 128 + pid % 100, n % 250),
        };
        let mut add = vec!["tuntap", "add", "dev", &tap.name, "mode", "tap"];
        add.extend(options);
        ip(&add);
        ip(&[
            "addr",
            "add",
            &format!("{}/24", tap.host()),
            "dev",
            &tap.name,
        ]);
        ip(&["link", "set", &tap.name, "up"]);
        tap
    }

    /// The host's address.
    pub fn host(&self) -> String {
        format!("{}.1", self.network)
    }

    /// The guest's address.
    pub fn guest(&self) -> String {
        format!("{}.2", self.network)
    }
}

impl Default for Tap {
    fn default() -> Self {
        Tap::new()
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip")
        .args(arguments)
        .status()
        .expect("ip, of iproute2");
    assert!(status.success(), "ip {}", arguments.join(" "));
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "del", &self.name])
            .status();
    }
}
