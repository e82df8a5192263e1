//! What all queues do alike on a worker: the doorbell, a turn, interrupts once a batch, stopping.
//! A device says only how it serves its chains.

use std::sync::Arc;

use crate::worker::{Io, KICK, KickWait, Source};

use super::chain::Chain;
use super::queue::{Queue, QueueError, QueueState};
use super::running::{Return, Running, abandon};
use super::{QueueStart, StartError};

/// How a device serves one queue.
pub(super) trait Serve: Send + Sized + 'static {
    /// Serves what is available, at most about a queue's worth of chains (see [`Side::yield_turn`]),
    /// and rests when it waits for the driver (see [`Side::rest`]).
    fn run(&mut self, side: &mut Side, io: &mut Io<'_>) -> Result<(), QueueError>;

    /// An operation of its own ended. True if the queue is to be looked at again.
    fn complete(&mut self, side: &mut Side, io: &mut Io<'_>, tag: u32, result: i32) -> bool;

    /// Whether [`run`](Self::run) may find something to do, cheaply: the queue is polled.
    fn has_work(&self, side: &Side) -> bool {
        side.queue.available() != Ok(0)
    }

    /// The worker broke down: whatever is in flight, nobody will hear of it.
    fn lost(&mut self) {}

    /// Cancels what waits without an end, and gives back chains that nothing happens to.
    fn stop(&mut self, _side: &mut Side, _io: &mut Io<'_>) {}
}

/// The queue and its way to the driver.
pub(super) struct Side {
    /// The queue.
    pub queue: Queue,
    start: QueueStart,
    kick: KickWait,
    polled: bool,
    again: bool,
    stopping: bool,
    broken: bool,
}

impl Side {
    /// The worker looks into the queue by itself: nothing has to be waited for that it would see.
    pub fn polled(&self) -> bool {
        self.polled
    }

    /// There is nothing more to take now: asks the driver to ring, unless the queue is polled. True if
    /// something came meanwhile.
    pub fn rest(&mut self) -> Result<bool, QueueError> {
        if self.polled {
            return Ok(false);
        }
        self.queue.enable_notification()
    }

    /// The queue is being stopped: nothing new is begun.
    pub fn stopping(&self) -> bool {
        self.stopping
    }

    /// Comes back after the worker's other queues.
    pub fn yield_turn(&mut self) {
        self.again = true;
    }

    /// Serves chains that are done at once: `serve` returns the bytes that it wrote. A queue's worth
    /// at most, then the other queues have their turn.
    pub fn each(
        &mut self,
        chain: &mut Chain,
        mut serve: impl FnMut(&mut Chain) -> u32,
    ) -> Result<(), QueueError> {
        let mut budget = self.queue.size();
        loop {
            while self.queue.pop(chain)? {
                let written = serve(chain);
                self.queue.push(chain.head, written);
                budget -= 1;
                if budget == 0 {
                    self.yield_turn();
                    return Ok(());
                }
            }
            if !self.rest()? {
                return Ok(());
            }
        }
    }

    /// The driver broke the queue: it is served no more until the device is reset.
    pub fn give_up(&mut self, error: &QueueError) {
        if !std::mem::replace(&mut self.broken, true) {
            self.start.notify.needs_reset(&error.to_string());
        }
    }
}

/// A queue on a worker, with what serves it.
pub(super) struct Served<T> {
    side: Side,
    task: T,
    /// None when it was given up.
    home: Option<Return<Served<T>>>,
}

impl<T: Serve> Served<T> {
    /// Starts a queue with the task that `make` builds around it.
    pub fn start(
        start: QueueStart,
        make: impl FnOnce(&Queue) -> T,
    ) -> Result<Running<Served<T>>, StartError> {
        let queue = start.queue()?;
        let task = make(&queue);
        let worker = start.worker.clone();
        let side = Side {
            queue,
            start,
            kick: KickWait::default(),
            polled: false,
            again: false,
            stopping: false,
            broken: false,
        };
        Ok(Running::attach(worker, |home| Served {
            side,
            task,
            home: Some(home),
        }))
    }

    /// Where the queue stands.
    pub fn state(&self) -> QueueState {
        self.side.queue.state()
    }

    fn turn(&mut self, io: &mut Io<'_>) {
        if self.side.stopping || self.side.broken {
            return;
        }
        if let Err(e) = self.task.run(&mut self.side, io) {
            self.side.give_up(&e);
        }
        if self.side.again {
            io.come_back();
        }
        self.side.kick.arm(io, KICK, &self.side.start.kick);
    }
}

impl<T: Serve> Source for Served<T> {
    fn start(&mut self, io: &mut Io<'_>) {
        self.turn(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, tag: u32, result: i32) {
        let again = if tag == KICK {
            self.side.kick.fired();
            true
        } else {
            self.task.complete(&mut self.side, io, tag, result)
        };
        if again {
            self.turn(io);
        }
    }

    fn flush(&mut self, _io: &mut Io<'_>) {
        if self.side.queue.publish() {
            self.side.start.notify.used();
        }
    }

    fn stop(&mut self, io: &mut Io<'_>) {
        self.side.stopping = true;
        self.side.kick.cancel(io, KICK);
        self.task.stop(&mut self.side, io);
    }

    fn stopped(mut self: Box<Self>) {
        if let Some(home) = self.home.take() {
            home.give(self);
        }
    }

    fn set_polled(&mut self, io: &mut Io<'_>, polled: bool) -> bool {
        self.side.polled = polled;
        if !polled {
            self.turn(io);
        }
        true
    }

    fn poll(&mut self, io: &mut Io<'_>) -> bool {
        if self.side.stopping || self.side.broken {
            return false;
        }
        if !std::mem::take(&mut self.side.again) && !self.task.has_work(&self.side) {
            return false;
        }
        let before = self.side.queue.state();
        self.turn(io);
        self.side.again || self.side.queue.state() != before
    }

    fn lost(mut self: Box<Self>, why: &str, in_flight: bool) {
        self.task.lost();
        self.side.start.notify.needs_reset(why);
        if let Some(home) = self.home.take() {
            abandon(self, home, in_flight);
        }
    }

    fn name(&self) -> Option<Arc<str>> {
        Some(self.side.start.name.clone())
    }
}
