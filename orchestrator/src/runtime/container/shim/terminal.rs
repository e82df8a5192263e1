//! A command's terminal: the runtime makes it in the container and hands its other end over a socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How long a runtime that has made a terminal may take to hand it over, in seconds.
const LIMIT: i64 = 10;

/// Takes the terminal that was sent to a socket.
pub fn receive(listener: &UnixListener) -> io::Result<OwnedFd> {
    ready(listener)?;
    let (connection, _) = listener.accept()?;
    ready(&connection)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let buffers = &mut [io::IoSliceMut::new(&mut name)];
    recvmsg(&connection, buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(terminal) = fds.next()
        {
            return Ok(terminal);
        }
    }
    Err(io::Error::other("the runtime sent no terminal"))
}

fn ready(socket: &impl AsFd) -> io::Result<()> {
    let limit = Timespec {
        tv_sec: LIMIT,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    match poll(&mut fds, Some(&limit))? {
        0 => Err(io::Error::from(io::ErrorKind::TimedOut)),
        _ => Ok(()),
    }
}
