//! The loopback of a new network namespace: the kernel makes it, and somebody has to switch it on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Switches the loopback on in the network namespace of a process.
pub fn switch_on(process: i32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{process}/ns/net"))?;
    // Only a thread of its own goes there.
    let thread = std::thread::Builder::new().name("loopback".into());
    let thread = thread.spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        up()
    })?;
    let panicked = |_| Err(io::Error::other("its thread ended"));
    thread.join().unwrap_or_else(panicked)
}

fn up() -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all zeros are a valid request: an empty name, and flags of zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the socket is open, and the request is what this call reads.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
