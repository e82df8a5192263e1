//! All connections of a device: which packet belongs to which, what is answered, and whose turn it
//! is. It does no I/O: packets and what sockets say come in as calls; packets and what is to be
//! done with a socket come out as values. Dropping a socket `S` closes it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::VsockCounters;
use super::connection::{Connection, Phase};
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, STREAM};

/// Connections at once, in any phase.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Host programs at once that have not said where to; a further one replaces the oldest.
pub(super) const MAX_HANDSHAKES: usize = 64;
/// Answers that wait for the guest's buffers before no more of its packets are taken (virtio 1.3
/// §5.10.6.1.2: the extra resources are bounded).
const MAX_REPLIES: usize = 256;
/// Ticks (seconds) for a host program to say where to, and for the guest to answer.
const HANDSHAKE_TICKS: u64 = 3;
const REQUEST_TICKS: u64 = 10;
/// Host ports given to host programs: 2^30 of them from here on, out of the way of services.
const FIRST_PORT: u32 = 1 << 30;

/// Names a connection for as long as it exists, and nothing after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    pub slot: u32,
    pub serial: u32,
}

/// A connection's address: its port on the host and in the guest.
type Key = (u32, u32);

/// What a packet of the guest asks to be done with a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Connect to the host's socket for the packet's port, then call `connected` or `refuse`.
    Connect,
    /// Write `len` bytes of payload to the socket and report by `forwarded`, `keep` or
    /// `host_is_deaf`.
    Write {
        id: Id,
        len: u32,
    },
    /// Tell the host program that the guest accepted.
    Greet(Id),
    /// Shut directions of the socket down.
    Shut {
        id: Id,
        read: bool,
        write: bool,
    },
}

/// What the guest's next buffer is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Packet(Header),
    /// Up to `limit` bytes read from the socket, then `read`, `host_idle`, `host_ended` or
    /// `host_failed`.
    Read {
        id: Id,
        limit: u32,
    },
}

struct Slot<S> {
    connection: Option<Connection<S>>,
    /// It is in the line of those with something for the guest.
    queued: bool,
}

/// The connections of one device.
pub(super) struct Muxer<S> {
    cid: u64,
    slots: Vec<Slot<S>>,
    free: Vec<u32>,
    keys: HashMap<Key, u32>,
    ready: VecDeque<u32>,
    replies: VecDeque<Header>,
    clock: u64,
    /// Connections with a deadline.
    waiting: usize,
    serial: u32,
    next_port: u32,
    counters: Arc<VsockCounters>,
}

impl<S> Muxer<S> {
    pub fn new(cid: u64, counters: Arc<VsockCounters>) -> Self {
        Muxer {
            cid,
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            clock: 0,
            waiting: 0,
            serial: 0,
            next_port: FIRST_PORT,
            counters,
        }
    }

    /// The connection called `id`, if it still exists.
    pub fn get(&mut self, id: Id) -> Option<&mut Connection<S>> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.connection.as_mut().filter(|c| c.serial == id.serial)
    }

    /// The guest may send more: there is room for answers.
    pub fn takes_packets(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// There may be something for the guest.
    pub fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Somebody has a deadline: call [`tick`](Self::tick) every second.
    pub fn needs_clock(&self) -> bool {
        self.waiting > 0
    }

    fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many connections are in a matching phase, and the oldest of them.
    fn oldest(&self, matching: fn(&Phase) -> bool) -> (usize, Option<Id>) {
        let (mut count, mut found) = (0, None::<(u32, Id)>);
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(c) = slot.connection.as_ref().filter(|c| matching(&c.phase)) else {
                continue;
            };
            count += 1;
            let age = self.serial.wrapping_sub(c.serial);
            if found.is_none_or(|(oldest, _)| age > oldest) {
                let id = Id {
                    slot: index as u32,
                    serial: c.serial,
                };
                found = Some((age, id));
            }
        }
        (count, found.map(|(_, id)| id))
    }

    /// Places a connection. When the table is full, those that only wait for their end make room.
    fn insert(&mut self, mut connection: Connection<S>) -> Option<Id> {
        if self.live() >= MAX_CONNECTIONS {
            let over = |phase: &Phase| matches!(phase, Phase::Closing | Phase::Draining);
            self.abort(self.oldest(over).1?);
        }
        self.serial = self.serial.wrapping_add(1);
        connection.serial = self.serial;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                connection: None,
                queued: false,
            });
            self.slots.len() as u32 - 1
        });
        self.slots.get_mut(slot as usize)?.connection = Some(connection);
        Some(Id {
            slot,
            serial: self.serial,
        })
    }

    /// Forgets a connection and closes its socket.
    pub fn remove(&mut self, id: Id) {
        self.drop_key(id);
        let Some(slot) = self.slots.get_mut(id.slot as usize) else {
            return;
        };
        if let Some(c) = slot.connection.take_if(|c| c.serial == id.serial) {
            if matches!(c.phase, Phase::Handshake(_) | Phase::Requested) {
                self.waiting -= 1;
            }
            self.free.push(id.slot);
        }
    }

    fn drop_key(&mut self, id: Id) {
        if let Some(c) = self.get(id) {
            let key = (c.host_port, c.guest_port);
            if self.keys.get(&key) == Some(&id.slot) {
                self.keys.remove(&key);
            }
        }
    }

    /// Ends a connection at once, and tells the guest if it knows of it.
    pub fn abort(&mut self, id: Id) {
        let cid = self.cid;
        let Some(c) = self.get(id) else { return };
        if c.known_to_guest() {
            let reset = c.header(cid, Op::Reset);
            self.replies.push_back(reset);
            self.counters.resets.add(1);
        }
        self.remove(id);
    }

    /// A host program connected. None, and its socket is closed, if there is no room.
    pub fn client(&mut self, socket: S) -> Option<Id> {
        let (count, oldest) = self.oldest(|phase| matches!(phase, Phase::Handshake(_)));
        if let Some(id) = oldest.filter(|_| count >= MAX_HANDSHAKES) {
            self.remove(id);
        }
        let mut connection = Connection::client(socket);
        connection.deadline = self.clock + HANDSHAKE_TICKS;
        let id = self.insert(connection)?;
        self.waiting += 1;
        Some(id)
    }

    /// A host program wrote: its handshake, up to the end of the line. False if the connection
    /// waits for no more of it.
    pub fn handshake(&mut self, id: Id, bytes: &[u8]) -> bool {
        let Some(c) = self.get(id) else { return false };
        let Phase::Handshake(line) = &mut c.phase else {
            return false;
        };
        match line.push(bytes) {
            Ok(None) => true,
            Ok(Some(guest_port)) => {
                let host_port = self.host_port(guest_port);
                let deadline = self.clock + REQUEST_TICKS;
                if let Some(c) = self.get(id) {
                    c.request(host_port, guest_port);
                    c.deadline = deadline;
                }
                self.keys.insert((host_port, guest_port), id.slot);
                self.settle(id);
                false
            }
            Err(_) => {
                self.remove(id);
                false
            }
        }
    }

    /// A host port that no connection to `guest_port` has. There are more than connections.
    fn host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = FIRST_PORT | (port + 1) & (FIRST_PORT - 1);
            if !self.keys.contains_key(&(port, guest_port)) {
                return port;
            }
        }
    }

    /// The guest sent a packet with `payload` bytes behind its header.
    pub fn packet(&mut self, header: &Header, payload: u64) -> Action {
        if header.src_cid != self.cid {
            // Not the guest's own address: an answer would not reach whoever sent this.
            self.counters.malformed.add(1);
            return Action::Nothing;
        }
        if header.dst_cid != HOST_CID || header.kind != STREAM {
            self.refuse(header);
            return Action::Nothing;
        }
        let key = (header.dst_port, header.src_port);
        let Some(slot) = self.keys.get(&key).copied() else {
            if header.op() == Some(Op::Request) {
                return Action::Connect;
            }
            self.refuse(header);
            return Action::Nothing;
        };
        let connection = self
            .slots
            .get_mut(slot as usize)
            .and_then(|s| s.connection.as_mut());
        let Some(connection) = connection else {
            return Action::Nothing;
        };
        let serial = connection.serial;
        let id = Id { slot, serial };
        connection.heard(header);
        let action = match header.op() {
            Some(Op::Data) if u64::from(header.len) > payload => None,
            Some(op) => self.dispatch(id, op, header),
            None => None,
        };
        match action {
            Some(action) => {
                self.settle(id);
                action
            }
            None => {
                // The guest broke the rules for this connection; the others go on.
                self.counters.malformed.add(1);
                self.abort(id);
                Action::Nothing
            }
        }
    }

    /// None if the packet has no place in the connection's phase.
    fn dispatch(&mut self, id: Id, op: Op, header: &Header) -> Option<Action> {
        let c = self.get(id)?;
        match (op, &c.phase) {
            (Op::Reset, _) => {
                self.guest_left(id);
            }
            (Op::Request, Phase::Closing) => {
                // The guest forgot the old connection and uses its port again.
                self.remove(id);
                return Some(Action::Connect);
            }
            (Op::Response, _) => {
                if !c.response() {
                    return None;
                }
                self.waiting -= 1;
                self.counters.connections.add(1);
                return Some(Action::Greet(id));
            }
            (Op::Request, _) | (_, Phase::Requested) => return None,
            (Op::Data, Phase::Open) => {
                let len = header.len;
                let taken = c.receive(len).ok()?;
                return Some(if taken && len > 0 {
                    Action::Write { id, len }
                } else {
                    Action::Nothing
                });
            }
            (Op::Shutdown, _) => return Some(self.shutdown(id, header)),
            (Op::CreditRequest, _) => c.credit_requested(),
            // Credit was taken already; data for a host program that left is dropped.
            _ => {}
        }
        Some(Action::Nothing)
    }

    fn shutdown(&mut self, id: Id, header: &Header) -> Action {
        let cid = self.cid;
        let Some(c) = self.get(id) else {
            return Action::Nothing;
        };
        if c.guest_shutdown(header.flags) {
            // A reset ends it (§5.10.6.5). What the guest sent still goes to the host.
            let reset = c.header(cid, Op::Reset);
            self.replies.push_back(reset);
            self.guest_left(id);
            return Action::Nothing;
        }
        Action::Shut {
            id,
            read: header.flags & SHUTDOWN_RECEIVE != 0,
            write: c.guest_is_done(),
        }
    }

    /// The guest knows the connection no longer: drain what it sent, then close.
    fn guest_left(&mut self, id: Id) {
        self.drop_key(id);
        match self.get(id) {
            Some(c) if matches!(c.phase, Phase::Open) && !c.flushed() => {
                c.phase = Phase::Draining;
            }
            _ => self.remove(id),
        }
    }

    /// The guest's `request` was taken by `socket`. None, and the guest is refused, if there is
    /// no room.
    pub fn connected(&mut self, request: &Header, socket: S) -> Option<Id> {
        let Some(id) = self.insert(Connection::accepted(request, socket)) else {
            self.refuse(request);
            return None;
        };
        self.keys
            .insert((request.dst_port, request.src_port), id.slot);
        self.counters.connections.add(1);
        self.settle(id);
        Some(id)
    }

    /// Nobody takes this packet.
    pub fn refuse(&mut self, header: &Header) {
        if let Some(reset) = header.refusal() {
            self.replies.push_back(reset);
            self.counters.resets.add(1);
        }
    }

    /// What the connection wants may have changed: put it in line, or close what is over.
    pub fn settle(&mut self, id: Id) {
        let Some(c) = self.get(id) else { return };
        if matches!(c.phase, Phase::Open) {
            c.end_if_useless();
            if c.host_is_gone() {
                c.phase = Phase::Closing;
                c.socket = None;
            }
        }
        let over = matches!(c.phase, Phase::Draining) && c.flushed();
        let work = c.has_work();
        if over {
            self.remove(id);
        } else if let Some(slot) = self.slots.get_mut(id.slot as usize).filter(|_| work)
            && !std::mem::replace(&mut slot.queued, true)
        {
            self.ready.push_back(id.slot);
        }
    }

    /// What to put into the guest's next buffer. None if there is nothing after all.
    pub fn next(&mut self) -> Option<Next> {
        if let Some(header) = self.replies.pop_front() {
            return Some(Next::Packet(header));
        }
        while let Some(index) = self.ready.pop_front() {
            let Some(slot) = self.slots.get_mut(index as usize) else {
                continue;
            };
            slot.queued = false;
            let Some(c) = slot.connection.as_mut() else {
                continue;
            };
            let id = Id {
                slot: index,
                serial: c.serial,
            };
            if let Some(header) = c.control(self.cid) {
                self.settle(id);
                return Some(Next::Packet(header));
            }
            let limit = c.wants();
            if limit > 0 {
                return Some(Next::Read { id, limit });
            }
        }
        None
    }

    /// `len` bytes were read for the guest: the header that goes with them.
    pub fn read(&mut self, id: Id, len: u32) -> Option<Header> {
        let cid = self.cid;
        let header = self.get(id)?.data(cid, len);
        self.settle(id);
        Some(header)
    }

    /// The host program closed its end altogether.
    pub fn hung_up(&mut self, id: Id) {
        if let Some(c) = self.get(id) {
            c.host_is_deaf();
        }
        self.settle(id);
    }

    /// A second went by: ends what took too long.
    pub fn tick(&mut self) {
        self.clock += 1;
        for index in 0..self.slots.len() {
            let Some(c) = self.slots.get(index).and_then(|s| s.connection.as_ref()) else {
                continue;
            };
            if c.deadline <= self.clock {
                let serial = c.serial;
                let slot = index as u32;
                self.abort(Id { slot, serial });
            }
        }
    }
}

#[cfg(test)]
#[path = "muxer_test.rs"]
mod tests;
