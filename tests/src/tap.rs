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

/// An interface's name and its network, unique among the test programs of one host, and short enough.
fn unique() -> (String, String) {
    let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    (
        format!("skt{}n{n}", pid % 100_000),
        format!("10.{}.{}", 128 + pid % 100, n % 250),
    )
}

/// A bridge with two taps, for a guest that goes from one to the other: the host is .1 of its network, the
/// guest .2.
pub struct Bridge {
    /// The taps' names.
    pub taps: [String; 2],
    name: String,
    network: String,
}

impl Bridge {
    /// Makes a bridge.
    pub fn new() -> Bridge {
        let (name, network) = unique();
        let taps = ["a", "b"].map(|end| format!("{name}{end}"));
        ip(&["link", "add", &name, "type", "bridge"]);
        let bridge = Bridge {
            taps,
            name,
            network,
        };
        let (name, address) = (&bridge.name, format!("{}/24", bridge.host()));
        ip(&["addr", "add", &address, "dev", name]);
        ip(&["link", "set", name, "up"]);
        for tap in &bridge.taps {
            ip(&["tuntap", "add", "dev", tap, "mode", "tap"]);
            ip(&["link", "set", tap, "master", name]);
            ip(&["link", "set", tap, "up"]);
        }
        bridge
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

impl Default for Bridge {
    fn default() -> Self {
        Bridge::new()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.taps
            .iter()
            .chain([&self.name])
            .for_each(|name| remove(name));
    }
}

fn remove(name: &str) {
    let _ = Command::new("ip").args(["link", "del", name]).status();
}

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
        let (name, network) = unique();
        let tap = Tap { name, network };
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

/// Runs `ip`, which must go well.
pub(crate) fn ip(arguments: &[&str]) {
    let status = Command::new("ip")
        .args(arguments)
        .status()
        .expect("ip, of iproute2");
    assert!(status.success(), "ip {}", arguments.join(" "));
}

impl Drop for Tap {
    fn drop(&mut self) {
        remove(&self.name);
    }
}
