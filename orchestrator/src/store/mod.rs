//! Where the declared state is kept: keys with values, every change with a revision of its own.
//!
//! One trait, whatever is under it: the embedded engine on one host, NATS JetStream where one host is not
//! enough. Every engine must pass the suite in `conformance.rs`.

#[cfg(test)]
mod conformance;
mod embedded;
mod error;
mod log;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use embedded::Embedded;
pub use error::StoreError;

/// When something changed: the number of the commit, counted from 1. 0 is before everything.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Revision(pub u64);

/// A lease's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A key and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// What it holds.
    pub value: Vec<u8>,
    /// The commit that made it.
    pub created: Revision,
    /// The commit that changed it last.
    pub modified: Revision,
}

/// What a change demands of its key as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Anything,
    /// It does not exist.
    Absent,
    /// It was changed last by this commit.
    At(Revision),
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// What must hold, or nothing of the batch is done.
    pub expect: Expect,
    /// What it holds then; none if it is to go.
    pub value: Option<Vec<u8>>,
    /// It goes when this lease ends.
    pub lease: Option<LeaseId>,
}

impl Change {
    /// Sets a key.
    pub fn put(key: impl Into<String>, expect: Expect, value: Vec<u8>) -> Change {
        Change {
            key: key.into(),
            expect,
            value: Some(value),
            lease: None,
        }
    }

    /// Removes a key. That it is gone already is well, unless more is expected.
    pub fn delete(key: impl Into<String>, expect: Expect) -> Change {
        Change {
            key: key.into(),
            expect,
            value: None,
            lease: None,
        }
    }

    /// It goes with a lease.
    pub fn leased(self, lease: LeaseId) -> Change {
        Change {
            lease: Some(lease),
            ..self
        }
    }
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The commit.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// What it holds now; none if it is gone.
    pub value: Option<Vec<u8>>,
    /// What it held before; none if it did not exist.
    pub before: Option<Vec<u8>>,
}

/// Whether a store has space for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It has.
    Enough,
    /// Not for new keys: what is there can be changed a little, and removed.
    Short,
}

/// Part of the keys of a prefix, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Keys and what they hold.
    pub entries: Vec<Entry>,
    /// There are more behind the last one.
    pub more: bool,
    /// As of this commit: a watch from it on sees all that comes later.
    pub revision: Revision,
}

/// Changes as they come.
#[async_trait]
pub trait Watch: Send {
    /// The next changes, in order, all of one or more whole commits; empty if only the revision moved on.
    /// Waits for them. With the revision that they bring the watcher to.
    async fn next(&mut self) -> Result<(Vec<Changed>, Revision), StoreError>;
}

/// An engine.
#[async_trait]
pub trait Store: Send + Sync {
    /// What a key holds.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// At most `limit` keys that begin with `prefix`, those behind `after`.
    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Page, StoreError>;

    /// Makes all these changes at once, or none: durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] names the first key that is not as was expected.
    async fn commit(&self, changes: Vec<Change>) -> Result<Revision, StoreError>;

    /// Changes of keys that begin with `prefix`, behind `from`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if they are not known any more: list again.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Forgets changes up to a commit. What keys hold stays.
    async fn compact(&self, upto: Revision) -> Result<(), StoreError>;

    /// A lease that ends after `ttl`, unless it is renewed before.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Lets a lease last its whole time from now on.
    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease now: its keys go.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Whether it has space for more.
    fn room(&self) -> Room;
}

/// An engine, whichever it is.
pub type AnyStore = Arc<dyn Store>;

/// Bytes of a key.
pub const MAX_KEY: usize = 1024;
/// Bytes of a value.
pub const MAX_VALUE: usize = 1 << 20;
/// Changes of a batch.
pub const MAX_BATCH: usize = 1024;

/// Refuses what no engine takes.
fn check(changes: &[Change]) -> Result<(), StoreError> {
    if changes.is_empty() || changes.len() > MAX_BATCH {
        return Err(StoreError::Batch(changes.len()));
    }
    for change in changes {
        let long = change.value.as_ref().map_or(0, Vec::len);
        if change.key.is_empty() || change.key.len() > MAX_KEY {
            return Err(StoreError::Key(change.key.len()));
        }
        if long > MAX_VALUE {
            return Err(StoreError::Value {
                key: change.key.clone(),
                bytes: long,
            });
        }
    }
    let mut keys: Vec<&str> = changes.iter().map(|c| c.key.as_str()).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(StoreError::Twice(pair[0].to_owned())),
        None => Ok(()),
    }
}
