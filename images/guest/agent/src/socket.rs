//! Where is listened: a vsock port, or a Unix socket where there is no vsock.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 32;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A port of the guest's vsock.
    Vsock(u32),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let port = |port: &str| port.parse().ok().map(Address::Vsock);
        let found = match text.split_once(':') {
            Some(("vsock", number)) => port(number),
            Some(("unix", path)) if !path.is_empty() => Some(Address::Unix(path.into())),
            _ => None,
        };
        found.ok_or_else(|| format!("`{text}` is no address: give vsock:PORT or unix:PATH"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Vsock(port) => write!(f, "vsock:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that is listened on.
pub enum Listener {
    /// Of vsock.
    Vsock(OwnedFd),
    /// A Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Listens.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        match address {
            Address::Vsock(port) => vsock(*port).map(Listener::Vsock),
            Address::Unix(path) => UnixListener::bind(path).map(Listener::Unix),
        }
    }

    /// The next connection. Whatever its family, it is read, written and closed in the same way.
    pub fn accept(&self) -> io::Result<UnixStream> {
        match self {
            Listener::Unix(listener) => Ok(listener.accept()?.0),
            Listener::Vsock(listener) => {
                let (at, flags) = (listener.as_raw_fd(), libc::SOCK_CLOEXEC);
                // SAFETY: the descriptor is open, and no address is asked for.
                let fd =
                    unsafe { libc::accept4(at, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
                Ok(owned(fd)?.into())
            }
        }
    }
}

fn vsock(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let socket = owned(fd)?;
    // SAFETY: it is numbers alone, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address is so long.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open.
    match unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    match fd {
        0.. => {
            // SAFETY: the kernel has just opened it for us alone.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
