//! A miniature vsock driver for the tests: three rings in RAM, a real worker, and the guest's end
//! of each connection. It notifies, and wants to be notified, exactly as EVENT_IDX says.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::packet::{HEADER, Header, Op, STREAM};
use super::super::*;
use crate::memory::GuestRam;
use crate::virtio::Notify;
use crate::worker::{PollSettings, Worker};

pub const CID: u64 = 3;
const SIZE: u16 = 128;
const RAM: usize = 32 << 20;
const RX_BUFFER: u64 = 4096;
const TX_SLOT: u64 = 128 << 10;
const TX_SLOTS: u16 = 32;
/// The guest's receive buffer of each connection.
pub const GUEST_ALLOC: u32 = 48 << 10;
const DEADLINE: Duration = Duration::from_secs(20);

struct Bell(EventFd);

impl Notify for Bell {
    fn used(&self) {
        self.0.write(1).unwrap();
    }
    fn config_changed(&self) {}
    fn needs_reset(&self, why: &str) {
        panic!("the device gave up: {why}");
    }
}

/// One ring, as the driver sees it.
struct Ring {
    state: QueueState,
    data: u64,
    avail: u16,
    seen: u16,
    free: Vec<u16>,
    kick: Arc<EventFd>,
}

impl Ring {
    fn new(base: u64, slots: u16) -> Ring {
        Ring {
            state: QueueState {
                size: SIZE,
                desc: base,
                avail: base + 0x1000,
                used: base + 0x2000,
                next_avail: 0,
                next_used: 0,
            },
            data: base + 0x10000,
            avail: 0,
            seen: 0,
            free: (0..slots).collect(),
            kick: Arc::new(EventFd::new(0).unwrap()),
        }
    }
}

/// The guest's end of a connection.
#[derive(Default)]
pub struct Peer {
    pub open: bool,
    pub reset: bool,
    /// The guest's program closed it.
    pub closed: bool,
    /// Shutdown flags that the device sent.
    pub shut: u32,
    pub received: Vec<u8>,
    /// The guest's program does not read.
    pub hold: bool,
    forwarded: u32,
    told: u32,
    sent: u32,
    alloc: u32,
    host_forwarded: u32,
}

impl Peer {
    pub fn credit(&self) -> u32 {
        self.alloc - self.sent.wrapping_sub(self.host_forwarded)
    }
}

/// (host port, guest port)
pub type Ports = (u32, u32);

pub struct Guest {
    pub device: Vsock,
    worker: Worker,
    ram: GuestRam,
    rings: [Ring; 3],
    bell: Arc<Bell>,
    pub peers: HashMap<Ports, Peer>,
    /// Requests of the host that were not answered.
    pub requests: VecDeque<Header>,
    /// Resets that belong to no connection.
    pub strays: VecDeque<Header>,
    /// Accept what the host asks for.
    pub accepting: bool,
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Guest {
    /// A guest whose driver runs, with all receive buffers offered.
    pub fn new() -> Guest {
        let mut guest = Guest::stopped();
        guest.offer_buffers(SIZE);
        guest.start();
        guest
    }

    /// A guest whose driver has not started.
    pub fn stopped() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        Guest {
            device: Vsock::new(CID, &socket).unwrap(),
            worker: Worker::start("t", PollSettings::events(), || Ok(())).unwrap(),
            ram: GuestRam::new(memory),
            rings: [
                Ring::new(0x10_0000, SIZE),
                Ring::new(0x40_0000, TX_SLOTS),
                Ring::new(0x20_0000, 8),
            ],
            bell: Arc::new(Bell(EventFd::new(EFD_NONBLOCK).unwrap())),
            peers: HashMap::new(),
            requests: VecDeque::new(),
            strays: VecDeque::new(),
            accepting: true,
            socket,
            _dir: dir,
        }
    }

    pub fn start(&mut self) {
        for index in 0..3 {
            let ring = &self.rings[usize::from(index)];
            let start = QueueStart {
                state: ring.state,
                features: features::COMMON,
                memory: self.ram.clone(),
                kick: ring.kick.clone(),
                notify: self.bell.clone(),
                worker: self.worker.handle(),
                name: "vsock".into(),
            };
            self.device.start_queue(index, start).unwrap();
        }
    }

    pub fn stop(&mut self) {
        for (index, ring) in self.rings.iter_mut().enumerate() {
            ring.state = self.device.stop_queue(index as u16).unwrap();
        }
    }

    /// Pretends that the rings have a history, as after a restore.
    pub fn age(&mut self) {
        for ring in &mut self.rings {
            let was = 7u16;
            (ring.avail, ring.seen) = (was, was);
            (ring.state.next_avail, ring.state.next_used) = (was, was);
            let ram = self.ram.memory();
            ram.write_obj(was, GuestAddress(ring.state.avail + 2))
                .unwrap();
            ram.write_obj(was, GuestAddress(ring.state.used + 2))
                .unwrap();
            let event = ring.state.avail + 4 + 2 * u64::from(SIZE);
            ram.write_obj(was, GuestAddress(event)).unwrap();
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.ram
            .memory()
            .write_obj(value, GuestAddress(at))
            .unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.ram.memory().read_obj(GuestAddress(at)).unwrap()
    }

    /// Offers a buffer, and notifies if the device wants it.
    fn offer(&mut self, index: usize, slot: u16, addr: u64, len: u32, writable: bool) {
        let state = self.rings[index].state;
        let at = state.desc + 16 * u64::from(slot);
        self.put(at, addr);
        self.put(at + 8, len);
        self.put(at + 12, if writable { 2u16 } else { 0 });
        let old = self.rings[index].avail;
        self.put(state.avail + 4 + 2 * u64::from(old % SIZE), slot);
        fence(Ordering::SeqCst);
        let new = old.wrapping_add(1);
        self.put(state.avail + 2, new);
        self.rings[index].avail = new;
        fence(Ordering::SeqCst);
        let event: u16 = self.get(state.used + 4 + 8 * u64::from(SIZE));
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.rings[index].kick.write(1).unwrap();
        }
    }

    /// Takes one used buffer: its slot and length.
    fn take(&mut self, index: usize) -> Option<(u16, u32)> {
        let (state, seen) = (self.rings[index].state, self.rings[index].seen);
        let used: u16 = self.get(state.used + 2);
        fence(Ordering::SeqCst);
        if used == seen {
            return None;
        }
        let at = state.used + 4 + 8 * u64::from(seen % SIZE);
        let next = seen.wrapping_add(1);
        self.rings[index].seen = next;
        self.put(state.avail + 4 + 2 * u64::from(SIZE), next);
        fence(Ordering::SeqCst);
        Some((self.get::<u32>(at) as u16, self.get(at + 4)))
    }

    /// Offers up to `count` receive buffers.
    pub fn offer_buffers(&mut self, count: u16) {
        for _ in 0..count {
            let Some(slot) = self.rings[0].free.pop() else {
                return;
            };
            let addr = self.rings[0].data + RX_BUFFER * u64::from(slot);
            self.offer(0, slot, addr, RX_BUFFER as u32, true);
        }
    }

    pub fn offer_event_buffer(&mut self) {
        let slot = self.rings[2].free.pop().unwrap();
        let addr = self.rings[2].data;
        self.put(addr, u32::MAX);
        self.offer(2, slot, addr, 4, true);
    }

    /// Waits until the driver is told of an event; its id.
    pub fn event(&mut self) -> u32 {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some((_, len)) = self.take(2) {
                assert_eq!(len, 4);
                return self.get(self.rings[2].data);
            }
            self.wait(end);
        }
    }

    /// Sends raw bytes as one packet.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let end = Instant::now() + DEADLINE;
        while self.rings[1].free.is_empty() {
            match self.take(1) {
                Some((slot, _)) => self.rings[1].free.push(slot),
                None => self.wait(end),
            }
        }
        let slot = self.rings[1].free.pop().unwrap();
        let addr = self.rings[1].data + TX_SLOT * u64::from(slot);
        let memory = self.ram.memory();
        memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        self.offer(1, slot, addr, bytes.len() as u32, false);
    }

    /// Waits until the device has taken all packets.
    pub fn sent_all(&mut self) {
        let end = Instant::now() + DEADLINE;
        while self.rings[1].free.len() < usize::from(TX_SLOTS) {
            match self.take(1) {
                Some((slot, _)) => self.rings[1].free.push(slot),
                None => self.wait(end),
            }
        }
    }

    pub fn header(&self, ports: Ports, op: Op) -> Header {
        let forwarded = self.peers.get(&ports).map_or(0, |p| p.forwarded);
        Header {
            src_cid: CID,
            dst_cid: 2,
            src_port: ports.1,
            dst_port: ports.0,
            kind: STREAM,
            op: op as u16,
            buf_alloc: GUEST_ALLOC,
            fwd_cnt: forwarded,
            ..Header::default()
        }
    }

    pub fn send(&mut self, ports: Ports, op: Op, flags: u32, payload: &[u8]) {
        let header = Header {
            flags,
            len: payload.len() as u32,
            ..self.header(ports, op)
        };
        if let Some(peer) = self.peers.get_mut(&ports) {
            peer.told = peer.forwarded;
            peer.sent = peer.sent.wrapping_add(payload.len() as u32);
        }
        self.send_raw(&[&header.bytes(), payload].concat());
    }

    /// Sends as much of `data` as the credit allows; the rest.
    pub fn send_some<'a>(&mut self, ports: Ports, data: &'a [u8]) -> &'a [u8] {
        let n = data.len().min(self.peers[&ports].credit() as usize);
        let (now, later) = data.split_at(n.min(30_000));
        if !now.is_empty() {
            self.send(ports, Op::Data, 0, now);
        }
        later
    }

    /// Sends all of `data`, as the host takes it.
    pub fn send_all(&mut self, ports: Ports, mut data: &[u8]) {
        while !data.is_empty() {
            data = self.send_some(ports, data);
            if !data.is_empty() && self.peers[&ports].credit() == 0 {
                self.pump_until("credit", |g| g.peers[&ports].credit() > 0);
            }
        }
    }

    /// Opens a connection to a port of the host, and waits for the answer.
    pub fn connect(&mut self, ports: Ports) -> bool {
        self.peers.insert(ports, Peer::default());
        self.send(ports, Op::Request, 0, &[]);
        self.pump_until("an answer", |g| {
            let peer = &g.peers[&ports];
            peer.open || peer.reset
        });
        self.peers[&ports].open
    }

    /// The program reads again what it held back.
    pub fn release(&mut self, ports: Ports) {
        let peer = self.peers.get_mut(&ports).unwrap();
        peer.hold = false;
        peer.forwarded = peer.received.len() as u32;
        self.send(ports, Op::CreditUpdate, 0, &[]);
    }

    fn wait(&self, end: Instant) {
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "the device did not answer in time");
        let mut fd = libc::pollfd {
            fd: self.bell.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd is passed.
        unsafe { libc::poll(&mut fd, 1, left.as_millis() as i32 + 1) };
        let _ = self.bell.0.read();
    }

    /// Handles what the device sent; false if there was nothing.
    pub fn pump(&mut self) -> bool {
        let Some((slot, len)) = self.take(0) else {
            return false;
        };
        let addr = self.rings[0].data + RX_BUFFER * u64::from(slot);
        let mut bytes = vec![0; len as usize];
        let memory = self.ram.memory();
        memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        self.rings[0].free.push(slot);
        self.offer_buffers(1);
        let header = Header::parse(bytes[..HEADER].try_into().unwrap());
        assert_eq!(bytes.len(), HEADER + header.len as usize);
        self.handle(&header, &bytes[HEADER..]);
        true
    }

    fn handle(&mut self, header: &Header, payload: &[u8]) {
        let op = header.op().unwrap();
        if header.src_cid != 2 && op == Op::Reset {
            return self.strays.push_back(*header);
        }
        assert_eq!((header.src_cid, header.dst_cid), (2, CID));
        let ports = (header.src_port, header.dst_port);
        if op == Op::Request {
            self.requests.push_back(*header);
            if self.accepting {
                self.accept();
            }
            return;
        }
        let Some(peer) = self.peers.get_mut(&ports) else {
            assert_eq!(op, Op::Reset, "{header:?}");
            self.strays.push_back(*header);
            return;
        };
        if op != Op::Reset {
            peer.alloc = header.buf_alloc;
            peer.host_forwarded = header.fwd_cnt;
        }
        match op {
            Op::Response => peer.open = true,
            Op::Reset => peer.reset = true,
            Op::Shutdown => peer.shut |= header.flags,
            Op::Data => {
                peer.received.extend(payload);
                let kept = (peer.received.len() as u32).wrapping_sub(peer.forwarded);
                assert!(kept <= GUEST_ALLOC, "more than the guest's credit");
                if !peer.hold {
                    peer.forwarded = peer.received.len() as u32;
                    if peer.forwarded - peer.told >= GUEST_ALLOC / 2 {
                        self.send(ports, Op::CreditUpdate, 0, &[]);
                    }
                }
            }
            Op::CreditRequest => self.send(ports, Op::CreditUpdate, 0, &[]),
            _ => {}
        }
    }

    /// Accepts the oldest request of the host.
    pub fn accept(&mut self) -> Ports {
        let header = self.requests.pop_front().unwrap();
        let ports = (header.src_port, header.dst_port);
        let peer = Peer {
            open: true,
            alloc: header.buf_alloc,
            ..Peer::default()
        };
        self.peers.insert(ports, peer);
        self.send(ports, Op::Response, 0, &[]);
        ports
    }

    /// Handles what comes in until `done`.
    pub fn pump_until(&mut self, what: &str, done: impl Fn(&Guest) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !done(self) {
            if !self.pump() {
                assert!(Instant::now() < end, "waited in vain for {what}");
                self.wait(end);
            }
        }
    }

    /// Handles what comes in while a thread does its part; its result.
    pub fn pump_while<T>(&mut self, thread: std::thread::JoinHandle<T>) -> T {
        let end = Instant::now() + DEADLINE;
        while !thread.is_finished() {
            if !self.pump() {
                assert!(Instant::now() < end, "the host program hangs");
                self.pause();
            }
        }
        thread.join().unwrap()
    }

    /// Until the bell rings, or a thread may have ended.
    pub fn pause(&self) {
        let mut fd = libc::pollfd {
            fd: self.bell.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd is passed.
        unsafe { libc::poll(&mut fd, 1, 5) };
        let _ = self.bell.0.read();
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        })
        .collect()
}
