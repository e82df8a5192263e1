//! State that a back end has of a device goes through a pipe, while all queues are stopped (the protocol's
//! SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE). What it says is the back end's business.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};

use super::VhostUserError;
use super::link::{Link, guarded};

/// Bytes of state that are taken.
const MOST: u64 = 64 << 20;
/// How long it may take to go over. The guest stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

impl Link {
    /// Takes the state that the back end has.
    pub fn fetch_state(&mut self) -> Result<Vec<u8>, VhostUserError> {
        self.check_has_state()?;
        let failed = self.state_error("hand over");
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        self.transfer(VhostTransferStateDirection::SAVE, theirs)?;
        let state = read_all(ours, MOST, Instant::now() + PATIENCE).map_err(failed)?;
        self.check_state()?;
        Ok(state)
    }

    /// Gives the back end the state that one before it had.
    pub fn load_state(&mut self, state: &[u8]) -> Result<(), VhostUserError> {
        self.check_has_state()?;
        let failed = self.state_error("take");
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        self.transfer(VhostTransferStateDirection::LOAD, theirs)?;
        let deadline = Instant::now() + PATIENCE;
        let written = write_all(ours, state, deadline);
        // Why it stopped reading is the back end's to say, if it does.
        self.check_state()?;
        written.map_err(failed)
    }

    fn check_has_state(&self) -> Result<(), VhostUserError> {
        match self.has_state() {
            true => Ok(()),
            false => Err(self.lacks(
                "does not hand its state over (VHOST_USER_PROTOCOL_F_DEVICE_STATE): use one that does, such as a current virtiofsd",
            )),
        }
    }

    fn state_error(&self, verb: &'static str) -> impl Fn(io::Error) -> VhostUserError + use<> {
        let path = self.path().to_owned();
        move |source| VhostUserError::State {
            path: path.clone(),
            verb,
            source,
        }
    }

    fn transfer(
        &mut self,
        direction: VhostTransferStateDirection,
        end: OwnedFd,
    ) -> Result<(), VhostUserError> {
        let phase = VhostTransferStatePhase::STOPPED;
        let answer = guarded(&self.socket, || {
            self.frontend.set_device_state_fd(direction, phase, end)
        });
        match self.asked("SET_DEVICE_STATE_FD", answer)? {
            None => Ok(()),
            // Nobody knows what it is, nor whether reading it ends.
            Some(_) => {
                Err(self.lacks("insists on a channel of its own for its state: use another"))
            }
        }
    }

    fn check_state(&mut self) -> Result<(), VhostUserError> {
        let answer = guarded(&self.socket, || self.frontend.check_device_state());
        self.asked("CHECK_DEVICE_STATE", answer)
    }
}

/// Our end of a pipe, which does not block; the other one's end does.
fn end(fd: OwnedFd) -> io::Result<File> {
    fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    Ok(fd.into())
}

fn read_all(from: OwnedFd, most: u64, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut from = end(from)?;
    let mut state = Vec::new();
    loop {
        let room = most + 1 - state.len() as u64;
        match (&mut from).take(room).read_to_end(&mut state) {
            Ok(_) if state.len() as u64 > most => {
                return Err(io::Error::other(format!("it is of more than {most} bytes")));
            }
            Ok(_) => return Ok(state),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        wait(&from, PollFlags::IN, deadline)?;
    }
}

fn write_all(to: OwnedFd, mut state: &[u8], deadline: Instant) -> io::Result<()> {
    let mut to = end(to)?;
    while !state.is_empty() {
        match to.write(state) {
            Ok(n) => state = state.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&to, PollFlags::OUT, deadline)?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Waits until something can be read or written.
fn wait(end: &File, events: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(end, events)], Some(&timeout)) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
