//! What is outside of a host with a network of its own: another host, at the other end of its uplink.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::host::Host;
use crate::tap::ip;

/// The host's address on its uplink.
pub const HOST: &str = "192.0.2.1";
/// The address outside.
pub const OUTSIDE: &str = "192.0.2.2";
/// The host's interface to the outside.
pub const UPLINK: &str = "uplink";

/// Another host; it goes when this is dropped.
pub struct Outside {
    name: String,
}

/// Does something in a network namespace, on a thread of its own.
pub fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let path = format!("/run/netns/{namespace}");
            let file = File::open(path).expect("a namespace");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), kind).expect("entered");
            work()
        });
        thread.join().expect("nobody panics")
    })
}

/// The body of the answer to `GET /`.
///
/// # Errors
/// If there is none within a time.
pub fn get(to: SocketAddr, limit: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((_, body)) if !body.is_empty() => Ok(body.trim().to_owned()),
        _ => Err(std::io::Error::other(format!(
            "an answer without a body: {text}"
        ))),
    }
}

impl Outside {
    /// Connects a host to another one, by which its default route goes.
    pub fn of(host: &Host) -> Outside {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let outside = Outside {
            name: format!("skt{}o{n}", std::process::id()),
        };
        let (name, here) = (outside.name.as_str(), host.namespace());
        ip(&["netns", "add", name]);
        ip(&[
            "-n", here, "link", "add", UPLINK, "type", "veth", "peer", "eth0", "netns", name,
        ]);
        for (space, link, address) in [(here, UPLINK, HOST), (name, "eth0", OUTSIDE)] {
            let address = format!("{address}/24");
            ip(&["-n", space, "address", "add", &address, "dev", link]);
            ip(&["-n", space, "link", "set", link, "up"]);
            ip(&["-n", space, "link", "set", "lo", "up"]);
        }
        ip(&["-n", here, "route", "add", "default", "via", OUTSIDE]);
        outside
    }

    /// Lets it look for an address at the other end of its own uplink.
    pub fn expects_near(&self, address: &str) {
        ip(&["-n", &self.name, "route", "add", address, "dev", "eth0"]);
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// Does something there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.name, work)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.name]);
    }
}
