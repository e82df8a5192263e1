//! A running command's streams, over the connection that asked for it. Plain threads: one a stream.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{Winsize, tcsetwinsize};

use super::spec::TerminalSize;
use super::wire::{self, DATA, Kind};

/// How long output may still come when a command has ended but others hold its streams.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a reader may leave output lying before the command is killed.
const SLOW: Duration = Duration::from_secs(60);

/// Where a command's input goes.
#[derive(Debug)]
pub enum Inlet {
    /// Its standard input.
    Pipe(OwnedFd),
    /// Our end of its terminal.
    Terminal(OwnedFd),
}

/// What goes into a command and comes out of it.
#[derive(Debug)]
pub struct Streams {
    /// Where its input goes.
    pub inlet: Inlet,
    /// What comes out of it, and as what.
    pub outlets: Vec<(Kind, OwnedFd)>,
}

impl Inlet {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Inlet::Pipe(fd) | Inlet::Terminal(fd) => fd.as_fd(),
        }
    }
}

/// A connected socket, of whatever family.
type Socket = UnixStream;

/// Serves a command until `wait` says its exit code. `kill` is called if the other side goes before, or does
/// not take what comes out.
///
/// # Errors
/// If the other side does not hear of the end.
pub fn serve(
    connection: OwnedFd,
    streams: Streams,
    kill: impl Fn() + Send + 'static,
    wait: impl FnOnce() -> i32,
) -> io::Result<()> {
    // Reading, writing and closing are the same for sockets of all families.
    let connection = Socket::from(connection);
    connection.set_read_timeout(None)?;
    connection.set_write_timeout(Some(SLOW))?;
    let Streams { inlet, outlets } = streams;
    // One that takes nothing must not keep us from seeing the other side go.
    rustix::io::ioctl_fionbio(inlet.fd(), true)?;
    let writer = Arc::new(Mutex::new(connection.try_clone()?));
    let mut forwarding = Vec::new();
    for (kind, outlet) in outlets {
        let writer = writer.clone();
        let thread = std::thread::Builder::new().name("output".into());
        forwarding.push(thread.spawn(move || forward(outlet, kind, &writer))?);
    }
    let reader = connection.try_clone()?;
    let thread = std::thread::Builder::new().name("input".into());
    // It ends with the connection.
    thread.spawn(move || {
        if !feed(reader, inlet) {
            kill();
        }
    })?;
    let code = wait();
    let end = Instant::now() + DRAIN;
    while forwarding.iter().any(|one| !one.is_finished()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut writer = writer.lock();
    let sent = wire::send_json(&mut *writer, Kind::Exit, &code);
    // It may be closed already.
    let _ = connection.shutdown(Shutdown::Both);
    sent
}

/// Sends what comes out of the command.
fn forward(outlet: OwnedFd, kind: Kind, writer: &Mutex<Socket>) {
    let mut outlet = File::from(outlet);
    let mut buffer = vec![0; DATA];
    loop {
        match outlet.read(&mut buffer) {
            // A terminal nobody has open any more says EIO.
            Ok(0) => return,
            Ok(n) => {
                let mut writer = writer.lock();
                if wire::send(&mut *writer, kind, &buffer[..n]).is_err() {
                    // Perhaps half a frame was sent, so nothing can follow it.
                    let _ = writer.shutdown(Shutdown::Both);
                    return;
                }
            }
            // A terminal's two ways are one descriptor.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&outlet, PollFlags::IN)], None);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Passes on what the command is to read. Whether the other side is still there at the end.
fn feed(mut from: Socket, inlet: Inlet) -> bool {
    let mut inlet = Some(inlet);
    loop {
        let Ok(Some((kind, bytes))) = wire::receive(&mut from) else {
            return false;
        };
        match (kind, &inlet) {
            (Kind::Input, Some(Inlet::Pipe(_))) if bytes.is_empty() => inlet = None,
            // The end of input, as terminals have it.
            (Kind::Input, Some(Inlet::Terminal(terminal))) if bytes.is_empty() => {
                if put(terminal.as_fd(), &[4], &from) == Put::Left {
                    return false;
                }
            }
            (Kind::Input, Some(to)) => match put(to.fd(), &bytes, &from) {
                Put::Done => {}
                // It reads no more. If it has ended, that is told otherwise.
                Put::Closed => inlet = None,
                Put::Left => return false,
            },
            (Kind::Resize, Some(Inlet::Terminal(terminal))) => {
                if let Ok(size) = serde_json::from_slice::<TerminalSize>(&bytes) {
                    let _ = size.give(terminal);
                }
            }
            // Input after its end, or a size without a terminal.
            (Kind::Input | Kind::Resize, _) => {}
            _ => return false,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Put {
    Done,
    Closed,
    Left,
}

/// Writes all of it, unless the other side of the connection goes before it is taken.
fn put(to: BorrowedFd<'_>, mut bytes: &[u8], connection: &Socket) -> Put {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut fds = [
                    PollFd::from_borrowed_fd(to, PollFlags::OUT),
                    PollFd::new(connection, PollFlags::RDHUP),
                ];
                let _ = poll(&mut fds, None);
                if !fds[1].revents().is_empty() {
                    return Put::Left;
                }
            }
            Err(_) => return Put::Closed,
        }
    }
    Put::Done
}

impl TerminalSize {
    /// Makes a terminal so large.
    ///
    /// # Errors
    /// If it is none.
    pub fn give(self, terminal: &impl AsFd) -> io::Result<()> {
        let size = Winsize {
            ws_row: self.rows,
            ws_col: self.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(terminal, size)?)
    }
}
