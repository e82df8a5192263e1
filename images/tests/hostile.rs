//! Broken images: whatever is in them, every operation ends, with bounded memory, in success or a
//! clear error.

mod history;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use history::shape::Shape;
use history::{History, TOP, alone, open};
use skerry_images::chain::Layer;
use skerry_images::io::sim::{Dice, SimDisk};
use skerry_images::io::{Buffer, Port};
use skerry_images::qcow2::check::{Repair, check};

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// No image of a few MiB may take more than this, the simulated disk's memory included.
const MOST_MEMORY: usize = 384 << 20;
/// No image may take longer than this, in a debug build on a busy machine.
const MOST_TIME: Duration = Duration::from_secs(60);

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |n| n.parse().expect("a number"))
}

/// A valid image with some of everything.
fn seed_image(seed: u64) -> (Shape, Vec<u8>) {
    let mut shape = Shape::roll(seed);
    shape.below = None;
    let mut history = History::new(seed, shape.clone());
    let mut begun = 0;
    while begun < 25 {
        begun += u64::from(history.more());
        history.step();
    }
    history.flush();
    history.settle();
    (shape, history.sim.disk.content(TOP))
}

/// Words that make trouble.
fn word(dice: &mut Dice, image: &[u8]) -> u64 {
    let cluster = 512 << dice.below(13);
    let len = image.len() as u64;
    match dice.below(12) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << dice.below(64),
        3 => (1 << dice.below(64)) - 1,
        4 => dice.below(len),
        5 => dice.below(len) & !(cluster - 1),
        6 => dice.below(len) & !(cluster - 1) | 1 << 63,
        7 => dice.below(len) & !(cluster - 1) | 1 << 62,
        8 => len & !(cluster - 1) | 1 << 63,
        9 => 0x00ff_ffff_ffff_fe00 | dice.number() & 3 << 62,
        10 => i64::MAX as u64,
        _ => dice.number(),
    }
}

fn mutate(image: &mut Vec<u8>, dice: &mut Dice) {
    let be32 = |image: &[u8], at: usize| {
        image[at..at + 4]
            .iter()
            .fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    let bits = be32(image, 20).min(21);
    for _ in 0..1 + dice.below(6) {
        let len = image.len();
        let value = word(dice, image);
        match dice.below(10) {
            // A field of the header.
            0..=2 => {
                let (at, width) = match dice.below(3) {
                    0 => (dice.below(28) as usize * 4, 4),
                    1 => (8 + dice.below(12) as usize * 8, 8),
                    _ => (104 + dice.below(200) as usize, 1),
                };
                let bytes = value.to_be_bytes();
                if let Some(place) = image.get_mut(at..at + width) {
                    place.copy_from_slice(&bytes[8 - width..]);
                }
            }
            // Entries of tables, which are where the first words of clusters look like entries.
            3..=6 => {
                let clusters = (len >> bits).max(1) as u64;
                let start = (dice.below(clusters) << bits) as usize;
                let count = if dice.one_in(4) {
                    64
                } else {
                    1 + dice.below(3)
                };
                for _ in 0..count {
                    let at = start + dice.below(64) as usize * 8;
                    if let Some(place) = image.get_mut(at..at + 8) {
                        place.copy_from_slice(&value.to_be_bytes());
                    }
                }
            }
            7 => {
                let at = dice.below(len as u64) as usize;
                image[at] = value as u8;
            }
            8 => image.truncate((dice.below(len as u64) as usize).max(104)),
            _ => {
                let (from, to) = (
                    dice.below(len as u64) as usize,
                    dice.below(len as u64) as usize,
                );
                let n = (512 << dice.below(4)).min(len - from.max(to));
                image.copy_within(from..from + n, to);
            }
        }
    }
}

/// Everything that can be done with an image. How often it failed.
async fn use_it(port: Port, shape: Shape, len: u64, seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let mut errors = 0;
    let Ok(stack) = open(&port, &shape, len, false).await else {
        return 1;
    };
    for _ in 0..12 {
        let size = stack.size();
        let at = dice.below(size.max(512) / 512) * 512;
        let n = (512 * (1 + dice.below(256))).min(size.saturating_sub(at));
        if n == 0 {
            break;
        }
        let mut data = Buffer::new(n as usize);
        data.bytes_mut().fill(7);
        let result = match dice.below(8) {
            0 | 1 => stack.read(&port, at, &data.span()).await.map(drop),
            2 | 3 => stack.write(&port, at, &data.span()).await,
            4 => stack.zero(&port, at, n, dice.one_in(2)).await,
            5 => stack.discard(&port, at, n).await,
            6 => stack.flush(&port).await,
            _ => {
                let new = (size + (1 << 20)).min(size.saturating_mul(2)) / 512 * 512;
                stack.resize(&port, new).await
            }
        };
        errors += u64::from(result.is_err());
    }
    // The start and the end of it.
    let size = stack.size();
    let all = Buffer::new(size.min(1 << 20) as usize);
    errors += u64::from(stack.read(&port, 0, &all.span()).await.is_err());
    let tail = size.saturating_sub(1 << 20);
    errors += u64::from(stack.read(&port, tail, &all.span()).await.is_err());
    if let Layer::Qcow2(image) = stack.top() {
        if let Ok(list) = image.snapshots(&port).await
            && let Some(first) = list.first()
        {
            errors += u64::from(image.snapshot_delete(&port, &first.id).await.is_err());
        }
        errors += u64::from(image.snapshot_create(&port, "x", (0, 0)).await.is_err());
    }
    errors + u64::from(stack.close(&port).await.is_err())
}

/// Checks, mends, and checks again.
async fn mend(port: Port, shape: Shape, len: u64) {
    for repair in [Repair::None, Repair::Leaks, Repair::All] {
        let Ok(stack) = open(&port, &shape, len, true).await else {
            return;
        };
        if let Layer::Qcow2(image) = stack.top() {
            let _ = check(image, &port, repair).await;
        }
    }
}

#[test]
fn broken_images_end_in_errors_and_nothing_worse() {
    let first = number("SKERRY_SEED", 1);
    let images = number("SKERRY_SEQUENCES", 150);
    let (mut slowest, mut most) = (Duration::ZERO, 0);
    for seed in first..first + images {
        let (shape, valid) = seed_image(seed);
        for round in 0..8 {
            let mut dice = Dice(seed << 8 | round);
            let mut image = valid.clone();
            mutate(&mut image, &mut dice);
            let mut disk = SimDisk::default();
            disk.add(&image);
            let started = Instant::now();
            PEAK.store(NOW.load(Ordering::Relaxed), Ordering::Relaxed);
            let base = NOW.load(Ordering::Relaxed);
            let (len, n) = (image.len() as u64, dice.number());
            let own = shape.clone();
            alone(disk.clone(), dice.clone(), |port| {
                Box::pin(use_it(port, own, len, n))
            });
            let own = shape.clone();
            alone(disk, dice, |port| Box::pin(mend(port, own, len)));
            let peak = PEAK.load(Ordering::Relaxed) - base;
            assert!(
                peak < MOST_MEMORY,
                "seed {seed}, round {round} took {peak} bytes"
            );
            let time = started.elapsed();
            assert!(time < MOST_TIME, "seed {seed}, round {round} took {time:?}");
            (slowest, most) = (slowest.max(time), most.max(peak));
        }
    }
    println!(
        "{images} images, the slowest {slowest:?}, the largest {} MiB",
        most >> 20
    );
}

/// What the fuzzer begins with: small images that are as they should be. SKERRY_FUZZ_SEEDS says where
/// it wants them.
#[test]
fn the_fuzzer_has_small_images_to_begin_with() {
    let to = std::env::var_os("SKERRY_FUZZ_SEEDS");
    let mut small = 0;
    for seed in 1..200 {
        let (_, image) = seed_image(seed);
        if image.len() > 64 << 10 {
            continue;
        }
        small += 1;
        if let Some(to) = &to {
            let path = std::path::Path::new(to).join(format!("seed-{seed}"));
            std::fs::write(path, &image).expect("a seed");
        }
    }
    assert!(small >= 20, "only {small} images are small");
}
