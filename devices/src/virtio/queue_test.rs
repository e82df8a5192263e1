//! Tests of the split queue: a driver written here on one side, the device's queue on the other.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const SIZE: u16 = 8;
const STATE: QueueState = QueueState {
    size: SIZE,
    desc: 0x1000,
    avail: 0x2000,
    used: 0x3000,
    next_avail: 0,
    next_used: 0,
};
const RAM: usize = 0x10000;

struct Driver {
    ram: GuestRam,
    avail: u16,
}

impl Driver {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        Driver {
            ram: GuestRam::new(memory),
            avail: 0,
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, addr: u64, value: T) {
        self.ram
            .memory()
            .write_obj(value, GuestAddress(addr))
            .unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, addr: u64) -> T {
        self.ram.memory().read_obj(GuestAddress(addr)).unwrap()
    }

    fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.put(at, addr);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    fn offer(&mut self, head: u16) {
        self.put(STATE.avail + 4 + 2 * u64::from(self.avail % SIZE), head);
        self.avail = self.avail.wrapping_add(1);
        self.put(STATE.avail + 2, self.avail);
    }

    fn queue(&self, bits: u64) -> Queue {
        Queue::new(STATE, &self.ram, bits).unwrap()
    }
}

const BOTH: u64 = features::COMMON;

#[test]
fn a_chain_is_popped_with_its_buffers_in_order() {
    let mut driver = Driver::new();
    driver.descriptor(STATE.desc, 3, 0x4000, 16, NEXT, 5);
    driver.descriptor(STATE.desc, 5, 0x5000, 512, NEXT | WRITE, 1);
    driver.descriptor(STATE.desc, 1, 0x6000, 1, WRITE, 0);
    driver.put(0x4000, 0x1122_3344_5566_7788u64);
    driver.offer(3);
    let mut queue = driver.queue(BOTH);
    let mut chain = queue.chain();
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!(
        (chain.head, chain.readable_len(), chain.writable_len()),
        (3, 16, 513)
    );
    let mut header = [0; 8];
    assert!(chain.take_front(&mut header));
    assert_eq!(u64::from_le_bytes(header), 0x1122_3344_5566_7788);
    assert!(!chain.take_front(&mut [0; 9]), "only 8 bytes are left");
    let status = chain.take_back().unwrap();
    assert_eq!(chain.writable_len(), 512);
    status.write(&chain, 0x5a);
    assert_eq!(driver.get::<u8>(0x6000), 0x5a);
    assert_eq!(chain.write(510, &[1, 2, 3]), 2);
    assert_eq!(driver.get::<u16>(0x51fe), 0x0201);
    assert!(!queue.pop(&mut chain).unwrap());
}

#[test]
fn an_indirect_table_is_followed_once() {
    let mut driver = Driver::new();
    driver.descriptor(STATE.desc, 0, 0x7000, 32, INDIRECT, 0);
    driver.descriptor(0x7000, 0, 0x4000, 8, NEXT, 1);
    driver.descriptor(0x7000, 1, 0x5000, 8, WRITE, 0);
    driver.offer(0);
    let mut queue = driver.queue(BOTH);
    let mut chain = queue.chain();
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 8));

    driver.descriptor(0x7000, 1, 0x7000, 32, INDIRECT, 0);
    driver.offer(0);
    assert!(matches!(
        queue.pop(&mut chain),
        Err(QueueError::Indirect(_))
    ));
}

#[test]
fn hostile_chains_are_refused() {
    type Case = (&'static str, fn(&mut Driver), fn(&QueueError) -> bool);
    let cases: &[Case] = &[
        (
            "loop",
            |d| {
                d.descriptor(STATE.desc, 0, 0x4000, 1, NEXT, 1);
                d.descriptor(STATE.desc, 1, 0x4000, 1, NEXT, 0);
            },
            |e| *e == QueueError::TooLong(SIZE),
        ),
        (
            "outside RAM",
            |d| d.descriptor(STATE.desc, 0, RAM as u64 - 4, 8, 0, 0),
            |e| matches!(e, QueueError::Buffer { .. }),
        ),
        (
            "wrapping address",
            |d| d.descriptor(STATE.desc, 0, u64::MAX, 8, 0, 0),
            |e| matches!(e, QueueError::Buffer { .. }),
        ),
        (
            "index",
            |d| d.descriptor(STATE.desc, 0, 0x4000, 8, NEXT, SIZE),
            |e| matches!(e, QueueError::DescriptorIndex { .. }),
        ),
        (
            "order",
            |d| {
                d.descriptor(STATE.desc, 0, 0x4000, 8, NEXT | WRITE, 1);
                d.descriptor(STATE.desc, 1, 0x4000, 8, 0, 0);
            },
            |e| *e == QueueError::Order,
        ),
        (
            "indirect size",
            |d| d.descriptor(STATE.desc, 0, 0x4000, 8, INDIRECT, 0),
            |e| matches!(e, QueueError::Indirect(_)),
        ),
    ];
    for (name, prepare, expected) in cases {
        let mut driver = Driver::new();
        prepare(&mut driver);
        driver.offer(0);
        let mut queue = driver.queue(BOTH);
        let mut chain = queue.chain();
        let error = queue.pop(&mut chain).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
    }
}

#[test]
fn an_available_index_too_far_ahead_is_refused() {
    let driver = Driver::new();
    driver.put(STATE.avail + 2, SIZE + 1);
    assert!(matches!(
        driver.queue(BOTH).available(),
        Err(QueueError::AvailIndex { .. })
    ));
}

#[test]
fn rings_that_are_misaligned_or_outside_ram_are_refused() {
    let ram = Driver::new().ram;
    for bad in [
        QueueState { size: 0, ..STATE },
        QueueState { size: 6, ..STATE },
        QueueState {
            size: 2048,
            ..STATE
        },
        QueueState {
            desc: 0x1008,
            ..STATE
        },
        QueueState {
            avail: 0x2001,
            ..STATE
        },
        QueueState {
            used: 0x3002,
            ..STATE
        },
        QueueState {
            used: RAM as u64 - 8,
            ..STATE
        },
        QueueState {
            desc: u64::MAX - 15,
            ..STATE
        },
    ] {
        assert!(Queue::new(bad, &ram, BOTH).is_err(), "{bad:?}");
    }
}

proptest! {
    /// Whatever way completions are batched, a driver that sleeps until used_event is reached is
    /// woken exactly when the index crosses it.
    #[test]
    fn event_idx_interrupts_exactly_on_crossing(start in any::<u16>(), batches in prop::collection::vec(1u16..=8, 1..40)) {
        let driver = Driver::new();
        let state = QueueState { next_used: start, ..STATE };
        let mut queue = Queue::new(state, &driver.ram, BOTH).unwrap();
        queue.push(0, 0);
        prop_assert!(queue.publish(), "the first one after a start is always sent");
        let mut used = start.wrapping_add(1);
        for batch in batches {
            let event = used.wrapping_add(batch / 2);
            driver.put(STATE.avail + 4 + 2 * u64::from(SIZE), event);
            for _ in 0..batch {
                queue.push(0, 0);
            }
            prop_assert!(queue.publish());
            used = used.wrapping_add(batch);
            // Nothing new: nothing to say. And an event that is not reached stays quiet.
            prop_assert!(!queue.publish());
            driver.put(STATE.avail + 4 + 2 * u64::from(SIZE), used.wrapping_add(1));
            queue.push(0, 0);
            prop_assert!(!queue.publish());
            used = used.wrapping_add(1);
        }
    }

    /// While notifications are off, the driver's rule for kicks (virtio 1.3 §2.7.10) says no for
    /// any batch that a pass can meet; once on, it says yes for the next chain.
    #[test]
    fn suppressed_kicks_stay_suppressed_across_the_wrap(next in any::<u16>(), batch in 1u16..=SIZE) {
        let driver = Driver::new();
        driver.put(STATE.avail + 2, next);
        let mut queue = Queue::new(QueueState { next_avail: next, ..STATE }, &driver.ram, BOTH).unwrap();
        let event_at = STATE.used + 4 + 8 * u64::from(SIZE);
        let kicks = |event: u16, old: u16, new: u16| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        queue.disable_notification();
        prop_assert!(!kicks(driver.get(event_at), next, next.wrapping_add(batch)));
        prop_assert!(!queue.enable_notification().unwrap());
        prop_assert!(kicks(driver.get(event_at), next, next.wrapping_add(batch)));
    }

    /// Random ring contents never panic, and every pop ends.
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0x400), idx in 0u16..=SIZE) {
        let driver = Driver::new();
        let memory = driver.ram.memory();
        memory.write_slice(&bytes[..0x80], GuestAddress(STATE.desc)).unwrap();
        memory.write_slice(&bytes[0x80..0x94], GuestAddress(STATE.avail)).unwrap();
        memory.write_slice(&bytes, GuestAddress(0x4000)).unwrap();
        driver.put(STATE.avail + 2, idx);
        let mut queue = driver.queue(BOTH);
        let mut chain = queue.chain();
        for _ in 0..=SIZE {
            match queue.pop(&mut chain) {
                Ok(true) => { chain.peek(&mut [0; 64]); chain.take_back(); queue.push(chain.head, 0); }
                _ => break,
            }
        }
        queue.publish();
    }
}
