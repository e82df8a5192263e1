//! Seeded random operations on images of every shape, judged by `qemu-img` and by a plain model.
//!
//! SKERRY_SEQUENCES says how many sequences to try, SKERRY_SEED which comes first.

mod model;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use model::{Case, Shape};

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |n| n.parse().expect("a number"))
}

#[test]
fn random_operations_leave_what_the_model_says() {
    // Each cluster size with each refcount width: 91.
    let next = AtomicU64::new(number("SKERRY_SEED", 1));
    let end = next.load(Ordering::Relaxed) + number("SKERRY_SEQUENCES", 91);
    let (done, started) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    Case::new(seed, Shape::roll(seed)).run();
                    let run = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if run.is_multiple_of(250) {
                        let seconds = started.elapsed().as_secs();
                        println!("{run} sequences in {seconds} s");
                    }
                }
            });
        }
    });
}
