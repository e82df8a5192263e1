//! Writing tables back, in the order that makes every moment safe to lose power at.
//!
//! What a table says must be true on the disk before the table says it:
//! 1. refcounts of newly used clusters, and new tables with their first content;
//! 2. *flush* (this covers the guest's data, too), then entries of new refblocks, *flush*;
//! 3. L2 entries and L1 entries, which refer to all of that; *flush*;
//! 4. only now are clusters that these entries ceased to refer to given back: their refcounts sink,
//!    to be written with the next step 1, and they may be used again.
//!
//! A power cut at any point leaves at most clusters with a refcount and no reference: leaks.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;

use super::Image;
use super::cache::Captured;
use super::header::incompatible;
use super::state::{Freed, Limbo, SECTOR_ENTRIES, Space, State};
use crate::Result;
use crate::io::{Buffer, OpFuture, Port, join};

/// What one write-back writes.
struct Work {
    refs: Vec<Captured>,
    reftable: Vec<(usize, Vec<u64>)>,
    reftable_offset: u64,
    l2: Vec<(u64, Captured)>,
    l1: Vec<(usize, Vec<u64>)>,
    l1_offset: u64,
    freed: Vec<Freed>,
    mark_dirty: bool,
}

fn sectors(dirty: &std::collections::BTreeSet<usize>, table: &[u64]) -> Vec<(usize, Vec<u64>)> {
    let sector = |s: &usize| {
        let start = s * SECTOR_ENTRIES;
        let end = (start + SECTOR_ENTRIES).min(table.len());
        (start, table[start.min(end)..end].to_vec())
    };
    dirty.iter().map(sector).collect()
}

impl State {
    /// What is to be written now. `refs`: also refcounts that may be late.
    fn capture(&mut self, refs: bool) -> Work {
        let refs = refs || !self.header.lazy();
        let g = self.geometry;
        let l2 = self.l2.capture();
        let work = Work {
            refs: if refs {
                self.refs.capture()
            } else {
                Vec::new()
            },
            reftable: sectors(&self.reftable_dirty, &self.reftable),
            reftable_offset: self.header.reftable_offset,
            l2: l2
                .into_iter()
                .map(|c| {
                    let table = self.l2_table((c.key / g.slices()) as usize);
                    (table + c.key % g.slices() * g.slice(), c)
                })
                .collect(),
            l1: sectors(&self.l1_dirty, &self.l1),
            l1_offset: self.header.l1_offset,
            freed: std::mem::take(&mut self.freed),
            mark_dirty: self.header.lazy() && !self.header.needs(incompatible::DIRTY),
        };
        self.reftable_dirty.clear();
        self.l1_dirty.clear();
        work
    }

    /// What failed is to be written again.
    fn undo_capture(&mut self, work: &mut Work) {
        let sector = |(start, _): &(usize, Vec<u64>)| start / SECTOR_ENTRIES;
        self.reftable_dirty.extend(work.reftable.iter().map(sector));
        self.l1_dirty.extend(work.l1.iter().map(sector));
        self.freed.append(&mut work.freed);
    }
}

/// A write-back under way. What it took is put back unless it ends well.
struct Round<'a> {
    image: &'a Image,
    work: Work,
    done: bool,
}

impl Round<'_> {
    fn end(&mut self) {
        self.done = true;
        let mut state = self.image.state();
        for captured in &self.work.refs {
            state.refs.written(captured);
        }
        for (_, captured) in &self.work.l2 {
            state.l2.written(captured);
        }
        let freed = std::mem::take(&mut self.work.freed);
        if !freed.is_empty() {
            let epoch = state.epoch;
            state.limbo.push_back(Limbo { epoch, freed });
        }
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.image.state().undo_capture(&mut self.work);
        }
    }
}

impl Image {
    /// Makes everything that was written, and the tables that lead to it, durable.
    pub async fn flush(&self, port: &Port) -> Result<()> {
        if self.file().readonly() {
            return Ok(());
        }
        self.commit(port, true, false).await
    }

    /// Writes tables back. With `durable`, everything is durable afterwards. With `refs`, also
    /// refcounts are written that may be late.
    ///
    /// Boxed, because releasing what was freed may itself need room in the caches.
    pub(super) fn commit<'a>(
        &'a self,
        port: &'a Port,
        durable: bool,
        refs: bool,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        Box::pin(async move {
            let lock = self.hold(Space::Commit, 0, 0, true).await;
            self.settle_header(port).await?;
            let mut round = Round {
                image: self,
                work: self.state().capture(refs),
                done: false,
            };
            let written = self.write_back(port, durable, &mut round.work).await;
            if written.is_ok() {
                round.end();
            }
            drop(round);
            let released = {
                let mut state = self.state();
                state.wake();
                self.releasable(&mut state)
            };
            drop(lock);
            written?;
            for freed in released {
                self.release(port, freed).await?;
            }
            Ok(())
        })
    }

    async fn write_back(&self, port: &Port, durable: bool, work: &mut Work) -> Result<()> {
        let file = self.file();
        let g = self.geometry();
        let entries = !work.l2.is_empty() || !work.l1.is_empty();
        if work.mark_dirty && (entries || !work.reftable.is_empty()) {
            let _lock = self.hold(Space::Header, 0, 0, true).await;
            self.change_header(port, |h| h.incompatible |= incompatible::DIRTY)
                .await?;
        }
        let refs = {
            let state = self.state();
            let place = |c: &Captured| {
                let block = state.reftable[(c.key / g.slices()) as usize];
                block + c.key % g.slices() * g.slice()
            };
            let places: Vec<u64> = work.refs.iter().map(place).collect();
            places
        };
        let writes = work.refs.iter().zip(refs);
        join(begin(writes.map(|(c, at)| (at, &*c.data)), |at, data| {
            port.write(file, at, Buffer::from_slice(data).span())
        }))
        .await?;
        if durable || entries || !work.reftable.is_empty() {
            self.flush_files(port).await?;
        }
        if !work.reftable.is_empty() {
            self.write_sectors(port, work.reftable_offset, &work.reftable)
                .await?;
            port.flush(file).await?;
        }
        if entries {
            let l2 = work.l2.iter().map(|(at, c)| (*at, &*c.data));
            let l2 = begin(l2, |at, data| {
                port.write(file, at, Buffer::from_slice(data).span())
            });
            let l1 = self.write_sectors(port, work.l1_offset, &work.l1).await;
            join(l2).await?;
            l1?;
            if durable || !work.freed.is_empty() {
                port.flush(file).await?;
            }
        }
        Ok(())
    }

    /// Writes what changed of the refcount table, durably.
    pub(super) async fn write_reftable(&self, port: &Port) -> Result<()> {
        let (offset, dirty) = {
            let state = self.state();
            let dirty = sectors(&state.reftable_dirty, &state.reftable);
            (state.header.reftable_offset, dirty)
        };
        if dirty.is_empty() {
            return Ok(());
        }
        self.write_sectors(port, offset, &dirty).await?;
        port.flush(self.file()).await?;
        // The caller holds `Space::Header`, so no entry changed meanwhile.
        self.state().reftable_dirty.clear();
        Ok(())
    }

    async fn write_sectors(
        &self,
        port: &Port,
        table: u64,
        sectors: &[(usize, Vec<u64>)],
    ) -> Result<()> {
        let bytes = |entries: &Vec<u64>| {
            let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
            Buffer::from_slice(&bytes)
        };
        let write = |(start, entries): &(usize, Vec<u64>)| {
            port.write(
                self.file(),
                table + *start as u64 * 8,
                bytes(entries).span(),
            )
        };
        join(sectors.iter().map(write).collect::<Vec<_>>()).await
    }

    /// Flushes the file, and the external data file before it.
    async fn flush_files(&self, port: &Port) -> Result<()> {
        if self.external() && !self.data_file().readonly() {
            port.flush(self.data_file()).await?;
        }
        port.flush(self.file()).await
    }

    /// Takes what nobody can be using any more. A request that began before something was freed may
    /// still read or write it: the epoch moves on when those of the epoch before have ended.
    fn releasable(&self, state: &mut State) -> Vec<Vec<Freed>> {
        let idle = |epoch: u64| self.active[(epoch & 1) as usize].load(Ordering::SeqCst) == 0;
        for _ in 0..2 {
            if !state.limbo.is_empty() && idle(state.epoch + 1) {
                state.epoch += 1;
            }
        }
        let mut released = Vec::new();
        while let Some(limbo) = state.limbo.front() {
            let ended = state.epoch > limbo.epoch + 1
                || state.epoch == limbo.epoch + 1 && idle(limbo.epoch);
            if !ended {
                break;
            }
            released.extend(state.limbo.pop_front().map(|l| l.freed));
        }
        released
    }

    /// Lowers the refcounts of clusters that nothing refers to any more, and gives the space of those
    /// that are free back to the file system.
    async fn release(&self, port: &Port, freed: Vec<Freed>) -> Result<()> {
        let bits = self.geometry().cluster_bits;
        let mut freed = freed;
        freed.sort_unstable_by_key(|f| f.first);
        // What ends up free, in runs: (first, count).
        let mut free: Vec<(u64, u64)> = Vec::new();
        let mut shared = Vec::new();
        for cluster in freed.iter().flat_map(|f| f.first..f.first + f.count) {
            match self.with(port, |s| s.refcount(cluster)).await? {
                1 => match free.last_mut() {
                    Some((first, count)) if *first + *count == cluster => *count += 1,
                    _ => free.push((cluster, 1)),
                },
                _ => shared.push(cluster),
            }
        }
        // A hole must not be made any more when somebody may write there.
        let punches: Vec<_> = free
            .iter()
            .map(|(first, count)| port.punch(self.file(), first << bits, count << bits))
            .collect();
        join(punches).await?;
        let free = free.iter().flat_map(|(first, count)| *first..first + count);
        for cluster in free.chain(shared) {
            self.with(port, |s| match s.refcount(cluster)? {
                // Twice in one list, or a broken image: it is free already.
                0 => Ok(()),
                count => s.set_refcount(cluster, count - 1),
            })
            .await?;
        }
        Ok(())
    }

    /// Releases everything and writes every table, refcounts too; the image is clean afterwards. The
    /// caller has no request under way.
    pub async fn close(&self, port: &Port) -> Result<()> {
        if self.file().readonly() {
            return Ok(());
        }
        // What is freed is released after one round, and its refcounts are written by the next;
        // releasing may itself free nothing, so three rounds are enough.
        for _ in 0..3 {
            self.commit(port, true, true).await?;
        }
        let dirty = self.state().header.needs(incompatible::DIRTY);
        if dirty {
            let _lock = self.hold(Space::Header, 0, 0, true).await;
            self.change_header(port, |h| h.incompatible &= !incompatible::DIRTY)
                .await?;
        }
        Ok(())
    }
}

fn begin<'a>(
    writes: impl Iterator<Item = (u64, &'a [u8])>,
    write: impl Fn(u64, &[u8]) -> OpFuture,
) -> Vec<OpFuture> {
    writes.map(|(at, data)| write(at, data)).collect()
}
