//! What a hostile state file or stream can make us set aside.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use skerry_snapshot::{Answer, Arriving, Incoming, State};

/// The system's allocator, which notes the largest block that was asked for.
struct Noting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// The largest block that reading takes, which fails.
fn largest(bytes: &[u8]) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    let read = State::from_reader(&mut &bytes[..], Path::new("a state"));
    read.err().expect("a refusal");
    LARGEST.load(Ordering::Relaxed)
}

fn head(len: u32, json: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(*b"SKERRYVM");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(json);
    let sum = *blake3::hash(&bytes).as_bytes();
    bytes.extend(sum);
    bytes
}

/// The same of a stream with such a message behind its beginning, as its first one, and as an answer.
fn largest_of_stream(kind: u8, len: u32) -> usize {
    let message = |kind: u8, len: u32, bytes: &[u8]| {
        let mut message = vec![kind];
        message.extend(len.to_le_bytes());
        message.extend(bytes);
        message
    };
    let begin = br#"{"id":"","memory":1048576}"#;
    let last = message(kind, len, &[0; 50]);
    let mut first = Vec::from(*b"SKERRYST\x01\0\0\0");
    let begun = [
        &first[..],
        &message(1, begin.len() as u32, begin),
        &last[..],
    ]
    .concat();
    first.extend(&last);
    let folder = tempfile::TempDir::new().expect("a folder");
    LARGEST.store(0, Ordering::Relaxed);
    let mut incoming = Incoming::open(&begun[..]).expect("a beginning");
    let begin = incoming.begin().clone();
    let mut arriving = Arriving::make(&begin, &folder.path().join("snap"), None).expect("room");
    let received = incoming.receive(&mut arriving, &());
    received.expect_err("a refusal");
    Incoming::open(&first[..]).err().expect("a refusal");
    Answer::read(&mut &last[..]).expect_err("a refusal");
    LARGEST.load(Ordering::Relaxed)
}

/// One test: whatever ran beside it would be noted too.
#[test]
fn lengths_are_not_believed_before_the_bytes_have_come() {
    const MOST: usize = 2 << 20;
    for len in [1 << 20, 16 << 20, (16 << 20) + 1, 1 << 30, u32::MAX] {
        let largest = largest(&head(len, b"{}"));
        assert!(largest <= MOST, "a header of {len} bytes: {largest}");
    }
    for len in [1, 200 << 20, 256 << 20, 1 << 40, u64::MAX] {
        let record = format!(
            r#"{{"kind":"cpu","id":"0","version":1,"len":{len},"sum":"{}"}}"#,
            "0".repeat(64)
        );
        for count in [1, 3] {
            let records = vec![record.as_str(); count].join(",");
            let json = format!(
                r#"{{"id":"","created":0,"monitor":"","machine":{{"arch":"","cpus":1,"tsc_khz":0}},
                "cpu":{{"vendor":"","model":"","cpuid":[]}},"devices":[],"config":{{}},
                "memory":{{"kind":"full","size":0,"data":0}},"records":[{records}]}}"#
            );
            let bytes = head(json.len() as u32, json.as_bytes());
            let refused = State::from_reader(&mut &bytes[..], Path::new("a state")).err();
            let text = refused.expect("a refusal").to_string();
            assert!(!text.contains("header"), "it must be the records: {text}");
            let largest = largest(&bytes);
            assert!(largest <= MOST, "{count} records of {len} bytes: {largest}");
        }
    }
    for kind in 0..=20 {
        for len in [100, 1 << 20, 300 << 20, u32::MAX] {
            let largest = largest_of_stream(kind, len);
            assert!(
                largest <= MOST,
                "a message {kind} of {len} bytes: {largest}"
            );
        }
    }
}
