//! What the end-to-end tests share: monitors as processes, taps, disks, the API.
//!
//! The tests find what they test in environment variables, which `cargo xtask test` sets. Without
//! them they fail and say so; they never pass by skipping.

pub mod api;
pub mod back_end;
pub mod browser;
pub mod containers;
pub mod datagrams;
pub mod disk;
pub mod host;
pub mod inject;
pub mod linux;
pub mod nft;
pub mod outside;
pub mod random;
pub mod receiver;
pub mod registry;
pub mod scripted;
pub mod slow;
pub mod steady;
pub mod tap;
pub mod tcp;
pub mod terminal;
pub mod tiny;
pub mod together;
pub mod token_server;
pub mod vmm;
pub mod vsock;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use api::Api;
pub use containers::Site;
pub use tap::{Bridge, Tap};
pub use vmm::{Exit, Vmm};

/// A program or folder that `cargo xtask test` names.
pub fn given(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run these tests with `cargo xtask test`"),
    }
}

/// Looks again and again until `condition` holds; panics with `what` after `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            start.elapsed() < limit,
            "{what}: not within {} s",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
