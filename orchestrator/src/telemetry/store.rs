//! A store whose commits are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use crate::store::{
    AnyStore, Change, Entry, LeaseId, Page, Revision, Room, Store, StoreError, Watch,
};

/// What a store counts.
#[derive(Debug, Default)]
pub struct StoreCounts {
    /// Commits that were made.
    pub commits: AtomicU64,
    /// Those that were refused, since something was not as expected.
    pub conflicts: AtomicU64,
    /// Those that failed.
    pub failures: AtomicU64,
    /// Keys that were changed.
    pub changes: AtomicU64,
}

/// A store that counts.
pub struct Counted {
    inner: AnyStore,
    counts: Arc<StoreCounts>,
}

impl Counted {
    /// The same store, and what it will have counted.
    pub fn around(inner: AnyStore) -> (AnyStore, Arc<StoreCounts>) {
        let counts = Arc::<StoreCounts>::default();
        let counted = Counted {
            inner,
            counts: counts.clone(),
        };
        (Arc::new(counted), counts)
    }
}

#[async_trait]
impl Store for Counted {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Revision, StoreError> {
        let changed = changes.len() as u64;
        let done = self.inner.commit(changes).await;
        let outcome = match &done {
            Ok(_) => {
                self.counts.changes.fetch_add(changed, Ordering::Relaxed);
                &self.counts.commits
            }
            Err(StoreError::Conflict { .. }) => &self.counts.conflicts,
            Err(_) => &self.counts.failures,
        };
        outcome.fetch_add(1, Ordering::Relaxed);
        done
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn compact(&self, upto: Revision) -> Result<(), StoreError> {
        self.inner.compact(upto).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant(ttl).await
    }

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.renew(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(lease).await
    }

    fn room(&self) -> Room {
        self.inner.room()
    }
}
