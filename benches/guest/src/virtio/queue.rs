//! A split virtqueue, seen from the driver: add chains, publish, wait, take what was used. Virtio 1.3 §2.7.
//!
//! Adding and taking are separate, so that a task can keep as many chains in flight as it likes.

use core::sync::atomic::{AtomicU16, Ordering, fence};

use crate::clock::Limit;
use crate::failure;
use crate::interrupts::Vector;
use crate::line::Outcome;
use crate::memory::{Dma, Memory, Mmio};

const DESCRIPTOR_BYTES: usize = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A piece of memory in a chain.
#[derive(Clone, Copy, Default)]
pub struct Segment {
    pub address: u64,
    pub length: u32,
}

impl From<Dma> for Segment {
    fn from(memory: Dma) -> Self {
        Segment {
            address: memory.address(),
            length: memory.size() as u32,
        }
    }
}

/// A descriptor as the device sees it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// How a queue's doorbell is rung: with its index, 16 bits on PCI and 32 on MMIO.
#[derive(Clone, Copy)]
pub enum Doorbell {
    Word(Mmio),
    Double(Mmio),
}

impl Doorbell {
    #[inline]
    fn ring(self, index: u16) {
        match self {
            Doorbell::Word(register) => register.write16(0, index),
            Doorbell::Double(register) => register.write32(0, index.into()),
        }
    }
}

/// How the driver learns that something was used.
#[derive(Clone, Copy)]
pub enum Wakeup {
    /// By looking.
    Poll,
    /// By an interrupt; on MMIO it is acknowledged in these two registers.
    Interrupt {
        vector: Vector,
        acknowledge: Option<Mmio>,
    },
}

/// The memory of a queue's three areas.
pub struct Rings {
    memory: Dma,
    size: u16,
}

impl Rings {
    fn available_offset(size: u16) -> usize {
        usize::from(size) * DESCRIPTOR_BYTES
    }

    fn used_offset(size: u16) -> usize {
        (Self::available_offset(size) + 6 + 2 * usize::from(size)).next_multiple_of(64)
    }

    /// Zeroed rings of `size` entries.
    pub fn allocate(memory: &mut Memory, size: u16) -> Outcome<Self> {
        let bytes = Self::used_offset(size) + 6 + 8 * usize::from(size);
        Ok(Self {
            memory: memory.allocate(bytes, 4096)?,
            size,
        })
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Address of the descriptor table.
    pub fn descriptors(&self) -> u64 {
        self.memory.address()
    }

    /// Address of the available ring.
    pub fn available(&self) -> u64 {
        self.memory.address() + Self::available_offset(self.size) as u64
    }

    /// Address of the used ring.
    pub fn used(&self) -> u64 {
        self.memory.address() + Self::used_offset(self.size) as u64
    }
}

/// A chain that the device has used.
#[derive(Clone, Copy)]
pub struct Used {
    /// The number that adding the chain gave.
    pub head: u16,
    /// Bytes that the device says it has written.
    pub written: u32,
}

/// A queue in use.
pub struct Queue {
    rings: Rings,
    index: u16,
    doorbell: Doorbell,
    event_idx: bool,
    wakeup: Wakeup,
    free_head: u16,
    free: u16,
    /// Next value of the available index; what lies between `published` and this is not visible yet.
    available: u16,
    published: u16,
    /// The used index up to which chains were taken.
    taken: u16,
    /// The vector's count when the queue was made.
    first_count: u32,
}

impl Queue {
    /// A queue on zeroed rings that the device knows.
    pub fn new(
        rings: Rings,
        index: u16,
        doorbell: Doorbell,
        event_idx: bool,
        wakeup: Wakeup,
    ) -> Self {
        let size = rings.size;
        let first_count = match wakeup {
            Wakeup::Interrupt { vector, .. } => vector.count(),
            Wakeup::Poll => 0,
        };
        let queue = Self {
            rings,
            index,
            doorbell,
            event_idx,
            wakeup,
            free_head: 0,
            free: size,
            available: 0,
            published: 0,
            taken: 0,
            first_count,
        };
        for number in 0..size {
            queue.set_descriptor(
                number,
                Descriptor {
                    next: number + 1,
                    ..Default::default()
                },
            );
        }
        if matches!(wakeup, Wakeup::Poll) && !event_idx {
            queue
                .available_flags()
                .store(NO_INTERRUPT, Ordering::Relaxed);
        }
        queue
    }

    /// The memory of its rings, for tasks that put garbage there.
    pub fn memory(&self) -> Dma {
        self.rings.memory
    }

    /// Where the available ring starts in that memory.
    pub fn available_offset(&self) -> usize {
        Rings::available_offset(self.rings.size)
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.rings.size
    }

    /// Its index on the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Interrupts that have arrived since the queue was made.
    pub fn interrupts(&self) -> u32 {
        self.interrupt_count() - self.first_count
    }

    #[inline]
    fn set_descriptor(&self, number: u16, descriptor: Descriptor) {
        self.rings
            .memory
            .write(usize::from(number) * DESCRIPTOR_BYTES, descriptor);
    }

    #[inline]
    fn descriptor(&self, number: u16) -> Descriptor {
        self.rings
            .memory
            .read(usize::from(number) * DESCRIPTOR_BYTES)
    }

    #[inline]
    fn shared(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `pointer` checks the bounds, offsets are even, the memory lives as long as the program, and
        // both sides use it as atomics.
        unsafe { AtomicU16::from_ptr(self.rings.memory.pointer(offset)) }
    }

    #[inline]
    fn available_flags(&self) -> &AtomicU16 {
        self.shared(Rings::available_offset(self.rings.size))
    }

    #[inline]
    fn available_index(&self) -> &AtomicU16 {
        self.shared(Rings::available_offset(self.rings.size) + 2)
    }

    #[inline]
    fn available_entry(&self, index: u16) -> &AtomicU16 {
        let slot = usize::from(index & (self.rings.size - 1));
        self.shared(Rings::available_offset(self.rings.size) + 4 + 2 * slot)
    }

    #[inline]
    fn used_event(&self) -> &AtomicU16 {
        let size = usize::from(self.rings.size);
        self.shared(Rings::available_offset(self.rings.size) + 4 + 2 * size)
    }

    #[inline]
    fn used_flags(&self) -> &AtomicU16 {
        self.shared(Rings::used_offset(self.rings.size))
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        self.shared(Rings::used_offset(self.rings.size) + 2)
    }

    #[inline]
    fn available_event(&self) -> &AtomicU16 {
        let size = usize::from(self.rings.size);
        self.shared(Rings::used_offset(self.rings.size) + 4 + 8 * size)
    }

    /// Adds a chain: first what the device reads, then what it writes. None when descriptors are short. The
    /// device sees it after [`publish`](Self::publish).
    #[inline]
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment]) -> Option<u16> {
        let count = (readable.len() + writable.len()) as u16;
        if count > self.free || count == 0 {
            return None;
        }
        let head = self.free_head;
        let mut number = head;
        for index in 0..usize::from(count) {
            let (segment, flags) = match readable.get(index) {
                Some(segment) => (segment, 0),
                None => (&writable[index - readable.len()], WRITE),
            };
            // Free descriptors are chained already.
            let next = self.descriptor(number).next;
            let more = if index + 1 < usize::from(count) {
                NEXT
            } else {
                0
            };
            let Segment { address, length } = *segment;
            self.set_descriptor(
                number,
                Descriptor {
                    address,
                    length,
                    flags: flags | more,
                    next,
                },
            );
            number = next;
        }
        self.free_head = number;
        self.free -= count;
        self.push(head);
        Some(head)
    }

    /// Adds a chain as one descriptor that points to `table`, which holds the chain until it is used.
    #[inline]
    pub fn add_indirect(
        &mut self,
        table: Dma,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        let count = readable.len() + writable.len();
        let segments = readable
            .iter()
            .map(|s| (s, 0))
            .chain(writable.iter().map(|s| (s, WRITE)));
        for (index, (segment, flags)) in segments.enumerate() {
            let more = if index + 1 < count { NEXT } else { 0 };
            let Segment { address, length } = *segment;
            let next = index as u16 + 1;
            table.write(
                index * DESCRIPTOR_BYTES,
                Descriptor {
                    address,
                    length,
                    flags: flags | more,
                    next,
                },
            );
        }
        let head = self.free_head;
        let next = self.descriptor(head).next;
        let length = (count * DESCRIPTOR_BYTES) as u32;
        let descriptor = Descriptor {
            address: table.address(),
            length,
            flags: INDIRECT,
            next,
        };
        self.set_descriptor(head, descriptor);
        self.free_head = next;
        self.free -= 1;
        self.push(head);
        Some(head)
    }

    #[inline]
    fn push(&mut self, head: u16) {
        self.available_entry(self.available)
            .store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the added chains to the device, and rings the doorbell if the device wants that.
    #[inline]
    pub fn publish(&mut self) {
        if self.publish_quietly() {
            self.kick();
        }
    }

    /// Shows the added chains to the device, and says whether it wants the doorbell rung.
    #[inline]
    pub fn publish_quietly(&mut self) -> bool {
        let (old, new) = (self.published, self.available);
        if old == new {
            return false;
        }
        self.available_index().store(new, Ordering::Release);
        self.published = new;
        // The index must be visible before the device's wish is read.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.available_event().load(Ordering::Acquire);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used_flags().load(Ordering::Acquire) & NO_NOTIFY == 0
        }
    }

    /// Rings the doorbell.
    #[inline]
    pub fn kick(&self) {
        self.doorbell.ring(self.index);
    }

    /// True when a used chain waits to be taken.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.used_index().load(Ordering::Acquire) != self.taken
    }

    /// Takes the next used chain, and frees its descriptors.
    #[inline]
    pub fn take(&mut self) -> Outcome<Option<Used>> {
        let used = self.used_index().load(Ordering::Acquire);
        if used == self.taken {
            return Ok(None);
        }
        if used.wrapping_sub(self.taken) > self.rings.size {
            return Err(failure!(
                "used-index-jumped queue={} to={used} from={}",
                self.index,
                self.taken
            ));
        }
        let slot = usize::from(self.taken & (self.rings.size - 1));
        let entry = Rings::used_offset(self.rings.size) + 4 + 8 * slot;
        let head: u32 = self.rings.memory.read(entry);
        let written: u32 = self.rings.memory.read(entry + 4);
        if head >= self.rings.size.into() {
            return Err(failure!(
                "used-id-out-of-range queue={} id={head}",
                self.index
            ));
        }
        self.taken = self.taken.wrapping_add(1);
        let head = head as u16;
        self.recycle(head);
        Ok(Some(Used { head, written }))
    }

    #[inline]
    fn recycle(&mut self, head: u16) {
        let mut last = head;
        let mut count = 1;
        let mut descriptor = self.descriptor(last);
        while descriptor.flags & NEXT != 0 && count < self.rings.size {
            last = descriptor.next;
            count += 1;
            descriptor = self.descriptor(last);
        }
        self.set_descriptor(
            last,
            Descriptor {
                next: self.free_head,
                ..descriptor
            },
        );
        self.free_head = head;
        self.free += count;
    }

    /// Asks for an interrupt at the next used chain.
    pub fn arm(&self) {
        let wanted = match self.wakeup {
            Wakeup::Interrupt { .. } => self.taken,
            // An index that the device passed long ago.
            Wakeup::Poll => self.taken.wrapping_sub(1),
        };
        if self.event_idx {
            self.used_event().store(wanted, Ordering::Release);
        }
        fence(Ordering::SeqCst);
    }

    /// Waits until a used chain can be taken: for the interrupt, or by looking.
    pub fn wait(&self, limit: impl Limit) -> Outcome {
        wait_any(core::iter::once(self), limit)
    }

    fn interrupt_count(&self) -> u32 {
        match self.wakeup {
            Wakeup::Interrupt { vector, .. } => vector.count(),
            Wakeup::Poll => 0,
        }
    }

    /// Marks an MMIO interrupt as seen.
    fn acknowledge(&self) {
        if let Wakeup::Interrupt {
            acknowledge: Some(registers),
            ..
        } = self.wakeup
        {
            let pending = registers.read32(0);
            registers.write32(4, pending);
        }
    }
}

/// The most queues that one wait covers.
const WAITED: usize = 40;

/// Waits until one of several queues has a used chain.
pub fn wait_any<'a>(
    queues: impl Iterator<Item = &'a Queue> + Clone,
    mut limit: impl Limit,
) -> Outcome {
    let mut counts = [0; WAITED];
    loop {
        let mut polls = false;
        for (queue, count) in queues.clone().zip(&mut counts) {
            *count = queue.interrupt_count();
            polls |= matches!(queue.wakeup, Wakeup::Poll);
            queue.arm();
        }
        if queues.clone().any(Queue::has_used) {
            return Ok(());
        }
        while !queues
            .clone()
            .zip(&counts)
            .any(|(queue, count)| queue.interrupt_count() != *count)
        {
            if polls && queues.clone().any(Queue::has_used) {
                return Ok(());
            }
            if limit.is_reached() {
                let index = queues.clone().next().map_or(0, Queue::index);
                return Err(match queues.clone().any(Queue::has_used) {
                    true => failure!("timeout-without-interrupt queue={index}"),
                    false => failure!("timeout queue={index}"),
                });
            }
            core::hint::spin_loop();
        }
        for queue in queues.clone() {
            queue.acknowledge();
        }
    }
}

/// Waits for an interrupt outside of queues.
pub fn wait_for_count(vector: Vector, before: u32, mut limit: impl Limit) -> Outcome {
    while vector.count() == before {
        if limit.is_reached() {
            return Err(failure!(
                "timeout-without-interrupt vector={:#x}",
                vector.number()
            ));
        }
        core::hint::spin_loop();
    }
    Ok(())
}
