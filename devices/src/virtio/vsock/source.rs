//! The device's queues on a worker: whose turn it is, how much of it, and what is waited for.

use std::sync::Arc;

use io_uring::{opcode, types};

use super::packet::HEADER;
use super::sockets::Event;
use super::switch::{News, Switch};
use crate::virtio::QueueStart;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::running::{Return, abandon};
use crate::worker::{FdWait, Io, KickWait, Source};

/// Tags of the queues' doorbells are the queues' numbers.
const RX: u32 = 0;
const TX: u32 = 1;
const EVENT: u32 = 2;
const SOCKETS: u32 = 3;
const LISTENER: u32 = 4;
const TICK: u32 = 5;

/// Bytes moved in one direction before other sources have their turn.
const BYTE_BUDGET: usize = 1 << 20;
/// Host programs accepted in one turn.
const ACCEPT_BUDGET: usize = 16;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.3 §5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];
/// A driver that does not give the event's buffer back is waited for so many seconds.
const PATIENCE: u8 = 10;

/// A queue while it runs.
struct Lane {
    queue: Queue,
    chain: Chain,
    start: QueueStart,
    kick: KickWait,
}

impl Lane {
    fn new(start: QueueStart) -> Result<Lane, QueueError> {
        let queue = start.queue()?;
        Ok(Lane {
            chain: queue.chain(),
            queue,
            start,
            kick: KickWait::default(),
        })
    }

    /// The next chain. When there is none the driver is asked to say when there is.
    fn pop_or_wait(&mut self) -> Result<bool, QueueError> {
        Ok(self.queue.pop(&mut self.chain)?
            || self.queue.enable_notification()? && self.queue.pop(&mut self.chain)?)
    }

    /// Rings our own bell, to come back after the others.
    fn come_back(&self) {
        let _ = self.start.kick.write(1);
    }

    fn publish(&mut self) {
        if self.queue.publish() {
            self.start.notify.used();
        }
    }

    fn park(self) -> QueueStart {
        QueueStart {
            state: self.queue.state(),
            ..self.start
        }
    }
}

pub(super) struct VsockSource {
    rx: Lane,
    tx: Lane,
    event: Option<Lane>,
    switch: Box<Switch>,
    events: Vec<Event>,
    sockets: FdWait,
    sockets_ready: bool,
    listener: FdWait,
    clients_wait: bool,
    /// The host had no descriptors left: accept again after a second.
    resting: bool,
    second: Box<types::Timespec>,
    ticking: bool,
    broken: bool,
    stopping: bool,
    /// None when it was given up.
    home: Option<Return<VsockSource>>,
}

/// Queues that were checked and can be attached.
pub(super) struct Lanes {
    rx: Lane,
    tx: Lane,
    event: Option<Lane>,
    switch: Box<Switch>,
}

impl Lanes {
    pub fn new(
        rx: QueueStart,
        tx: QueueStart,
        event: Option<QueueStart>,
        switch: Box<Switch>,
    ) -> Result<Lanes, QueueError> {
        Ok(Lanes {
            rx: Lane::new(rx)?,
            tx: Lane::new(tx)?,
            event: event.map(Lane::new).transpose()?,
            switch,
        })
    }
}

impl VsockSource {
    pub fn new(lanes: Lanes, home: Return<VsockSource>) -> Self {
        VsockSource {
            rx: lanes.rx,
            tx: lanes.tx,
            event: lanes.event,
            switch: lanes.switch,
            events: Vec::new(),
            sockets: FdWait::default(),
            sockets_ready: true,
            listener: FdWait::default(),
            clients_wait: true,
            resting: false,
            second: Box::new(types::Timespec::new().sec(1)),
            ticking: false,
            broken: false,
            stopping: false,
            home: Some(home),
        }
    }

    /// The queues where they stopped, by number, and the connections.
    pub fn into_parts(self) -> ([Option<QueueStart>; 3], Box<Switch>) {
        let event = self.event.map(Lane::park);
        (
            [Some(self.rx.park()), Some(self.tx.park()), event],
            self.switch,
        )
    }

    /// Takes what sockets and host programs have to say.
    fn host(&mut self) -> Result<(), QueueError> {
        let welcome = self.welcomes();
        let switch = &mut *self.switch;
        if std::mem::take(&mut self.sockets_ready) {
            // What does not fit into one batch is seen when the instance is polled again.
            if let Err(e) = switch.sockets.events(&mut self.events) {
                log::warn!("vsock: epoll_wait: {e}");
            }
            for event in self.events.drain(..) {
                switch.event(event);
            }
        }
        if welcome && std::mem::take(&mut self.clients_wait) {
            for _ in 0..ACCEPT_BUDGET {
                match switch.sockets.accept() {
                    Ok(Some(socket)) => switch.client(socket),
                    Ok(None) => break,
                    Err(e) => {
                        log::warn!("vsock: cannot accept a connection: {e}");
                        self.resting = true;
                        self.clients_wait = true;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Guest to host.
    fn transmit(&mut self) -> Result<(), QueueError> {
        let (mut chains, mut bytes) = (self.tx.queue.size(), 0);
        loop {
            self.tx.queue.disable_notification();
            loop {
                if !self.switch.muxer.takes_packets() {
                    // Answers wait for the guest's buffers: its doorbell for those goes on here.
                    return Ok(());
                }
                if !self.tx.queue.pop(&mut self.tx.chain)? {
                    break;
                }
                if chains == 0 || bytes >= BYTE_BUDGET {
                    self.tx.queue.undo_pop();
                    self.tx.come_back();
                    return Ok(());
                }
                chains -= 1;
                bytes += self.switch.packet(&mut self.tx.chain);
                self.tx.queue.push(self.tx.chain.head, 0);
            }
            if !self.tx.queue.enable_notification()? {
                return Ok(());
            }
        }
    }

    /// Host to guest.
    fn receive(&mut self) -> Result<(), QueueError> {
        let (mut chains, mut bytes) = (self.rx.queue.size(), 0);
        let held_back = !self.switch.muxer.takes_packets();
        self.rx.queue.disable_notification();
        while self.switch.muxer.has_packets() {
            if chains == 0 || bytes >= BYTE_BUDGET {
                self.rx.come_back();
                break;
            }
            if !self.rx.pop_or_wait()? {
                // Nothing is read from the sockets until the driver adds buffers.
                break;
            }
            chains -= 1;
            if self.rx.chain.writable_len() < HEADER as u64 {
                self.switch.counters.malformed.add(1);
                self.rx.queue.push(self.rx.chain.head, 0);
                continue;
            }
            match self.switch.fill(&self.rx.chain) {
                Some(n) => {
                    bytes += n;
                    self.rx.queue.push(self.rx.chain.head, n as u32);
                }
                None => self.rx.queue.undo_pop(),
            }
        }
        if held_back && self.switch.muxer.takes_packets() {
            self.tx.come_back();
        }
        Ok(())
    }

    /// Tells the guest that its connections are gone, and sees whether it has heard.
    fn announce(&mut self) -> Result<(), QueueError> {
        let news = &mut self.switch.news;
        let Some(lane) = &mut self.event else {
            // It cannot be told.
            if matches!(news, News::Told { .. }) {
                *news = News::None;
            }
            return Ok(());
        };
        if *news == News::ToTell && lane.pop_or_wait()? {
            let n = lane.chain.write(0, &TRANSPORT_RESET);
            lane.queue.push(lane.chain.head, n as u32);
            *news = News::Told {
                offered: lane.queue.available()?,
                patience: PATIENCE,
            };
        }
        if let News::Told { offered, patience } = *news
            && (patience == 0 || lane.queue.offers_more_than(offered)?)
        {
            *news = News::None;
        }
        Ok(())
    }

    /// Whether host programs can connect now.
    fn welcomes(&self) -> bool {
        !self.resting && !matches!(self.switch.news, News::Told { .. })
    }

    fn turn(&mut self, io: &mut Io<'_>) {
        let steps = [
            // Before host programs: what they connect now is not what is gone.
            Self::announce as fn(&mut Self) -> _,
            Self::host,
            Self::transmit,
            Self::receive,
        ];
        if let Err(e) = steps.into_iter().try_for_each(|step| step(self)) {
            self.broken = true;
            self.rx.start.notify.needs_reset(&e.to_string());
            return;
        }
        self.wait(io);
    }

    fn wait(&mut self, io: &mut Io<'_>) {
        self.rx.kick.arm(io, RX, &self.rx.start.kick);
        self.tx.kick.arm(io, TX, &self.tx.start.kick);
        if let Some(lane) = &mut self.event {
            lane.kick.arm(io, EVENT, &lane.start.kick);
        }
        let sockets = &self.switch.sockets;
        self.sockets.arm(io, SOCKETS, sockets.ready(), libc::POLLIN);
        if self.welcomes() {
            self.listener
                .arm(io, LISTENER, sockets.listener(), libc::POLLIN);
        }
        if (!self.welcomes() || self.switch.muxer.needs_clock())
            && !std::mem::replace(&mut self.ticking, true)
        {
            let entry = opcode::Timeout::new(&*self.second).build();
            // SAFETY: the time is boxed and owned by the source, which lives until completion.
            unsafe { io.submit(TICK, entry) };
        }
    }
}

impl Source for VsockSource {
    fn start(&mut self, _io: &mut Io<'_>) {
        // The first turn is in the flush that follows.
    }

    fn complete(&mut self, _io: &mut Io<'_>, tag: u32, _result: i32) {
        match tag {
            RX => self.rx.kick.fired(),
            TX => self.tx.kick.fired(),
            EVENT => {
                if let Some(lane) = &mut self.event {
                    lane.kick.fired();
                }
            }
            SOCKETS => {
                self.sockets.fired();
                self.sockets_ready = true;
            }
            LISTENER => {
                self.listener.fired();
                self.clients_wait = true;
            }
            _ => {
                self.ticking = false;
                self.resting = false;
                if !self.stopping {
                    if let News::Told { patience, .. } = &mut self.switch.news {
                        *patience = patience.saturating_sub(1);
                    }
                    self.switch.muxer.tick();
                }
            }
        }
    }

    /// All the work is done here, once for all completions of a batch.
    fn flush(&mut self, io: &mut Io<'_>) {
        if !self.stopping && !self.broken {
            self.turn(io);
        }
        self.rx.publish();
        self.tx.publish();
        if let Some(lane) = &mut self.event {
            lane.publish();
        }
    }

    fn stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.rx.kick.cancel(io, RX);
        self.tx.kick.cancel(io, TX);
        if let Some(lane) = &mut self.event {
            lane.kick.cancel(io, EVENT);
        }
        self.sockets.cancel(io, SOCKETS);
        self.listener.cancel(io, LISTENER);
        if self.ticking {
            io.cancel(TICK);
        }
    }

    fn stopped(mut self: Box<Self>) {
        if let Some(home) = self.home.take() {
            home.give(self);
        }
    }

    fn lost(mut self: Box<Self>, why: &str, in_flight: bool) {
        self.rx.start.notify.needs_reset(why);
        if let Some(home) = self.home.take() {
            abandon(self, home, in_flight);
        }
    }

    fn name(&self) -> Option<Arc<str>> {
        Some(self.rx.start.name.clone())
    }
}
