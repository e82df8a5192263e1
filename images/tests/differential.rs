//! Seeded random operations on images of every shape, judged by `qemu-img` and by a plain model.

mod model;

use model::{Case, Shape};

/// How many sequences one run tries; more with SKERRY_SEQUENCES.
fn sequences() -> u64 {
    std::env::var("SKERRY_SEQUENCES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(300)
}

#[test]
fn random_operations_leave_what_the_model_says() {
    let first: u64 = std::env::var("SKERRY_SEED")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    for seed in first..first + sequences() {
        Case::new(seed, Shape::roll(seed)).run();
    }
}
