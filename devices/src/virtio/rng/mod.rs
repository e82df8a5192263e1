//! virtio-rng (virtio 1.3 §5.4): the host kernel's random numbers.

use rustix::rand::{GetRandomFlags, getrandom};

use super::chain::Chain;
use super::features;
use super::queue::{Queue, QueueError, QueueState};
use super::running::{Return, Running};
use super::{QueueIndex, QueueStart, StartError, VirtioDevice};
use crate::worker::{Io, KickWait, Source};

/// Bytes given for one request at most; a driver that wants more asks again.
const MAX_REQUEST: usize = 4096;

/// An entropy device.
#[derive(Default)]
pub struct Rng {
    running: Option<Running<RngSource>>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        features::COMMON
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError> {
        if index != 0 || self.running.is_some() {
            return Err(StartError::Index(index));
        }
        let queue = start.queue()?;
        self.running = Some(Running::attach(start.worker.clone(), |home| RngSource {
            chain: queue.chain(),
            queue,
            start,
            kick: KickWait::default(),
            stopping: false,
            home,
        }));
        Ok(())
    }

    fn stop_queue(&mut self, _index: QueueIndex) -> Option<QueueState> {
        Some(self.running.take()?.stop()?.queue.state())
    }
}

struct RngSource {
    queue: Queue,
    chain: Chain,
    start: QueueStart,
    kick: KickWait,
    stopping: bool,
    home: Return<RngSource>,
}

impl RngSource {
    /// Serves what is available, at most a queue's worth at a time: other queues want their turn.
    fn run(&mut self) -> Result<(), QueueError> {
        let mut budget = self.queue.size();
        loop {
            while self.queue.pop(&mut self.chain)? {
                self.serve();
                budget -= 1;
                if budget == 0 {
                    // Ring our own bell, to come back after the others.
                    let _ = self.start.kick.write(1);
                    return Ok(());
                }
            }
            if !self.queue.enable_notification()? {
                return Ok(());
            }
        }
    }

    fn serve(&mut self) {
        let mut bytes = [0; MAX_REQUEST];
        let want = (self.chain.writable_len() as usize).min(MAX_REQUEST);
        // With these flags it cannot fail once the host has booted.
        let got = getrandom(&mut bytes[..want], GetRandomFlags::empty()).unwrap_or(0);
        let n = self.chain.write(0, &bytes[..got]);
        self.queue.push(self.chain.head, n as u32);
    }

    fn turn(&mut self, io: &mut Io<'_>) {
        match self.run() {
            Ok(()) => self.kick.arm(io, 0, &self.start.kick),
            Err(e) => self.start.notify.needs_reset(&e.to_string()),
        }
    }
}

impl Source for RngSource {
    fn start(&mut self, io: &mut Io<'_>) {
        self.turn(io);
    }

    fn complete(&mut self, io: &mut Io<'_>, _tag: u32, _result: i32) {
        self.kick.fired();
        if !self.stopping {
            self.turn(io);
        }
    }

    fn flush(&mut self, _io: &mut Io<'_>) {
        if self.queue.publish() {
            self.start.notify.used();
        }
    }

    fn stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.kick.cancel(io, 0);
    }

    fn stopped(self: Box<Self>) {
        let home = self.home.clone();
        home.give(self);
    }
}
