//! What can be done with a disk while its guest writes: a new layer on top, a layer merged down,
//! all layers drawn into one, a backup.
//!
//! All of it survives the death of the process at any point: the chain of layers that was valid
//! before stays valid until the end, and where another becomes valid both read the same.

mod backup;
mod commit;
mod overlay;
mod stream;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use backup::{Backup, backup};
pub use commit::{commit, commit_active};
pub use overlay::put_on_top;
pub use stream::stream;

use crate::{Error, Result};

/// How far something long is, and whether it is still wanted.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes that are done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes in all, as far as known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Asks for an early end.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Says how much there is to do.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// So much more is done. An error if it is not wanted any more.
    pub fn step(&self, bytes: u64) -> Result<()> {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        Ok(())
    }
}

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;
