//! Between packets and sockets: payload moves between the guest's buffers and the sockets without a
//! copy in between, unless a host program is slow.

use std::sync::Arc;

use super::VsockCounters;
use super::handshake::{self, MAX_LINE};
use super::muxer::{Action, Id, Muxer, Next};
use super::packet::{HEADER, Header};
use super::sockets::{Event, Socket, Sockets};
use crate::virtio::chain::Chain;

/// Whether the guest has to be told that the connections it had are gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// No.
    None,
    /// It has.
    ToTell,
    /// It was told, while it offered so many more buffers for events. Its driver ends all connections that it
    /// finds when it takes the event, also those made a moment ago; it then gives the buffer back.
    Told { offered: u16, patience: u8 },
}

/// What outlives a stop: the connections and their sockets.
pub(super) struct Switch {
    pub muxer: Muxer<Socket>,
    pub sockets: Sockets,
    /// What the guest knows of connections it had and that are gone.
    pub news: News,
    pub counters: Arc<VsockCounters>,
}

impl Switch {
    /// A socket is ready for something.
    pub fn event(&mut self, event: Event) {
        let id = event.id;
        if event.readable {
            self.readable(id);
        }
        if event.hung_up {
            self.muxer.hung_up(id);
        } else if event.writable {
            self.drain(id);
        }
    }

    /// A host program connected.
    pub fn client(&mut self, socket: Socket) {
        if let Some(id) = self.muxer.client(socket) {
            self.watch(id);
        }
    }

    /// Watches a new connection's socket; what cannot be watched is ended.
    fn watch(&mut self, id: Id) {
        let socket = self.muxer.get(id).and_then(|c| c.socket.as_ref());
        let watched = socket.map(|socket| self.sockets.watch(socket, id));
        if let Some(Err(e)) = watched {
            log::warn!("vsock: cannot watch a connection: {e}");
            self.muxer.abort(id);
        }
    }

    /// The socket has something to read: what belongs to the handshake is read here, the rest
    /// when the guest has buffers.
    fn readable(&mut self, id: Id) {
        let mut place = [0; MAX_LINE];
        loop {
            let Some(c) = self.muxer.get(id) else { return };
            let (Some(limit), Some(socket)) = (c.line_room(), &c.socket) else {
                c.host_readable();
                return self.muxer.settle(id);
            };
            match socket.read_line(limit, &mut place) {
                Ok(bytes) if !bytes.is_empty() => {
                    if !self.muxer.handshake(id, bytes) {
                        return;
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                _ => return self.muxer.remove(id),
            }
        }
    }

    /// One packet of the guest; how many bytes were moved.
    pub fn packet(&mut self, chain: &mut Chain) -> usize {
        let mut bytes = [0; HEADER];
        if !chain.take_front(&mut bytes) {
            self.counters.malformed.add(1);
            return 0;
        }
        let header = Header::parse(&bytes);
        match self.muxer.packet(&header, chain.readable_len()) {
            Action::Nothing => {}
            Action::Connect => self.connect(&header),
            Action::Write { id, len } => {
                self.write(id, chain, len as usize);
                return len as usize;
            }
            Action::Greet(id) => self.greet(id),
            Action::Shut { id, read, write } => {
                if let Some(socket) = self.muxer.get(id).and_then(|c| c.socket.as_ref()) {
                    socket.shut(read, write);
                }
            }
        }
        0
    }

    fn connect(&mut self, request: &Header) {
        match self.sockets.connect(request.dst_port) {
            Ok(socket) => {
                if let Some(id) = self.muxer.connected(request, socket) {
                    self.watch(id);
                }
            }
            Err(e) => {
                log::debug!("vsock: port {} of the host: {e}", request.dst_port);
                self.muxer.refuse(request);
            }
        }
    }

    fn greet(&mut self, id: Id) {
        let Some(c) = self.muxer.get(id) else { return };
        let line = handshake::accepted(c.host_port);
        let written = c.socket.as_ref().map(|s| s.write(line.as_bytes(), &[]));
        // Nothing was written before, so there is room unless the client is gone.
        if !matches!(written, Some(Ok(Some(n))) if n == line.len()) {
            self.muxer.hung_up(id);
        }
    }

    /// Writes a packet's payload; what the socket has no room for is kept, within the credit.
    fn write(&mut self, id: Id, chain: &mut Chain, mut len: usize) {
        self.counters.tx_bytes.add(len as u64);
        let Some(c) = self.muxer.get(id) else { return };
        while c.flushed() && len > 0 {
            let Some(socket) = &c.socket else { return };
            // SAFETY: the chain's buffers are in guest RAM, which it keeps mapped.
            match unsafe { socket.write_from(chain.readable(), len) } {
                Ok(Some((n, all))) => {
                    c.forwarded(n as u32);
                    chain.skip_front(n as u64);
                    len -= n;
                    if !all {
                        break;
                    }
                }
                Ok(None) => break,
                Err(_) => return self.muxer.hung_up(id),
            }
        }
        let mut piece = [0; 4096];
        while len > 0 {
            let n = len.min(piece.len());
            if !chain.take_front(&mut piece[..n]) {
                break;
            }
            c.keep(&piece[..n]);
            len -= n;
        }
        self.wrote(id);
    }

    /// The socket has room again.
    fn drain(&mut self, id: Id) {
        let Some(c) = self.muxer.get(id) else { return };
        while !c.flushed() {
            let Some(socket) = &c.socket else { return };
            let (first, second) = c.backlog();
            match socket.write(first, second) {
                Ok(Some(n)) => c.drained(n),
                Ok(None) => break,
                Err(_) => return self.muxer.hung_up(id),
            }
        }
        self.wrote(id);
    }

    /// After a write: wait for room if something is left; pass the guest's shutdown on if not.
    fn wrote(&mut self, id: Id) {
        let Some(c) = self.muxer.get(id) else { return };
        let (left, done) = (!c.flushed(), c.guest_is_done());
        if let Some(socket) = &mut c.socket {
            if done {
                socket.shut(false, true);
            }
            if let Err(e) = self.sockets.watch_room(socket, id, left) {
                log::warn!("vsock: cannot watch a connection: {e}");
                return self.muxer.abort(id);
            }
        }
        self.muxer.settle(id);
    }

    /// Fills one of the guest's buffers, which has room for a header; how many bytes are in it.
    /// None if there is nothing for it.
    pub fn fill(&mut self, chain: &Chain) -> Option<usize> {
        let room = chain.writable_len() - HEADER as u64;
        while let Some(next) = self.muxer.next() {
            match next {
                Next::Packet(header) => {
                    chain.write(0, &header.bytes());
                    return Some(HEADER);
                }
                Next::Read { id, limit } => {
                    let limit = u64::from(limit).min(room) as usize;
                    if let Some(n) = self.read(id, chain, limit) {
                        return Some(n);
                    }
                }
            }
        }
        None
    }

    /// Reads up to `limit` bytes for the guest; None if there are none.
    fn read(&mut self, id: Id, chain: &Chain, limit: usize) -> Option<usize> {
        if limit == 0 {
            // The buffer has room for nothing but a header: it is given back, the next may do.
            self.muxer.settle(id);
            return Some(0);
        }
        let c = self.muxer.get(id)?;
        let socket = c.socket.as_ref()?;
        // SAFETY: the chain's buffers are in guest RAM, which it keeps mapped.
        match unsafe { socket.read_into(chain.writable(), HEADER, limit) } {
            Ok(Some(n)) if n > 0 => {
                let header = self.muxer.read(id, n as u32)?;
                chain.write(0, &header.bytes());
                self.counters.rx_bytes.add(n as u64);
                return Some(HEADER + n);
            }
            Ok(Some(_)) => c.host_ended(),
            Ok(None) => c.host_idle(),
            Err(_) => {
                c.host_ended();
                c.host_is_deaf();
            }
        }
        self.muxer.settle(id);
        None
    }
}
