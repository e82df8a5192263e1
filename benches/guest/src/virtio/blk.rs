//! A block device: requests are submitted to its queues and completed from them, as many at once as fit.
//! Virtio 1.3 §5.2.

use super::queue::{Queue, Segment};
use super::{Device, Kind, PATIENCE_MS, Place, feature};
use crate::clock::Deadline;
use crate::failure;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::memory::Dma;

/// The unit of the protocol.
pub const SECTOR: u64 = 512;

/// Feature bits.
pub mod bit {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

const WANTED: u64 = bit::SIZE_MAX
    | bit::SEG_MAX
    | bit::RO
    | bit::BLK_SIZE
    | bit::FLUSH
    | bit::MQ
    | bit::DISCARD
    | bit::WRITE_ZEROES;

/// A request's type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Operation(pub u32);

impl Operation {
    pub const READ: Operation = Operation(0);
    pub const WRITE: Operation = Operation(1);
    pub const FLUSH: Operation = Operation(4);
    pub const GET_ID: Operation = Operation(8);
    pub const DISCARD: Operation = Operation(11);
    pub const WRITE_ZEROES: Operation = Operation(13);

    /// True when the device writes the data.
    fn device_writes(self) -> bool {
        matches!(self, Operation::READ | Operation::GET_ID)
    }
}

/// A request's outcome, as the device reports it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    pub const OK: Status = Status(0);
    pub const IOERR: Status = Status(1);
    pub const UNSUPPORTED: Status = Status(2);
    /// What the byte holds until the device writes it.
    const UNWRITTEN: Status = Status(0xee);

    /// Fails unless the request succeeded.
    pub fn check(self, what: &str) -> Outcome {
        match self {
            Status::OK => Ok(()),
            status => Err(failure!("{what}-failed status={status}")),
        }
    }
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        match *self {
            Status::OK => f.write_str("ok"),
            Status::IOERR => f.write_str("ioerr"),
            Status::UNSUPPORTED => f.write_str("unsupported"),
            Status(other) => write!(f, "{other:#x}"),
        }
    }
}

/// A finished request.
#[derive(Clone, Copy)]
pub struct Completion {
    /// What submitting it returned.
    pub slot: u16,
    pub status: Status,
    /// Bytes that the device says it has written, the status included.
    pub written: u32,
}

/// The most data segments that a request of this driver has.
pub const SEGMENTS: usize = 8;
const QUEUE_SIZE: u16 = 256;
const SLOTS: usize = QUEUE_SIZE as usize;
/// A slot's memory: the header, the status, and an indirect table.
const SLOT_BYTES: usize = 256;
const STATUS_OFFSET: usize = 16;
const TABLE_OFFSET: usize = 64;

/// One queue and the headers of what is in flight on it.
pub struct BlkQueue {
    pub queue: Queue,
    memory: Dma,
    free: [u16; SLOTS],
    free_count: usize,
    slot_of_head: [u16; SLOTS],
    indirect: bool,
}

impl BlkQueue {
    fn new(machine: &mut Machine, queue: Queue, indirect: bool) -> Outcome<Self> {
        let memory = machine.memory.allocate(SLOTS * SLOT_BYTES, 4096)?;
        Ok(Self {
            queue,
            memory,
            free: core::array::from_fn(|slot| slot as u16),
            free_count: SLOTS,
            slot_of_head: [0; SLOTS],
            indirect,
        })
    }

    /// Adds a request; the device sees it after `queue.publish()`. The slot that it gives back names the request
    /// until it completes. None when the queue is full.
    #[inline]
    pub fn submit(&mut self, operation: Operation, sector: u64, data: &[Segment]) -> Option<u16> {
        if self.free_count == 0 {
            return None;
        }
        let slot = self.free[self.free_count - 1];
        let memory = self.memory.part(usize::from(slot) * SLOT_BYTES, SLOT_BYTES);
        memory.write(0, operation.0);
        memory.write(4, 0u32);
        memory.write(8, sector);
        memory.write(STATUS_OFFSET, Status::UNWRITTEN.0);
        let header = Segment::from(memory.part(0, 16));
        let status = Segment::from(memory.part(STATUS_OFFSET, 1));
        let mut segments = [Segment::default(); SEGMENTS + 2];
        let count = data.len() + 2;
        segments[0] = header;
        segments[1..=data.len()].copy_from_slice(data);
        segments[data.len() + 1] = status;
        let readable = if operation.device_writes() {
            1
        } else {
            count - 1
        };
        let (readable, writable) = segments[..count].split_at(readable);
        let head = if self.indirect {
            let table = memory.part(TABLE_OFFSET, SLOT_BYTES - TABLE_OFFSET);
            self.queue.add_indirect(table, readable, writable)?
        } else {
            self.queue.add(readable, writable)?
        };
        self.free_count -= 1;
        self.slot_of_head[usize::from(head)] = slot;
        Some(slot)
    }

    /// Takes the next finished request.
    #[inline]
    pub fn complete(&mut self) -> Outcome<Option<Completion>> {
        let Some(used) = self.queue.take()? else {
            return Ok(None);
        };
        let slot = self.slot_of_head[usize::from(used.head)];
        let status = self
            .memory
            .read(usize::from(slot) * SLOT_BYTES + STATUS_OFFSET);
        if self.free_count == SLOTS {
            return Err(failure!(
                "completed-twice queue={} slot={slot}",
                self.queue.index()
            ));
        }
        self.free[self.free_count] = slot;
        self.free_count += 1;
        Ok(Some(Completion {
            slot,
            status: Status(status),
            written: used.written,
        }))
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        SLOTS - self.free_count
    }

    /// One request, from submission to its status.
    pub fn request(
        &mut self,
        operation: Operation,
        sector: u64,
        data: &[Segment],
        deadline: Deadline,
    ) -> Outcome<Status> {
        if self.submit(operation, sector, data).is_none() {
            return Err(failure!("queue-full queue={}", self.queue.index()));
        }
        self.queue.publish();
        loop {
            if let Some(completion) = self.complete()? {
                return Ok(completion.status);
            }
            self.queue.wait(deadline)?;
        }
    }
}

/// What the configuration says.
#[derive(Clone, Copy)]
pub struct Info {
    pub sectors: u64,
    pub block_size: u32,
    pub size_max: u32,
    pub segments_max: u32,
    pub queues: u16,
    pub discard_sectors_max: u32,
    pub zeroes_sectors_max: u32,
    pub zeroes_may_unmap: bool,
}

impl Info {
    /// Capacity in bytes.
    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR
    }
}

/// The most queues that this driver uses.
pub const QUEUES: usize = 16;

/// A disk in use.
pub struct Blk {
    pub queues: [Option<BlkQueue>; QUEUES],
    pub info: Info,
    /// Last, so that the device is reset when the rest is gone.
    pub device: Device,
}

impl Blk {
    /// Opens the `index`th disk with all its queues; `extra` are more features to take (INDIRECT).
    pub fn open(machine: &mut Machine, index: usize, extra: u64) -> Outcome<Self> {
        let place = machine.find(Kind::BLOCK, index)?;
        Self::open_at(machine, place, extra)
    }

    /// Opens the disk at a place.
    pub fn open_at(machine: &mut Machine, place: Place, extra: u64) -> Outcome<Self> {
        let device = Device::open_at(machine, place, WANTED | extra)?;
        if extra & !device.features != 0 {
            return Err(failure!(
                "feature-not-offered wanted={extra:#x} offered={:#x}",
                device.offered
            ));
        }
        let info = read_info(&device);
        let indirect = device.has(feature::INDIRECT);
        let mut queues = [const { None }; QUEUES];
        for (number, slot) in queues.iter_mut().enumerate().take(info.queues.into()) {
            let queue = device.queue(machine, number as u16, QUEUE_SIZE)?;
            *slot = Some(BlkQueue::new(machine, queue, indirect)?);
        }
        device.start()?;
        Ok(Self {
            queues,
            info,
            device,
        })
    }

    /// The first queue.
    pub fn queue(&mut self) -> Outcome<&mut BlkQueue> {
        self.queues[0]
            .as_mut()
            .ok_or_else(|| failure!("no-queue index=0"))
    }

    /// All queues.
    pub fn each(&mut self) -> impl Iterator<Item = &mut BlkQueue> {
        self.queues.iter_mut().flatten()
    }

    /// One request on the first queue.
    pub fn request(
        &mut self,
        machine: &Machine,
        operation: Operation,
        sector: u64,
        data: &[Segment],
    ) -> Outcome<Status> {
        let deadline = machine.clock.deadline_ms(PATIENCE_MS);
        self.queue()?.request(operation, sector, data, deadline)
    }

    /// Interrupts that the queues have taken.
    pub fn interrupts(&self) -> u32 {
        self.queues
            .iter()
            .flatten()
            .map(|queue| queue.queue.interrupts())
            .sum()
    }
}

fn read_info(device: &Device) -> Info {
    let transport = &device.transport;
    let if_offered = |bit, offset, otherwise| match device.has(bit) {
        true => transport.config32(offset),
        false => otherwise,
    };
    let queues = if device.has(bit::MQ) {
        transport.config16(34)
    } else {
        1
    };
    Info {
        sectors: transport.config64(0),
        size_max: if_offered(bit::SIZE_MAX, 8, u32::MAX),
        segments_max: if_offered(bit::SEG_MAX, 12, 1),
        block_size: if_offered(bit::BLK_SIZE, 20, SECTOR as u32),
        queues: queues.clamp(1, QUEUES as u16),
        discard_sectors_max: if_offered(bit::DISCARD, 36, 0),
        zeroes_sectors_max: if_offered(bit::WRITE_ZEROES, 48, 0),
        zeroes_may_unmap: device.has(bit::WRITE_ZEROES) && transport.config8(56) != 0,
    }
}
