//! A network device without offloads: frames out of and into fixed buffers, on one or several queue pairs.
//! Virtio 1.3 §5.1.

use super::queue::{Queue, Segment, wait_any};
use super::{Device, Kind, PATIENCE_MS};
use crate::clock::Deadline;
use crate::failure;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::memory::Dma;

/// Feature bits.
pub mod bit {
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
}

const WANTED: u64 = bit::MTU | bit::MAC | bit::STATUS | bit::CTRL_VQ | bit::MQ;
const HEADER_BYTES: usize = 12;
const BUFFER_BYTES: usize = 2048;
const BUFFERS: usize = 64;
const QUEUE_SIZE: u16 = 256;
/// The most queue pairs that this driver uses.
pub const PAIRS: usize = 8;
/// The largest frame, without its header.
pub const FRAME_BYTES: usize = BUFFER_BYTES - HEADER_BYTES;

/// Buffers of a queue: which one each chain holds.
struct Buffers {
    memory: Dma,
    of_head: [u8; QUEUE_SIZE as usize],
}

impl Buffers {
    fn new(machine: &mut Machine) -> Outcome<Self> {
        let memory = machine.memory.allocate(BUFFERS * BUFFER_BYTES, 4096)?;
        Ok(Self {
            memory,
            of_head: [0; QUEUE_SIZE as usize],
        })
    }

    fn buffer(&self, number: u8) -> Dma {
        self.memory
            .part(usize::from(number) * BUFFER_BYTES, BUFFER_BYTES)
    }
}

/// A receive and a transmit queue.
pub struct Pair {
    rx: Queue,
    tx: Queue,
    rx_buffers: Buffers,
    tx_buffers: Buffers,
    tx_free: [u8; BUFFERS],
    tx_free_count: usize,
}

impl Pair {
    fn new(machine: &mut Machine, device: &Device, number: u16) -> Outcome<Self> {
        Ok(Self {
            rx: device.queue(machine, 2 * number, QUEUE_SIZE)?,
            tx: device.queue(machine, 2 * number + 1, QUEUE_SIZE)?,
            rx_buffers: Buffers::new(machine)?,
            tx_buffers: Buffers::new(machine)?,
            tx_free: core::array::from_fn(|buffer| buffer as u8),
            tx_free_count: BUFFERS,
        })
    }

    /// Gives all receive buffers to the device.
    fn fill(&mut self) {
        for number in 0..BUFFERS as u8 {
            self.give(number);
        }
        self.rx.publish();
    }

    fn give(&mut self, number: u8) {
        let buffer = self.rx_buffers.buffer(number);
        if let Some(head) = self.rx.add(&[], &[buffer.into()]) {
            self.rx_buffers.of_head[usize::from(head)] = number;
        }
    }

    /// Takes back sent buffers.
    fn reclaim(&mut self) -> Outcome {
        while let Some(used) = self.tx.take()? {
            self.tx_free[self.tx_free_count] = self.tx_buffers.of_head[usize::from(used.head)];
            self.tx_free_count += 1;
        }
        Ok(())
    }

    /// True when a frame can be sent without waiting.
    pub fn has_room(&mut self) -> Outcome<bool> {
        self.reclaim()?;
        Ok(self.tx_free_count > 0)
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8], deadline: Deadline) -> Outcome {
        self.reclaim()?;
        while self.tx_free_count == 0 {
            self.tx.wait(deadline)?;
            self.reclaim()?;
        }
        let number = self.tx_free[self.tx_free_count - 1];
        let buffer = self
            .tx_buffers
            .buffer(number)
            .part(0, HEADER_BYTES + frame.len());
        buffer.part(0, HEADER_BYTES).fill(0);
        buffer.write_bytes(HEADER_BYTES, frame);
        let Some(head) = self.tx.add(&[buffer.into()], &[]) else {
            return Err(failure!("transmit-queue-full"));
        };
        self.tx_buffers.of_head[usize::from(head)] = number;
        self.tx_free_count -= 1;
        self.tx.publish();
        Ok(())
    }

    /// Copies the next received frame out, if there is one, and gives its length.
    pub fn receive(&mut self, frame: &mut [u8; FRAME_BYTES]) -> Outcome<Option<usize>> {
        let Some(used) = self.rx.take()? else {
            return Ok(None);
        };
        let written = used.written as usize;
        if !(HEADER_BYTES..=BUFFER_BYTES).contains(&written) {
            return Err(failure!("bad-received-length length={written}"));
        }
        let number = self.rx_buffers.of_head[usize::from(used.head)];
        let length = written - HEADER_BYTES;
        self.rx_buffers
            .buffer(number)
            .read_bytes(HEADER_BYTES, &mut frame[..length]);
        self.give(number);
        self.rx.publish();
        Ok(Some(length))
    }
}

/// A network device in use.
pub struct Net {
    pub pairs: [Option<Pair>; PAIRS],
    pub mac: [u8; 6],
    pub mtu: u16,
    /// Queue pairs that the device has.
    pub pairs_max: u16,
    pub link_up: bool,
    /// Last, so that the device is reset when the rest is gone.
    pub device: Device,
}

impl Net {
    /// Opens the `index`th network device with all its queue pairs.
    pub fn open(machine: &mut Machine, index: usize) -> Outcome<Self> {
        let device = Device::open(machine, Kind::NET, index, WANTED)?;
        let transport = &device.transport;
        let multiqueue = device.has(bit::MQ) && device.has(bit::CTRL_VQ);
        let pairs_max = if multiqueue { transport.config16(8) } else { 1 };
        let mut mac = [0x02, 0, 0, 0, 0, index as u8 + 1];
        if device.has(bit::MAC) {
            mac = core::array::from_fn(|byte| transport.config8(byte as u64));
        }
        let mtu = if device.has(bit::MTU) {
            transport.config16(10)
        } else {
            1500
        };
        let link_up = !device.has(bit::STATUS) || transport.config16(6) & 1 != 0;
        let used = pairs_max.clamp(1, PAIRS as u16);
        let mut pairs = [const { None }; PAIRS];
        for (number, slot) in pairs.iter_mut().enumerate().take(used.into()) {
            *slot = Some(Pair::new(machine, &device, number as u16)?);
        }
        let control = match device.has(bit::CTRL_VQ) {
            true => Some(device.queue(machine, 2 * pairs_max.max(1), 64)?),
            false => None,
        };
        device.start()?;
        if let Some(control) = control
            && used > 1
        {
            set_pairs(machine, control, used)?;
        }
        for pair in pairs.iter_mut().flatten() {
            pair.fill();
        }
        Ok(Self {
            pairs,
            mac,
            mtu,
            pairs_max,
            link_up,
            device,
        })
    }

    /// Queue pairs in use.
    pub fn pair_count(&self) -> usize {
        self.pairs.iter().flatten().count()
    }

    /// Sends a frame on a queue pair.
    pub fn send(&mut self, pair: usize, frame: &[u8], deadline: Deadline) -> Outcome {
        match self.pairs.get_mut(pair) {
            Some(Some(pair)) => pair.send(frame, deadline),
            _ => Err(failure!("no-queue-pair pair={pair}")),
        }
    }

    /// Waits for a frame on any queue pair, copies it out, and gives the pair and its length.
    pub fn receive(
        &mut self,
        frame: &mut [u8; FRAME_BYTES],
        deadline: Deadline,
    ) -> Outcome<(usize, usize)> {
        loop {
            for (number, pair) in self.pairs.iter_mut().enumerate() {
                if let Some(pair) = pair
                    && let Some(length) = pair.receive(frame)?
                {
                    return Ok((number, length));
                }
            }
            wait_any(self.pairs.iter().flatten().map(|pair| &pair.rx), deadline)?;
        }
    }

    /// Interrupts that the receive queues have taken.
    pub fn interrupts(&self) -> u32 {
        self.pairs
            .iter()
            .flatten()
            .map(|pair| pair.rx.interrupts())
            .sum()
    }
}

/// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
fn set_pairs(machine: &mut Machine, mut control: Queue, pairs: u16) -> Outcome {
    const CLASS_MQ: u8 = 4;
    const COMMAND_PAIRS_SET: u8 = 0;
    let memory = machine.memory.allocate(64, 64)?;
    memory.write_bytes(0, &[CLASS_MQ, COMMAND_PAIRS_SET]);
    memory.write_bytes(2, &pairs.to_le_bytes());
    memory.write_bytes(4, &[0xff]);
    let segments = [(0, 2), (2, 2), (4, 1)].map(|(at, size)| Segment::from(memory.part(at, size)));
    control.add(&segments[..2], &segments[2..]);
    control.publish();
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    while control.take()?.is_none() {
        control.wait(deadline)?;
    }
    match memory.read::<u8>(4) {
        0 => Ok(()),
        status => Err(failure!("pairs-refused pairs={pairs} status={status}")),
    }
}
