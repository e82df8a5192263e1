//! A socket device: packets, events, and one stream with its credit. Virtio 1.3 §5.10.

use super::queue::{Queue, wait_any};
use super::{Device, Kind, PATIENCE_MS};
use crate::clock::{Clock, Deadline, Limit};
use crate::failure;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::memory::Dma;

const HEADER_BYTES: usize = 44;
const BUFFER_BYTES: usize = 4096;
const BUFFERS: usize = 32;
const QUEUE_SIZE: u16 = 128;
const EVENT_BYTES: usize = 4;
const EVENTS: usize = 8;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: u32 = 0;
/// The most data in one packet.
pub const DATA_BYTES: usize = BUFFER_BYTES - HEADER_BYTES;
/// What this side can hold, as it tells the peer.
pub const WINDOW: u32 = 64 << 10;
const STREAM: u16 = 1;
/// The host's context identifier.
pub const HOST: u64 = 2;

/// Packet operations.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Neither side of the stream goes on.
pub const SHUTDOWN_BOTH: u32 = 3;

/// A packet's header.
#[derive(Clone, Copy, Default)]
#[repr(C, packed)]
pub struct Header {
    pub from_cid: u64,
    pub to_cid: u64,
    pub from_port: u32,
    pub to_port: u32,
    pub length: u32,
    pub kind: u16,
    pub operation: u16,
    pub flags: u32,
    pub window: u32,
    pub consumed: u32,
}

/// A socket device in use.
pub struct Vsock {
    rx: Queue,
    tx: Queue,
    events: Queue,
    rx_memory: Dma,
    rx_of_head: [u8; QUEUE_SIZE as usize],
    tx_memory: Dma,
    tx_free: [u8; BUFFERS],
    tx_free_count: usize,
    tx_of_head: [u8; QUEUE_SIZE as usize],
    event_memory: Dma,
    event_of_head: [u8; QUEUE_SIZE as usize],
    /// This side's context identifier.
    pub cid: u64,
    clock: Clock,
    /// Last, so that the device is reset when the rest is gone.
    pub device: Device,
}

impl Vsock {
    /// Opens the socket device.
    pub fn open(machine: &mut Machine) -> Outcome<Self> {
        let device = Device::open(machine, Kind::VSOCK, 0, 0)?;
        let cid = device.transport.config64(0);
        let mut vsock = Self {
            rx: device.queue(machine, 0, QUEUE_SIZE)?,
            tx: device.queue(machine, 1, QUEUE_SIZE)?,
            events: device.queue(machine, 2, QUEUE_SIZE)?,
            rx_memory: machine.memory.allocate(BUFFERS * BUFFER_BYTES, 4096)?,
            rx_of_head: [0; QUEUE_SIZE as usize],
            tx_memory: machine.memory.allocate(BUFFERS * BUFFER_BYTES, 4096)?,
            tx_free: core::array::from_fn(|buffer| buffer as u8),
            tx_free_count: BUFFERS,
            tx_of_head: [0; QUEUE_SIZE as usize],
            event_memory: machine.memory.allocate(EVENTS * EVENT_BYTES, 64)?,
            event_of_head: [0; QUEUE_SIZE as usize],
            cid,
            clock: machine.clock,
            device,
        };
        vsock.device.start()?;
        for number in 0..BUFFERS as u8 {
            vsock.give(number);
        }
        vsock.rx.publish();
        for number in 0..EVENTS as u8 {
            vsock.give_event(number);
        }
        vsock.events.publish();
        Ok(vsock)
    }

    fn give_event(&mut self, number: u8) {
        let buffer = self
            .event_memory
            .part(usize::from(number) * EVENT_BYTES, EVENT_BYTES);
        // No event's number.
        buffer.fill(0xff);
        if let Some(head) = self.events.add(&[], &[buffer.into()]) {
            self.event_of_head[usize::from(head)] = number;
        }
    }

    /// Takes the events that have come. True when one says that the transport was reset: every connection is gone,
    /// and this side's address is read anew.
    pub fn take_reset(&mut self) -> Outcome<bool> {
        let mut was_reset = false;
        while let Some(used) = self.events.take()? {
            let number = self.event_of_head[usize::from(used.head)];
            let event: u32 = self.event_memory.read(usize::from(number) * EVENT_BYTES);
            if used.written != EVENT_BYTES as u32 || event != TRANSPORT_RESET {
                return Err(failure!("unknown-event id={event} used={}", used.written));
            }
            was_reset = true;
            self.give_event(number);
        }
        if was_reset {
            self.events.publish();
            self.cid = self.device.transport.config64(0);
        }
        Ok(was_reset)
    }

    fn give(&mut self, number: u8) {
        let buffer = self
            .rx_memory
            .part(usize::from(number) * BUFFER_BYTES, BUFFER_BYTES);
        if let Some(head) = self.rx.add(&[], &[buffer.into()]) {
            self.rx_of_head[usize::from(head)] = number;
        }
    }

    fn reclaim(&mut self) -> Outcome {
        while let Some(used) = self.tx.take()? {
            self.tx_free[self.tx_free_count] = self.tx_of_head[usize::from(used.head)];
            self.tx_free_count += 1;
        }
        Ok(())
    }

    /// Sends one packet; its length and addresses are filled in from the arguments.
    pub fn send(&mut self, header: Header, data: &[u8]) -> Outcome {
        let mut patience = self.clock.patience_ms(PATIENCE_MS);
        self.reclaim()?;
        while self.tx_free_count == 0 {
            self.tx.wait(&mut patience)?;
            self.reclaim()?;
        }
        let header = Header {
            from_cid: self.cid,
            to_cid: HOST,
            length: data.len() as u32,
            kind: STREAM,
            window: WINDOW,
            ..header
        };
        let number = self.tx_free[self.tx_free_count - 1];
        let at = usize::from(number) * BUFFER_BYTES;
        let memory = self.tx_memory.part(at, HEADER_BYTES + data.len());
        memory.write(0, header);
        memory.write_bytes(HEADER_BYTES, data);
        let added = match data.is_empty() {
            true => self.tx.add(&[memory.into()], &[]),
            // Two descriptors, as Linux sends data.
            false => self.tx.add(
                &[
                    memory.part(0, HEADER_BYTES).into(),
                    memory.part(HEADER_BYTES, data.len()).into(),
                ],
                &[],
            ),
        };
        let Some(head) = added else {
            return Err(failure!("transmit-queue-full"));
        };
        self.tx_of_head[usize::from(head)] = number;
        self.tx_free_count -= 1;
        self.tx.publish();
        Ok(())
    }

    /// The next packet, if there is one; its data is copied out.
    pub fn poll(&mut self, data: &mut [u8; DATA_BYTES]) -> Outcome<Option<Header>> {
        let Some(used) = self.rx.take()? else {
            return Ok(None);
        };
        let number = self.rx_of_head[usize::from(used.head)];
        let buffer = self
            .rx_memory
            .part(usize::from(number) * BUFFER_BYTES, BUFFER_BYTES);
        let header: Header = buffer.read(0);
        let length = header.length as usize;
        if (used.written as usize) < HEADER_BYTES + length || length > DATA_BYTES {
            return Err(failure!("bad-packet-length used={} data={length}", {
                used.written
            }));
        }
        buffer.read_bytes(HEADER_BYTES, &mut data[..length]);
        self.give(number);
        self.rx.publish();
        Ok(Some(header))
    }

    /// Waits for the next packet.
    pub fn receive(&mut self, data: &mut [u8; DATA_BYTES], deadline: Deadline) -> Outcome<Header> {
        loop {
            if let Some(header) = self.poll(data)? {
                return Ok(header);
            }
            self.rx.wait(deadline)?;
        }
    }

    /// Waits for a packet or an event.
    pub fn wait(&self, limit: impl Limit) -> Outcome {
        wait_any([&self.rx, &self.events].into_iter(), limit)
    }

    /// Interrupts that the receive queue has taken.
    pub fn interrupts(&self) -> u32 {
        self.rx.interrupts()
    }
}

/// One stream: its ports, and what either side may still send.
pub struct Stream {
    pub port: u32,
    pub peer_port: u32,
    sent: u32,
    peer_window: u32,
    peer_consumed: u32,
    consumed: u32,
    announced: u32,
}

impl Stream {
    /// A stream of which nothing is known yet.
    pub fn new(port: u32, peer_port: u32) -> Self {
        Self {
            port,
            peer_port,
            sent: 0,
            peer_window: 0,
            peer_consumed: 0,
            consumed: 0,
            announced: 0,
        }
    }

    /// True for this stream's packets.
    pub fn owns(&self, header: &Header) -> bool {
        let Header {
            from_port, to_port, ..
        } = *header;
        (from_port, to_port) == (self.peer_port, self.port)
    }

    /// Learns the peer's credit from any of its packets.
    pub fn learn(&mut self, header: &Header) {
        self.peer_window = header.window;
        self.peer_consumed = header.consumed;
    }

    /// Bytes that the peer can take now.
    pub fn credit(&self) -> usize {
        self.peer_window
            .saturating_sub(self.sent.wrapping_sub(self.peer_consumed)) as usize
    }

    fn header(&self, operation: u16) -> Header {
        Header {
            from_port: self.port,
            to_port: self.peer_port,
            operation,
            consumed: self.consumed,
            ..Default::default()
        }
    }

    /// Sends a packet without data.
    pub fn control(&mut self, vsock: &mut Vsock, operation: u16, flags: u32) -> Outcome {
        self.announced = self.consumed;
        vsock.send(
            Header {
                flags,
                ..self.header(operation)
            },
            &[],
        )
    }

    /// Sends data that the peer has credit for.
    pub fn send(&mut self, vsock: &mut Vsock, data: &[u8]) -> Outcome {
        self.announced = self.consumed;
        self.sent = self.sent.wrapping_add(data.len() as u32);
        vsock.send(self.header(op::RW), data)
    }

    /// Received data was used: tells the peer when half of the window was.
    pub fn consume(&mut self, vsock: &mut Vsock, bytes: usize) -> Outcome {
        self.consumed = self.consumed.wrapping_add(bytes as u32);
        if self.consumed.wrapping_sub(self.announced) >= WINDOW / 2 {
            self.control(vsock, op::CREDIT_UPDATE, 0)?;
        }
        Ok(())
    }
}
