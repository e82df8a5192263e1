//! A copy of the disk as it is at one moment, while the guest writes on.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use super::Progress;
use crate::DirtyMap;
use crate::Result;
use crate::chain::{Stack, View, Volume};
use crate::io::{Buffer, Port};

/// A backup under way. A write that comes before its granule was copied copies it first.
pub struct Backup {
    target: Stack,
    /// What is still to be copied.
    pending: DirtyMap,
    copying: Mutex<(BTreeSet<u64>, Vec<Waker>)>,
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
        })
    }

    /// What was not copied: all of it, if the backup did not begin.
    pub fn pending(&self) -> &DirtyMap {
        &self.pending
    }

    /// Copies what is pending of a range, or waits until others have.
    pub(crate) async fn save(
        &self,
        port: &Port,
        from: &Stack,
        offset: u64,
        len: u64,
    ) -> Result<()> {
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
/// Otherwise `backup` was made with everything pending.
pub async fn backup(
    port: &Port,
    volume: &Volume,
    target: Stack,
    granularity_bits: u32,
    bitmap: Option<&DirtyMap>,
    progress: &Progress,
) -> Result<()> {
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
    let result = match copied {
        Ok(()) => task.target.close(port).await,
        Err(e) => Err(e),
    };
    if result.is_err()
        && let Some(bitmap) = bitmap
    {
        bitmap.merge(&before);
    }
    result
}
