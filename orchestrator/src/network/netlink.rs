//! Conversations with the kernel over netlink sockets: a question, and all of its answer, within a bound.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout};

/// The kernel answers within this, unless its host is in trouble.
const PATIENCE: Duration = Duration::from_secs(5);
/// A list that changes while it is read is read anew this many times.
const ROUNDS: usize = 20;
/// Bytes of a batch that every socket takes.
const BATCH: usize = 64 << 10;
/// Bytes of a netlink header.
pub const HEADER: usize = 16;

/// A netlink socket. It stays in the network namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// One message of an answer.
pub(super) struct Part<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    /// With its header.
    pub(super) bytes: &'a [u8],
}

impl Part<'_> {
    /// What an error says; nothing if it is an acknowledgement.
    pub(super) fn error(&self) -> io::Result<()> {
        let code = self.bytes.get(HEADER..HEADER + 4);
        let code = code.and_then(|bytes| bytes.try_into().ok());
        match code.map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(torn()),
        }
    }
}

impl Netlink {
    /// One to speak of links, addresses and routes.
    pub fn route() -> io::Result<Netlink> {
        Netlink::open(NETLINK_ROUTE)
    }

    /// One to speak of rules for packets.
    pub fn netfilter() -> io::Result<Netlink> {
        Netlink::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> io::Result<Netlink> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// Has something done.
    pub fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags).map(drop)
    }

    /// Asks about one thing.
    pub fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send_route(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        Ok(self.answer()?.0)
    }

    /// Asks for all of a kind.
    pub fn list(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ROUNDS {
            self.send_route(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if let (all, true) = self.answer()? {
                return Ok(all);
            }
        }
        Err(io::Error::other(
            "the list changed each time while it was read",
        ))
    }

    fn send_route(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.send(&bytes)
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.send(bytes, 0)? {
            n if n == bytes.len() => Ok(()),
            _ => Err(torn()),
        }
    }

    /// The answer to the last question, and whether it is of one moment.
    fn answer(&mut self) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let (mut all, mut whole) = (Vec::new(), true);
        let asked = self.sequence;
        self.receive(|part| {
            if part.sequence != asked {
                // To a question that was given up.
                return Ok(false);
            }
            whole &= part.flags & NLM_F_DUMP_INTR == 0;
            match part.kind {
                NLMSG_DONE | NLMSG_ERROR => return part.error().map(|()| true),
                _ => {}
            }
            // What it cannot read is no thing of ours: a link of a kind that came after it, say.
            match NetlinkMessage::deserialize(part.bytes).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(message)) => all.push(message),
                Ok(_) => {}
                Err(e) => log::debug!("a netlink message cannot be read: {e}"),
            }
            Ok(false)
        })?;
        Ok((all, whole))
    }

    /// Has all messages of a batch done, or none. `last` is the sequence number of the one that asks for an
    /// acknowledgement.
    pub fn batch(self, bytes: &[u8], last: u32) -> io::Result<()> {
        // It is sent at once, or not at all.
        if bytes.len() > BATCH {
            set_socket_send_buffer_size_force(&self.socket, 2 * bytes.len())?;
        }
        self.send(bytes)?;
        self.receive(|part| match part.kind {
            NLMSG_ERROR => part.error().map(|()| part.sequence == last),
            _ => Ok(false),
        })
    }

    /// Asks a question of which the answer is one message, given back with its header.
    pub fn one(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.send(bytes)?;
        let mut answer = Vec::new();
        self.receive(|part| {
            if part.kind == NLMSG_ERROR {
                return part.error().map(|()| false);
            }
            answer = part.bytes.to_vec();
            Ok(true)
        })?;
        Ok(answer)
    }

    /// Reads messages until `done` says so.
    pub(super) fn receive(
        &self,
        mut done: impl FnMut(&Part) -> io::Result<bool>,
    ) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let datagram = match self.socket.recv_from_full() {
                Ok((datagram, from)) if from.port_number() == 0 => datagram,
                // Somebody who is not the kernel.
                Ok(_) => continue,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            };
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let (part, behind) = split(rest).ok_or_else(torn)?;
                if done(&part)? {
                    return Ok(());
                }
                rest = behind;
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the kernel did not answer for five seconds",
        ))
    }
}

/// The first message of some, and those behind it.
fn split(bytes: &[u8]) -> Option<(Part<'_>, &[u8])> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u16_at = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let len = usize::try_from(u32_at(0)?).ok()?;
    let part = Part {
        kind: u16_at(4)?,
        flags: u16_at(6)?,
        sequence: u32_at(8)?,
        bytes: bytes.get(..len).filter(|_| len >= HEADER)?,
    };
    let behind = len.next_multiple_of(4).min(bytes.len());
    Some((part, &bytes[behind..]))
}

fn torn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a netlink message is torn")
}
