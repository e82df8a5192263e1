//! A console that can be attached to: a socket where several may look and type, and a log beside it.
//!
//! The console itself is one end of a pair of sockets, as it would be any descriptor. A thread has the other
//! end: it keeps what is said last for those who come, and never waits for any of them. The guest is not held
//! up by a reader: what one cannot take in time it misses, as on a wire.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use crate::sandbox::{Sandbox, ThreadKind};

/// Who may be attached at a time; more wait.
const CLIENTS: usize = 8;
/// Bytes of what was said last, for those who come.
const HISTORY: usize = 16 << 10;
/// Bytes kept for a client that is slow.
const PENDING: usize = 256 << 10;
/// Bytes that were typed and wait for the console.
const TYPED: usize = 4 << 10;
/// Bytes of the log. Then it is copied beside itself and begins anew.
const LOG: u64 = 4 << 20;
/// Bytes that are passed on at once.
const PIECE: usize = 16 << 10;

/// The console's end of it. When it is dropped, what was said is in the log.
pub struct Attached {
    console: UnixStream,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Attached {
    /// Listens at `path`, and logs to `log` if it is given.
    pub fn start(path: &Path, log: Option<&Path>, sandbox: Sandbox) -> io::Result<Attached> {
        let log = log.map(Log::open).transpose()?;
        let listener = listen(path)?;
        listener.set_nonblocking(true)?;
        let (console, inner) = UnixStream::pair()?;
        inner.set_nonblocking(true)?;
        let party = Party {
            console: inner,
            listener,
            log,
            history: VecDeque::new(),
            typed: VecDeque::new(),
            clients: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("console".into());
        let thread = thread.spawn(move || match sandbox.enter(ThreadKind::Console) {
            Ok(()) => party.run(),
            Err(e) => log::error!("a console's thread cannot enter the sandbox: {e}"),
        })?;
        Ok(Attached {
            console,
            path: path.to_owned(),
            thread: Some(thread),
        })
    }

    /// The console's descriptor, to be read and written.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.console.try_clone().map(Into::into)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // For all that have the descriptor: nothing more is said, and the thread ends.
        let _ = self.console.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What an ended monitor left there is removed.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    // Anything else is in the way of binding, which tells.
    if socket {
        match UnixStream::connect(path) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            _ => {
                return Err(io::Error::other(
                    "somebody listens on it: give another path",
                ));
            }
        }
    }
    UnixListener::bind(path)
}

/// A log of bounded size, and the one before it.
struct Log {
    file: File,
    before: File,
    size: u64,
}

impl Log {
    /// Opened before the sandbox closes: rotating opens nothing.
    fn open(path: &Path) -> io::Result<Log> {
        let mut before = path.as_os_str().to_owned();
        before.push(".1");
        let mut options = File::options();
        options.read(true).append(true).create(true).mode(0o600);
        let file = options.open(path)?;
        Ok(Log {
            before: options.open(before)?,
            size: file.metadata()?.len(),
            file,
        })
    }

    /// What cannot be written is lost: a full disk must not stop the guest.
    fn write(&mut self, bytes: &[u8]) {
        if self.size + bytes.len() as u64 > LOG && self.rotate().is_err() {
            return;
        }
        if self.file.write_all(bytes).is_ok() {
            self.size += bytes.len() as u64;
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.before.set_len(0)?;
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        loop {
            match self.file.read_at(&mut buffer, at)? {
                0 => break,
                n => self.before.write_all(&buffer[..n])?,
            }
            at += PIECE as u64;
        }
        self.file.set_len(0)?;
        self.size = 0;
        Ok(())
    }
}

/// Somebody who is attached.
struct Client {
    stream: UnixStream,
    pending: VecDeque<u8>,
    gone: bool,
}

impl Client {
    /// Keeps what it is to see, as far as there is room.
    fn tell(&mut self, bytes: &[u8]) {
        let room = PENDING - self.pending.len();
        self.pending.extend(&bytes[..bytes.len().min(room)]);
    }

    fn write(&mut self) {
        while !self.pending.is_empty() && !self.gone {
            match self.stream.write(self.pending.as_slices().0) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
        if self.pending.is_empty() {
            // A burst is over.
            self.pending.shrink_to(PIECE);
        }
    }
}

/// The thread's view of it.
struct Party {
    console: UnixStream,
    listener: UnixListener,
    log: Option<Log>,
    history: VecDeque<u8>,
    typed: VecDeque<u8>,
    clients: Vec<Client>,
}

impl Party {
    /// Until the console has ended.
    fn run(mut self) {
        let mut buffer = vec![0; PIECE];
        loop {
            let seen = self.wait();
            let [console, listener, clients @ ..] = seen.as_slice() else {
                continue;
            };
            for (at, seen) in clients.iter().enumerate() {
                if seen.contains(PollFlags::OUT) {
                    self.clients[at].write();
                }
                if seen.contains(PollFlags::HUP) && self.typed.len() >= TYPED {
                    // What it typed last finds no room, and nobody waits for it.
                    self.clients[at].gone = true;
                }
                if seen.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    self.listen_to(at, &mut buffer);
                }
            }
            self.clients.retain(|client| !client.gone);
            if !listener.is_empty() {
                self.accept();
            }
            if console.contains(PollFlags::OUT) {
                self.type_on();
            }
            if console.intersects(PollFlags::IN | PollFlags::HUP) && !self.hear(&mut buffer) {
                // Those who can take the last of it at once have it.
                self.clients.iter_mut().for_each(Client::write);
                return;
            }
        }
    }

    /// Waits for something to do: at the console, of those who come, and of those who are here.
    fn wait(&self) -> Vec<PollFlags> {
        let when = |wanted: bool, flag| match wanted {
            true => flag,
            false => PollFlags::empty(),
        };
        let room = self.typed.len() < TYPED;
        let output = when(!self.typed.is_empty(), PollFlags::OUT);
        let comers = when(self.clients.len() < CLIENTS, PollFlags::IN);
        let mut fds = vec![
            PollFd::new(&self.console, PollFlags::IN | output),
            PollFd::new(&self.listener, comers),
        ];
        fds.extend(self.clients.iter().map(|client| {
            let output = when(!client.pending.is_empty(), PollFlags::OUT);
            PollFd::new(&client.stream, output | when(room, PollFlags::IN))
        }));
        // Interrupted, nothing is known, and nothing was seen.
        let _ = poll(&mut fds, None);
        fds.iter().map(PollFd::revents).collect()
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if stream.set_nonblocking(true).is_ok() {
            self.clients.push(Client {
                stream,
                pending: self.history.clone(),
                gone: false,
            });
        }
    }

    /// Takes what a client types.
    fn listen_to(&mut self, at: usize, buffer: &mut [u8]) {
        let room = TYPED.saturating_sub(self.typed.len()).min(buffer.len());
        let client = &mut self.clients[at];
        if room == 0 || client.gone {
            return;
        }
        match client.stream.read(&mut buffer[..room]) {
            Ok(0) => client.gone = true,
            Ok(n) => self.typed.extend(&buffer[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => client.gone = true,
        }
    }

    /// Gives the console what was typed, as far as it takes it.
    fn type_on(&mut self) {
        while !self.typed.is_empty() {
            match self.console.write(self.typed.as_slices().0) {
                Ok(n) => drop(self.typed.drain(..n)),
                Err(_) => return,
            }
        }
    }

    /// Hears what the console says. Whether it goes on.
    fn hear(&mut self, buffer: &mut [u8]) -> bool {
        let said = match self.console.read(buffer) {
            Ok(0) => return false,
            Ok(n) => &buffer[..n],
            Err(e) => return matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        if let Some(log) = &mut self.log {
            log.write(said);
        }
        let over = (self.history.len() + said.len()).saturating_sub(HISTORY);
        self.history.drain(..over.min(self.history.len()));
        self.history
            .extend(&said[said.len().saturating_sub(HISTORY)..]);
        self.clients.iter_mut().for_each(|client| client.tell(said));
        true
    }
}

#[cfg(test)]
#[path = "attach_test.rs"]
mod tests;
