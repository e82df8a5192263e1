//! Turns the calls of whoever serves a queue elsewhere (vhost-user, vhost-net) into interrupts, and notices
//! when a back end is gone.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmm_sys_util::eventfd::EventFd;

use super::QueueStart;
use super::running::{Return, abandon};
use super::vhost_user::Watch;
use crate::worker::{FdWait, Io, KickWait, Source};

const CALL: u32 = 0;
const SOCKET: u32 = 1;

/// One queue's relay, on a worker.
pub(super) struct Relay {
    start: QueueStart,
    call: EventFd,
    called: KickWait,
    rung: bool,
    /// The back end's socket; the kernel has none.
    watch: Option<Watch>,
    socket: FdWait,
    stopping: bool,
    /// None when it was given up.
    home: Option<Return<Relay>>,
}

impl Relay {
    pub fn new(
        start: QueueStart,
        call: EventFd,
        watch: Option<Watch>,
        home: Return<Relay>,
    ) -> Relay {
        Relay {
            start,
            call,
            called: KickWait::default(),
            // What was answered while nobody listened is announced once more: that is allowed, a lost one not.
            rung: true,
            watch,
            socket: FdWait::default(),
            stopping: false,
            home: Some(home),
        }
    }

    /// The same, to be attached again.
    pub fn again(self, home: Return<Relay>) -> Relay {
        let mut relay = Relay::new(self.start, self.call, self.watch, home);
        // A call that came in between is passed on.
        relay.rung = true;
        relay
    }

    fn wait(&mut self, io: &mut Io<'_>) {
        if self.stopping {
            return;
        }
        self.called.arm(io, CALL, &self.call);
        if let Some(watch) = &self.watch
            && !watch.gone.load(Ordering::Acquire)
        {
            let events = libc::POLLRDHUP;
            self.socket.arm(io, SOCKET, watch.socket.as_fd(), events);
        }
    }
}

impl Source for Relay {
    fn start(&mut self, io: &mut Io<'_>) {
        self.wait(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, result: i32) {
        if tag == CALL {
            self.called.fired();
            self.rung |= result > 0;
        } else {
            self.socket.fired();
            // Each queue's relay sees it; one says so.
            if let Some(watch) = self.watch.as_ref().filter(|_| !self.stopping)
                && !watch.gone.swap(true, Ordering::AcqRel)
            {
                let why = format!(
                    "its vhost-user back end on {} went away: start it again, and let the driver reset the device",
                    watch.path
                );
                self.start.notify.needs_reset(&why);
            }
        }
        self.wait(io);
    }

    fn flush(&mut self, _io: &mut Io<'_>) {
        if std::mem::take(&mut self.rung) {
            self.start.notify.used();
        }
    }

    fn stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.called.cancel(io, CALL);
        self.socket.cancel(io, SOCKET);
    }

    fn stopped(mut self: Box<Self>) {
        if let Some(home) = self.home.take() {
            home.give(self);
        }
    }

    fn lost(mut self: Box<Self>, why: &str, in_flight: bool) {
        self.start.notify.needs_reset(why);
        if let Some(home) = self.home.take() {
            abandon(self, home, in_flight);
        }
    }

    fn name(&self) -> Option<Arc<str>> {
        Some(self.start.name.clone())
    }
}
