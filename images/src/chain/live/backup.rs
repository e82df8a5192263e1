//! A copy of the disk as it is at one moment, while the guest writes on.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use super::Progress;
use crate::DirtyMap;
use crate::chain::{Stack, View, Volume};
use crate::io::{Buffer, Port};
use crate::{Error, Result};

/// What is copied as a whole: no less than a cluster of the target, so that no cluster is written in
/// part, and no more than a guest's write should wait for.
const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 16..=20;

/// A backup under way. A write that comes before its granule was copied copies it first.
pub struct Backup {
    target: Stack,
    /// What is still to be copied.
    pending: DirtyMap,
    copying: Mutex<(BTreeSet<u64>, Vec<Waker>)>,
    /// Why it cannot be completed. The guest goes on all the same.
    failed: Mutex<Option<Error>>,
}

/// A granule that somebody copies.
struct Copying<'a>(&'a Backup, u64);

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        let mut copying = self.0.copying.lock();
        copying.0.remove(&self.1);
        for waker in copying.1.drain(..) {
            waker.wake();
        }
    }
}

impl Backup {
    /// A backup of the granules in `pending` to `target`.
    pub fn new(target: Stack, pending: DirtyMap) -> Arc<Backup> {
        Arc::new(Backup {
            target,
            pending,
            copying: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    /// What was not copied: all of it, if the backup did not begin.
    pub fn pending(&self) -> &DirtyMap {
        &self.pending
    }

    /// Saves what a guest's write is about to overwrite. Should that fail, the backup does, and not the
    /// guest's write.
    pub(crate) async fn before_write(&self, port: &Port, from: &Stack, offset: u64, len: u64) {
        if self.failed.lock().is_some() {
            return;
        }
        if let Err(e) = self.save(port, from, offset, len).await {
            self.failed.lock().get_or_insert(e);
        }
    }

    /// Copies what is pending of a range, or waits until others have.
    async fn save(&self, port: &Port, from: &Stack, offset: u64, len: u64) -> Result<()> {
        let granularity = self.pending.granularity();
        let mut at = offset / granularity * granularity;
        while at < offset + len {
            let copying = poll_fn(|cx| {
                let mut copying = self.copying.lock();
                if copying.0.insert(at) {
                    return Poll::Ready(Copying(self, at));
                }
                copying.1.push(cx.waker().clone());
                Poll::Pending
            })
            .await;
            if self.pending.intersects(at, 1) {
                let n = granularity
                    .min(self.pending.size() - at)
                    .min(self.target.size().saturating_sub(at));
                let buffer = Buffer::new(n as usize);
                if from.read(port, at, &buffer.span()).await? {
                    self.target.write(port, at, &buffer.span()).await?;
                } else {
                    self.target.zero(port, at, n, true).await?;
                }
                self.pending.take(at);
            }
            drop(copying);
            at += granularity;
        }
        Ok(())
    }
}

/// Copies the disk as it is now to the backup's target, and closes that. With `bitmap`, only what is
/// dirty there is copied, and it is clean from this moment on; on failure it is as dirty as before.
/// `complete` is called when the target is closed, and is part of what may fail.
pub async fn backup(
    port: &Port,
    volume: &Volume,
    target: Stack,
    granularity_bits: u32,
    bitmap: Option<&DirtyMap>,
    progress: &Progress,
    complete: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let granularity_bits =
        granularity_bits.clamp(*GRANULARITY_BITS.start(), *GRANULARITY_BITS.end());
    let task = {
        let drained = volume.drain().await;
        let pending = DirtyMap::new(volume.size(), granularity_bits);
        match bitmap {
            Some(bitmap) => {
                pending.merge(bitmap);
                bitmap.clear();
            }
            None => pending.mark(0, volume.size()),
        }
        let task = Backup::new(target, pending);
        volume.change(&drained, |view| View {
            backup: Some(task.clone()),
            ..view.clone()
        });
        task
    };
    let before = DirtyMap::new(volume.size(), granularity_bits);
    before.merge(task.pending());
    progress.expect(before.dirty());
    let copied = async {
        let mut from = 0;
        while let Some(at) = task.pending().next(from) {
            let stack = volume.view().stack.clone();
            task.save(port, &stack, at, 1).await?;
            if let Some(e) = task.failed.lock().take() {
                return Err(e);
            }
            progress.step(task.pending().granularity())?;
            from = at;
        }
        Ok(())
    };
    let copied = copied.await;
    {
        let drained = volume.drain().await;
        volume.change(&drained, |view| View {
            backup: None,
            ..view.clone()
        });
    }
    let complete = async {
        copied?;
        if let Some(e) = task.failed.lock().take() {
            return Err(e);
        }
        task.target.close(port).await?;
        complete()
    };
    let result = complete.await;
    if result.is_err()
        && let Some(bitmap) = bitmap
    {
        bitmap.merge(&before);
    }
    result
}
