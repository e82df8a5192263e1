//! Tests of the block device: a driver in the test, a real worker, a real file.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::{FileOptions, Port, block_on};

use super::*;
use crate::memory::GuestRam;
use crate::virtio::Notify;
use crate::worker::{PollSettings, Worker};

const STATE: QueueState = QueueState {
    size: 16,
    desc: 0x1000,
    avail: 0x2000,
    used: 0x3000,
    next_avail: 0,
    next_used: 0,
};
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x4100;

#[derive(Default)]
struct Driver {
    interrupts: AtomicUsize,
    broken: AtomicUsize,
}

impl Notify for Driver {
    fn used(&self) {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
    }
    fn config_changed(&self) {}
    fn needs_reset(&self, _why: &str) {
        self.broken.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    ram: GuestRam,
    worker: Worker,
    kick: Arc<EventFd>,
    driver: Arc<Driver>,
    device: Blk,
    avail: u16,
    file: tempfile::NamedTempFile,
}

impl Bench {
    fn new(size: u64, options: &FileOptions) -> Bench {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        let specs = [LayerSpec::new(Format::Raw, file.path())];
        let port = Port::new();
        let stack = block_on(&port, Stack::open(&port, &specs, options, 0)).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Bench {
            ram: GuestRam::new(memory),
            worker: Worker::start("blk-test", PollSettings::events(), || Ok(())).unwrap(),
            kick: Arc::new(EventFd::new(0).unwrap()),
            driver: Arc::default(),
            device: Blk::new(Volume::new(stack, 0), "id", 1, 16),
            avail: 0,
            file,
        }
    }

    fn start(&mut self, state: QueueState, features: u64) {
        let start = QueueStart {
            state,
            features,
            memory: self.ram.clone(),
            kick: self.kick.clone(),
            notify: self.driver.clone(),
            worker: self.worker.handle(),
            name: "blk".into(),
        };
        self.device.start_queue(0, start).unwrap();
    }

    /// One request: header, data of `len` bytes (written by the device if `reads`), status.
    fn offer(&mut self, kind: u32, sector: u64, len: u32, reads: bool) {
        let memory = self.ram.memory();
        let put = |index: u64, addr: u64, len: u32, flags: u16, next: u16| {
            let at = GuestAddress(STATE.desc + 16 * index);
            memory.write_obj(addr, at).unwrap();
            memory.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
            memory.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
        };
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        put(0, HEADER, 16, 1, 1);
        put(1, DATA, len, if reads { 3 } else { 1 }, 2);
        put(2, STATUS, 1, 2, 0);
        let entry = STATE.avail + 4 + 2 * u64::from(self.avail % STATE.size);
        memory.write_obj(0u16, GuestAddress(entry)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        memory
            .write_obj(self.avail, GuestAddress(STATE.avail + 2))
            .unwrap();
        self.kick.write(1).unwrap();
    }

    fn wait_used(&self, n: u16) -> u8 {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self
            .ram
            .memory()
            .read_obj::<u16>(GuestAddress(STATE.used + 2))
            .unwrap()
            != n
        {
            assert!(Instant::now() < deadline, "the device does not answer");
            std::thread::yield_now();
        }
        self.ram.memory().read_obj(GuestAddress(STATUS)).unwrap()
    }
}

const ALL: u64 = features::COMMON | 1 << F_FLUSH;

#[test]
fn a_write_reaches_the_file_and_a_read_returns_it() {
    for features in [ALL, features::COMMON] {
        let mut bench = Bench::new(1 << 20, &FileOptions::default());
        bench.start(STATE, features);
        bench
            .ram
            .memory()
            .write_slice(&[0x5a; 1024], GuestAddress(DATA))
            .unwrap();
        bench.offer(1, 3, 1024, false);
        assert_eq!(bench.wait_used(1), 0);
        let content = std::fs::read(bench.file.path()).unwrap();
        assert_eq!(content[3 * 512..5 * 512], [0x5a; 1024]);
        bench
            .ram
            .memory()
            .write_slice(&[0; 1024], GuestAddress(DATA))
            .unwrap();
        bench.offer(0, 3, 1024, true);
        assert_eq!(bench.wait_used(2), 0);
        let mut back = [0; 1024];
        bench
            .ram
            .memory()
            .read_slice(&mut back, GuestAddress(DATA))
            .unwrap();
        assert_eq!(back, [0x5a; 1024]);
    }
}

#[test]
fn a_disk_that_became_shorter_fails_the_request_and_not_the_device() {
    let mut bench = Bench::new(1 << 20, &FileOptions::default());
    bench.start(STATE, ALL);
    bench.file.as_file().set_len(0).unwrap();
    bench.offer(0, 0, 512, true);
    assert_eq!(bench.wait_used(1), 1);
    bench.file.as_file().set_len(1 << 20).unwrap();
    bench.offer(0, 0, 512, true);
    assert_eq!(bench.wait_used(2), 0);
    assert_eq!(bench.driver.broken.load(Ordering::SeqCst), 0);
}

#[test]
fn what_is_out_of_range_misaligned_or_unknown_is_refused() {
    let mut bench = Bench::new(1 << 20, &FileOptions::default());
    bench.start(STATE, ALL);
    for (i, (kind, sector, len, status)) in [
        (0, 2048, 512, 1),
        (0, u64::MAX, 512, 1),
        (0, 0, 100, 1),
        (1, 2047, 1024, 1),
        (99, 0, 512, 2),
    ]
    .into_iter()
    .enumerate()
    {
        bench.offer(kind, sector, len, kind == 0);
        assert_eq!(
            bench.wait_used(i as u16 + 1),
            status,
            "{kind} {sector} {len}"
        );
    }
}

#[test]
fn a_readonly_disk_refuses_writes() {
    let mut bench = Bench::new(
        1 << 20,
        &FileOptions {
            readonly: true,
            ..FileOptions::default()
        },
    );
    assert!(features::has(bench.device.features(), F_RO));
    bench.start(STATE, ALL | 1 << F_RO);
    bench.offer(1, 0, 512, false);
    assert_eq!(bench.wait_used(1), 1);
}

#[test]
fn a_chain_without_room_for_its_status_breaks_the_device() {
    let mut bench = Bench::new(1 << 20, &FileOptions::default());
    bench.start(STATE, ALL);
    bench
        .ram
        .memory()
        .write_obj(0u16, GuestAddress(STATE.desc + 12))
        .unwrap();
    bench
        .ram
        .memory()
        .write_obj(HEADER, GuestAddress(STATE.desc))
        .unwrap();
    bench
        .ram
        .memory()
        .write_obj(16u32, GuestAddress(STATE.desc + 8))
        .unwrap();
    bench
        .ram
        .memory()
        .write_obj(1u16, GuestAddress(STATE.avail + 2))
        .unwrap();
    bench.kick.write(1).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while bench.driver.broken.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(bench.device.stop_queue(0).is_some());
}

#[test]
fn a_thousand_starts_and_stops_lose_and_double_nothing() {
    for poll_max in [0, 20_000, u64::MAX] {
        thousand(poll_max);
    }
}

/// Each start is on another worker than the one before.
fn thousand(poll_max: u64) {
    let mut bench = Bench::new(1 << 20, &FileOptions::default());
    bench.worker.handle().set_poll_max(poll_max);
    let mut other = Worker::start("blk-test-2", PollSettings::events(), || Ok(())).unwrap();
    let mut state = STATE;
    for round in 0..1000u16 {
        std::mem::swap(&mut bench.worker, &mut other);
        bench.start(state, ALL);
        bench.offer(0, u64::from(round % 8), 512, true);
        // Stopped at once: the request is done, or still in the ring for the next start.
        state = bench.device.stop_queue(0).unwrap();
        assert_eq!(
            state.next_avail, state.next_used,
            "a stopped queue has something in flight"
        );
        bench.start(state, ALL);
        assert_eq!(bench.wait_used(round.wrapping_add(1)), 0);
        state = bench.device.stop_queue(0).unwrap();
        assert_eq!(state.next_used, round.wrapping_add(1));
    }
}
