//! Connections, and where one is waited for.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout, set_tcp_nodelay};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect,
    shutdown, socket_with,
};

use crate::socket::{Bytes, Hangup, Socket};
use crate::{Address, Identity, LinkError, SILENCE};

/// The bytes of a connection, in the clear or under TLS.
pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection.
pub struct Connection {
    /// It is a Unix socket.
    local: bool,
    socket: Arc<Socket>,
    stream: Box<dyn Stream>,
}

impl Connection {
    /// Connects to whoever listens there. `hangup` ends it early.
    pub fn connect(
        address: &Address,
        identity: Option<Identity>,
        hangup: &Hangup,
    ) -> Result<Connection, LinkError> {
        let failed = |source| LinkError::System {
            what: "reach",
            at: address.to_string(),
            source,
        };
        let socket = Socket::new(match address {
            Address::Unix(path) => connect_unix(path).map_err(failed)?.into(),
            Address::Tcp(at) => connect_tcp(at).map_err(failed)?.into(),
        });
        hangup.hold(&socket);
        let bytes = Bytes(socket.clone());
        let stream: Box<dyn Stream> = match (address, identity) {
            (Address::Tcp(at), Some(identity)) => {
                let host = at.rsplit_once(':').map_or(at.as_str(), |(host, _)| host);
                identity.connect(host, bytes)?
            }
            _ => Box::new(bytes),
        };
        Ok(Connection {
            local: matches!(address, Address::Unix(_)),
            socket,
            stream,
        })
    }

    /// Over a socket that is connected already.
    pub fn over(stream: UnixStream) -> Connection {
        let socket = Socket::new(stream.into());
        Connection {
            local: true,
            stream: Box::new(Bytes(socket.clone())),
            socket,
        }
    }

    /// The end of it is the end of the process at the other side, and of nothing less.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// What is read and written from now on is over within `limit`, or fails.
    pub fn allow(&self, limit: Duration) {
        self.socket.allow(limit);
    }

    /// All that is read and written from now on is over by `end`, whatever is allowed, or fails.
    pub fn bound(&self, end: Option<Instant>) {
        self.socket.bound(end);
    }

    /// Nothing comes or goes any more; the other side sees the end.
    pub fn end(&self) {
        self.socket.end();
    }

    /// Says that nothing follows, and waits a while for the other side's end. What was sent last may be lost
    /// with a connection that is closed while something is on its way here.
    pub fn part(&mut self, limit: Duration) {
        let _ = self.stream.flush();
        let _ = shutdown(&self.socket.fd, Shutdown::Write);
        self.bound(Some(Instant::now() + limit));
        let mut rest = vec![0; 64 << 10];
        while matches!(self.read(&mut rest), Ok(n) if n > 0) {}
        self.end();
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// One whose queue is full would keep us waiting as long as it likes.
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(SILENCE))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn connect_tcp(at: &str) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in at.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, SILENCE) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Where somebody is waited for. The file of a Unix socket goes with it.
pub struct Listener {
    address: Address,
    socket: Arc<Socket>,
    made: Option<PathBuf>,
}

impl Listener {
    /// Listens at `address`.
    pub fn bind(address: &Address) -> Result<Listener, LinkError> {
        let failed = |source| LinkError::System {
            what: "listen at",
            at: address.to_string(),
            source,
        };
        let (socket, made) = match address {
            Address::Unix(path) => {
                let listener = UnixListener::bind(path).map_err(failed)?;
                (Socket::new(listener.into()), Some(path.clone()))
            }
            Address::Tcp(at) => {
                let listener = TcpListener::bind(at).map_err(failed)?;
                (Socket::new(listener.into()), None)
            }
        };
        Ok(Listener {
            address: address.clone(),
            socket,
            made,
        })
    }

    /// The first one who comes, however long that takes; nobody else is let in. `hangup` ends the wait, and
    /// then the connection.
    pub fn accept(
        self,
        identity: Option<Identity>,
        hangup: &Hangup,
    ) -> Result<Connection, LinkError> {
        let failed = |source| LinkError::System {
            what: "accept a connection at",
            at: self.address.to_string(),
            source,
        };
        hangup.hold(&self.socket);
        let accepted = loop {
            match accept_with(&self.socket.fd, SocketFlags::CLOEXEC) {
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                accepted => break accepted.map_err(|e| failed(e.into()))?,
            }
        };
        let local = self.made.is_some();
        if !local {
            set_tcp_nodelay(&accepted, true).map_err(|e| failed(e.into()))?;
        }
        let socket = Socket::new(accepted);
        hangup.hold(&socket);
        let bytes = Bytes(socket.clone());
        let stream: Box<dyn Stream> = match identity.filter(|_| !local) {
            Some(identity) => identity.accept(bytes)?,
            None => Box::new(bytes),
        };
        Ok(Connection {
            local,
            socket,
            stream,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
