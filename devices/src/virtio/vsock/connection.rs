//! One connection: its phase, its flow control and the packets it owes the guest. It does no I/O:
//! what its socket says comes in as calls, and what it wants comes out as values.
//!
//! Flow control (virtio 1.3 §5.10.6.3): the guest may have [`BUF_ALLOC`] bytes here that its peer
//! on the host has not taken, and no more is sent to the guest than it says it can keep.

use std::collections::VecDeque;

use super::handshake::Line;
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM};

/// Bytes kept for a host program that reads slowly: what the guest is told as `buf_alloc`.
pub(super) const BUF_ALLOC: u32 = 128 << 10;
/// The guest hears of freed space after this much of it, so that not each packet costs another.
const UPDATE_AFTER: u32 = BUF_ALLOC / 2;
/// The largest payload in one packet to the guest (what Linux's driver accepts).
pub(super) const MAX_PAYLOAD: u32 = 64 << 10;

/// Where a connection stands.
pub(super) enum Phase {
    /// A host program connected and has not said where to.
    Handshake(Line),
    /// The guest was asked, or will be, and has not answered.
    Requested,
    /// Data flows.
    Open,
    /// The host's side is gone; the guest was told, or will be, and has not agreed.
    Closing,
    /// The guest's side is gone; the host's takes what is left.
    Draining,
}

/// The guest sent more than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation;

/// A connection and its socket `S` on the host, if that is still open.
pub(super) struct Connection<S> {
    pub phase: Phase,
    /// Tells apart connections that used the same slot after one another.
    pub serial: u32,
    pub host_port: u32,
    pub guest_port: u32,
    pub socket: Option<S>,
    /// When a handshake or a request has taken too long, in ticks.
    pub deadline: u64,
    /// Guest data that the socket had no room for.
    backlog: VecDeque<u8>,
    /// Bytes from the guest that went to the host, modulo 2^32: our `fwd_cnt`.
    forwarded: u32,
    /// The last `fwd_cnt` that the guest was told.
    told: u32,
    /// Bytes that went to the guest, modulo 2^32.
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
    /// The request or response that comes before anything else.
    opening: Option<Op>,
    update_due: bool,
    /// The guest was asked for credit and has given none since.
    asked: bool,
    /// Shutdown flags that the guest sent.
    guest_shut: u32,
    /// Shutdown flags for the guest, and what it was told of them.
    host_shut: u32,
    told_shut: u32,
    /// The socket may have something to read.
    readable: bool,
}

impl<S> Connection<S> {
    fn new(phase: Phase, socket: S) -> Self {
        Connection {
            phase,
            serial: 0,
            host_port: 0,
            guest_port: 0,
            socket: Some(socket),
            deadline: u64::MAX,
            backlog: VecDeque::new(),
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
            opening: None,
            update_due: false,
            asked: false,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            readable: false,
        }
    }

    /// A host program came.
    pub fn client(socket: S) -> Self {
        Self::new(Phase::Handshake(Line::default()), socket)
    }

    /// The guest asked with `request` for a host port whose socket took the call.
    pub fn accepted(request: &Header, socket: S) -> Self {
        let mut connection = Connection {
            host_port: request.dst_port,
            guest_port: request.src_port,
            opening: Some(Op::Response),
            readable: true,
            ..Self::new(Phase::Open, socket)
        };
        connection.heard(request);
        connection
    }

    /// The host program said where to: ask the guest.
    pub fn request(&mut self, host_port: u32, guest_port: u32) {
        self.phase = Phase::Requested;
        self.host_port = host_port;
        self.guest_port = guest_port;
        self.opening = Some(Op::Request);
    }

    /// How much more may belong to the handshake, during it.
    pub fn line_room(&self) -> Option<usize> {
        match &self.phase {
            Phase::Handshake(line) => Some(line.room()),
            _ => None,
        }
    }

    /// The guest was asked and must be told if that is over.
    pub fn known_to_guest(&self) -> bool {
        match self.phase {
            Phase::Handshake(_) | Phase::Draining => false,
            Phase::Requested => self.opening.is_none(),
            Phase::Open | Phase::Closing => true,
        }
    }

    /// The guest accepted; false if nobody asked it to.
    pub fn response(&mut self) -> bool {
        let asked = matches!(self.phase, Phase::Requested) && self.opening.is_none();
        if asked {
            self.phase = Phase::Open;
            self.deadline = u64::MAX;
            // The host program may have written ahead.
            self.readable = true;
        }
        asked
    }

    /// Takes the guest's flow control from any packet of it.
    pub fn heard(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.asked = false;
        }
    }

    /// Bytes that may be sent to the guest now.
    pub fn credit(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_alloc.saturating_sub(on_the_way)
    }

    /// The guest asked for a credit update.
    pub fn credit_requested(&mut self) {
        self.update_due = true;
    }

    /// The guest sends `len` bytes: true if they go to the socket, false if they are dropped
    /// because the host program takes no more, which the guest was told or will be.
    pub fn receive(&mut self, len: u32) -> Result<bool, Violation> {
        let held = u32::try_from(self.backlog.len()).unwrap_or(u32::MAX);
        if self.guest_shut & SHUTDOWN_SEND != 0 || held.saturating_add(len) > BUF_ALLOC {
            return Err(Violation);
        }
        let taken = self.host_shut & SHUTDOWN_RECEIVE == 0;
        if !taken {
            self.forwarded(len);
        }
        Ok(taken)
    }

    /// `n` bytes of the guest went to the host.
    pub fn forwarded(&mut self, n: u32) {
        self.forwarded = self.forwarded.wrapping_add(n);
        self.update_due |= self.forwarded.wrapping_sub(self.told) >= UPDATE_AFTER;
    }

    /// Keeps bytes that were received and that the socket had no room for.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.backlog.extend(bytes);
    }

    /// What waits for room in the socket, in order.
    pub fn backlog(&self) -> (&[u8], &[u8]) {
        self.backlog.as_slices()
    }

    /// Nothing waits for room in the socket.
    pub fn flushed(&self) -> bool {
        self.backlog.is_empty()
    }

    /// The first `n` bytes of the backlog went to the host.
    pub fn drained(&mut self, n: usize) {
        let n = n.min(self.backlog.len());
        self.backlog.drain(..n);
        if self.backlog.is_empty() {
            self.backlog = VecDeque::new();
        }
        self.forwarded(n as u32);
    }

    /// The guest shut directions down; true if both are.
    pub fn guest_shutdown(&mut self, flags: u32) -> bool {
        self.guest_shut |= flags & SHUTDOWN_BOTH;
        self.guest_shut == SHUTDOWN_BOTH
    }

    /// The guest takes no more data.
    pub fn guest_is_deaf(&self) -> bool {
        self.guest_shut & SHUTDOWN_RECEIVE != 0
    }

    /// The guest sends no more data, and all it sent went to the host.
    pub fn guest_is_done(&self) -> bool {
        self.guest_shut & SHUTDOWN_SEND != 0 && self.flushed()
    }

    /// The socket has something to read, or may have.
    pub fn host_readable(&mut self) {
        self.readable = true;
    }

    /// The socket has nothing to read for now.
    pub fn host_idle(&mut self) {
        self.readable = false;
    }

    /// The host program sends no more.
    pub fn host_ended(&mut self) {
        self.readable = false;
        self.host_shut |= SHUTDOWN_SEND;
    }

    /// The host program takes no more: what it has not taken is lost.
    pub fn host_is_deaf(&mut self) {
        self.host_shut |= SHUTDOWN_RECEIVE;
        self.drained(usize::MAX);
    }

    /// When neither side takes data, none will flow again.
    pub fn end_if_useless(&mut self) {
        if self.host_shut & SHUTDOWN_RECEIVE != 0 && self.guest_is_deaf() {
            self.host_ended();
        }
    }

    /// The host's side is over in both directions.
    pub fn host_is_gone(&self) -> bool {
        self.host_shut == SHUTDOWN_BOTH
    }

    /// How much may be read from the socket for the guest now; 0 to leave it alone.
    pub fn wants(&self) -> u32 {
        if self.reads() {
            self.credit().min(MAX_PAYLOAD)
        } else {
            0
        }
    }

    fn reads(&self) -> bool {
        self.readable
            && matches!(self.phase, Phase::Open)
            && self.host_shut & SHUTDOWN_SEND == 0
            && !self.guest_is_deaf()
    }

    /// The header for `len` bytes that were read for the guest.
    pub fn data(&mut self, cid: u64, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        Header {
            len,
            ..self.header(cid, Op::Data)
        }
    }

    /// Whether a packet to the guest is due, be it data.
    pub fn has_work(&self) -> bool {
        self.due().is_some() || self.wants() > 0
    }

    /// Which packet without data is due.
    fn due(&self) -> Option<Op> {
        if self.opening.is_some() {
            return self.opening;
        }
        match self.phase {
            Phase::Open | Phase::Closing if self.host_shut != self.told_shut => Some(Op::Shutdown),
            Phase::Open if self.reads() && self.credit() == 0 && !self.asked => {
                Some(Op::CreditRequest)
            }
            Phase::Open if self.update_due => Some(Op::CreditUpdate),
            _ => None,
        }
    }

    /// Takes the next packet without data.
    pub fn control(&mut self, cid: u64) -> Option<Header> {
        let op = self.due()?;
        let mut header = self.header(cid, op);
        match op {
            Op::Request | Op::Response => self.opening = None,
            Op::Shutdown => {
                header.flags = self.host_shut;
                self.told_shut = self.host_shut;
            }
            Op::CreditRequest => self.asked = true,
            _ => {}
        }
        Some(header)
    }

    /// A header, which always tells the guest our flow control.
    pub fn header(&mut self, cid: u64, op: Op) -> Header {
        self.told = self.forwarded;
        self.update_due = false;
        Header {
            src_cid: super::packet::HOST_CID,
            dst_cid: cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            kind: STREAM,
            op: op as u16,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }
}
