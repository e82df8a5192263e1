//! The host's side: the Unix socket that host programs connect to, and the connections' sockets.
//!
//! The sockets are watched by an epoll instance, and the worker's ring polls that. A poll through
//! the ring itself would also report that the peer shut its sending side down (the kernel adds
//! EPOLLRDHUP), at once and again each time, while all that is waited for is room to write.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libc::iovec;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use super::VsockError;
use super::muxer::Id;

/// Buffers of a chain that one system call takes; what is beyond takes another.
const MAX_IOV: usize = 64;
/// The longest path of a Unix socket, without its final zero.
const MAX_PATH: usize = 107;
/// `_` and the largest port.
const PORT_SUFFIX: usize = 11;

/// A connection's socket. Dropping it closes it.
pub(super) struct Socket {
    fd: OwnedFd,
    /// Room to write is watched for.
    wants_room: bool,
}

/// Something that the sockets' epoll instance saw.
#[derive(Clone, Copy)]
pub(super) struct Event {
    pub id: Id,
    pub readable: bool,
    pub writable: bool,
    pub hung_up: bool,
}

/// The listening socket and what watches the others.
pub(super) struct Sockets {
    listener: UnixListener,
    path: PathBuf,
    epoll: OwnedFd,
}

/// The listening socket's file, removed with the device if it is still the same one.
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn identity(path: &Path) -> Option<(u64, u64)> {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some()
            && self.identity == Self::identity(&self.path)
            && let Err(e) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

impl Sockets {
    /// Listens on `path`. A socket file that nobody listens on any more is replaced.
    pub fn listen(path: &Path) -> Result<(Sockets, SocketFile), VsockError> {
        let system = |what| {
            move |source: io::Error| VsockError::System {
                what,
                path: path.to_owned(),
                source,
            }
        };
        if path.as_os_str().len() + PORT_SUFFIX > MAX_PATH {
            return Err(VsockError::PathTooLong(path.to_owned()));
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => VsockError::InUse(path.to_owned()),
            _ => system("listen on")(e),
        })?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: SocketFile::identity(path),
        };
        listener.set_nonblocking(true).map_err(system("set up"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| system("watch the connections of")(e.into()))?;
        let sockets = Sockets {
            listener,
            path: path.to_owned(),
            epoll,
        };
        Ok((sockets, file))
    }

    /// What becomes readable when a host program connects.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// What becomes readable when a socket is ready.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// The next host program, if one waits.
    pub fn accept(&self) -> io::Result<Option<Socket>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(fd) => Ok(Some(Socket::new(fd))),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Connects to whoever serves `port` on the host. Never waits: a listener whose backlog is
    /// full refuses.
    pub fn connect(&self, port: u32) -> io::Result<Socket> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        Ok(Socket::new(connect(Path::new(&path))?))
    }

    /// Watches a connection's socket from now on.
    pub fn watch(&self, socket: &Socket, id: Id) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, &socket.fd, data(id), flags(false))?)
    }

    /// Watches for room to write, or no longer.
    pub fn watch_room(&self, socket: &mut Socket, id: Id, wanted: bool) -> io::Result<()> {
        if socket.wants_room != wanted {
            epoll::modify(&self.epoll, &socket.fd, data(id), flags(wanted))?;
            socket.wants_room = wanted;
        }
        Ok(())
    }

    /// What happened to the sockets, appended to `events`, a batch at a time.
    pub fn events(&self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut batch = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 64];
        let now = rustix::event::Timespec::default();
        let n = epoll::wait(&self.epoll, &mut batch[..], Some(&now))?;
        events.extend(batch.iter().take(n).map(|event| {
            let (flags, data) = (event.flags, event.data);
            let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            Event {
                id: Id {
                    slot: data.u64() as u32,
                    serial: (data.u64() >> 32) as u32,
                },
                readable: hung_up
                    || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
                writable: flags.contains(epoll::EventFlags::OUT),
                hung_up,
            }
        }));
        Ok(())
    }
}

fn data(id: Id) -> epoll::EventData {
    epoll::EventData::new_u64(u64::from(id.serial) << 32 | u64::from(id.slot))
}

/// Edge-triggered: the connection remembers that it is readable until a read says otherwise.
fn flags(room: bool) -> epoll::EventFlags {
    let base = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    if room {
        base | epoll::EventFlags::OUT
    } else {
        base
    }
}

fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

/// Removes a socket file that a process left behind; refuses anything else that is there.
fn remove_stale(path: &Path) -> Result<(), VsockError> {
    let owned = || path.to_owned();
    let Ok(found) = std::fs::symlink_metadata(path) else {
        // Nothing there, or nothing that can be seen: binding will tell.
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(VsockError::NotASocket(owned()));
    }
    match connect_patiently(path) {
        Err(Errno::CONNREFUSED) => {
            std::fs::remove_file(path).map_err(|source| VsockError::System {
                what: "remove the stale socket",
                path: owned(),
                source,
            })
        }
        Err(Errno::NOENT) => Ok(()),
        // Also a full backlog (EAGAIN) or another socket type (EPROTOTYPE): somebody is there.
        _ => Err(VsockError::InUse(owned())),
    }
}

/// Connects, if that goes on being possible. A monitor that was killed a moment ago may seem to listen: the
/// kernel takes its ring down, and closes the files in it, some milliseconds after the process, or when a
/// flush in flight has ended.
fn connect_patiently(path: &Path) -> Result<OwnedFd, Errno> {
    const PATIENCE: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(5);
    let begun = Instant::now();
    loop {
        let connected = connect(path);
        if connected.is_err() || begun.elapsed() > PATIENCE {
            return connected;
        }
        std::thread::sleep(STEP);
    }
}

impl Socket {
    fn new(fd: OwnedFd) -> Self {
        Socket {
            fd,
            wants_room: false,
        }
    }

    /// Shuts directions down for good.
    pub fn shut(&self, read: bool, write: bool) {
        let how = match (read, write) {
            (true, true) => Shutdown::Both,
            (true, false) => Shutdown::Read,
            (false, true) => Shutdown::Write,
            (false, false) => return,
        };
        // Fails only if the peer is gone, which is noticed elsewhere.
        let _ = rustix::net::shutdown(&self.fd, how);
    }

    /// Writes bytes; None if there is no room.
    pub fn write(&self, first: &[u8], second: &[u8]) -> io::Result<Option<usize>> {
        let part = |bytes: &[u8]| iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut parts = [part(first), part(second)];
        // SAFETY: both parts are borrowed slices, which sendmsg only reads.
        unsafe { self.send(&mut parts) }
    }

    /// Writes up to `len` bytes of `buffers`: how many, and whether all that were tried. None if
    /// there is no room.
    ///
    /// # Safety
    /// `buffers` are valid for reading.
    pub unsafe fn write_from(
        &self,
        buffers: &[iovec],
        len: usize,
    ) -> io::Result<Option<(usize, bool)>> {
        let mut parts = [EMPTY; MAX_IOV];
        let (count, total) = select(buffers, 0, len, &mut parts);
        // SAFETY: the parts lie within the caller's buffers.
        let written = unsafe { self.send(&mut parts[..count]) }?;
        Ok(written.map(|n| (n, n == total)))
    }

    /// Reads up to `len` bytes into `buffers`, from `skip` bytes on: how many, 0 at the end. None
    /// if there is nothing now; that alone says so, not a short read (which may be all before the
    /// end, or before a passed descriptor).
    ///
    /// # Safety
    /// `buffers` are valid for writing.
    pub unsafe fn read_into(
        &self,
        buffers: &[iovec],
        skip: usize,
        len: usize,
    ) -> io::Result<Option<usize>> {
        let mut parts = [EMPTY; MAX_IOV];
        let (count, _) = select(buffers, skip, len, &mut parts);
        let mut message = message(&mut parts[..count]);
        // SAFETY: the message's parts lie within the caller's buffers; it has no name or control
        // part, so that descriptors which a client passes are closed by the kernel.
        let n = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        outcome(n)
    }

    /// Reads a handshake's bytes: up to `limit` of them, at most up to the first newline.
    pub fn read_line<'a>(&self, limit: usize, place: &'a mut [u8]) -> rustix::io::Result<&'a [u8]> {
        let limit = limit.min(place.len());
        let line = &mut place[..limit];
        let (seen, _) = rustix::net::recv(&self.fd, &mut *line, RecvFlags::PEEK)?;
        let end = line[..seen].iter().position(|b| *b == b'\n');
        let line = &mut line[..end.map_or(seen, |end| end + 1)];
        if line.is_empty() {
            return Ok(line);
        }
        let (n, _) = rustix::net::recv(&self.fd, &mut *line, RecvFlags::empty())?;
        Ok(&line[..n])
    }

    /// # Safety
    /// `parts` are valid for reading.
    unsafe fn send(&self, parts: &mut [iovec]) -> io::Result<Option<usize>> {
        let message = message(parts);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the caller's promise; the message has no name or control part.
        outcome(unsafe { libc::sendmsg(self.fd.as_raw_fd(), &message, flags) })
    }
}

const EMPTY: iovec = iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

fn message(parts: &mut [iovec]) -> libc::msghdr {
    // SAFETY: a msghdr of zeros is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    message
}

fn outcome(n: isize) -> io::Result<Option<usize>> {
    usize::try_from(n).map(Some).or_else(|_| {
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        }
    })
}

/// The first `len` bytes of `buffers` after `skip`, as far as `out` goes: parts and bytes.
fn select(
    buffers: &[iovec],
    mut skip: usize,
    len: usize,
    out: &mut [iovec; MAX_IOV],
) -> (usize, usize) {
    let (mut count, mut total) = (0, 0);
    for buffer in buffers {
        if total == len || count == MAX_IOV {
            break;
        }
        if skip >= buffer.iov_len {
            skip -= buffer.iov_len;
            continue;
        }
        let n = (buffer.iov_len - skip).min(len - total);
        out[count] = iovec {
            iov_base: buffer.iov_base.cast::<u8>().wrapping_add(skip).cast(),
            iov_len: n,
        };
        count += 1;
        total += n;
        skip = 0;
    }
    (count, total)
}
