//! Growing and shrinking the guest's disk, and where compressed clusters are put.

use super::Image;
use super::entry::{Entry, Place};
use super::header::MAX_L1;
use super::state::{Freed, Space, State, Stop};
use crate::Result;
use crate::chain::Layer;
use crate::io::{Buffer, Port};

impl Image {
    /// Makes the guest's disk `size` bytes long. `layers` is this image and what is below. What is
    /// new reads as zeroes, whatever is below; what is cut off is gone. A power cut leaves the old
    /// size, perhaps without what was to be cut off, or the new one.
    pub async fn resize(&self, port: &Port, size: u64, layers: &[Layer]) -> Result<()> {
        let g = self.geometry();
        if !size.is_multiple_of(512) {
            return Err(self.invalid(format!("the size {size} is not a multiple of 512")));
        }
        if g.l1_entries(size) * 8 > MAX_L1 {
            let most = MAX_L1 / 8 * g.l2_coverage();
            return Err(self.invalid(format!(
                "{size} bytes are too much for clusters of {}: at most {most}",
                g.cluster()
            )));
        }
        let header = self.header();
        if header.version < 3 && header.snapshots > 0 {
            return Err(self.invalid(
                "an image of version 2 with internal snapshots cannot change its size: delete them first",
            ));
        }
        let trackers = self.bitmaps_rest(port).await?;
        let changed = self.change_size(port, size, layers).await;
        self.bitmaps_wake(port, trackers, false).await?;
        changed
    }

    async fn change_size(&self, port: &Port, size: u64, layers: &[Layer]) -> Result<()> {
        let g = self.geometry();
        let old = self.size();
        if size < old {
            // What is cut off must not come back when the disk grows again. Of a unit that is cut in
            // two, the part that stays may come from below.
            let end = old.next_multiple_of(g.cluster());
            let whole = size.next_multiple_of(g.unit());
            if size < whole {
                self.zero(port, size, whole - size, true, layers).await?;
            }
            if whole < end {
                self.zero(port, whole, end - whole, true, &layers[..1])
                    .await?;
            }
            self.flush(port).await?;
        } else {
            self.grow_l1(port, g.l1_entries(size)).await?;
            self.wipe_rest(port, old, layers).await?;
            let below = layers.iter().skip(1).map(Layer::size).max().unwrap_or(0);
            let shows = below.min(size);
            if old < shows {
                let end = shows.next_multiple_of(g.unit());
                self.zero(port, old, end - old, true, layers).await?;
                self.flush(port).await?;
            }
        }
        let lock = self.hold(Space::Header, 0, 0, true).await;
        self.change_header(port, |header| header.size = size)
            .await?;
        self.set_size(size);
        drop(lock);
        if self.external() && !self.data_file().block_device() {
            port.set_len(self.data_file(), size).await?;
        }
        Ok(())
    }

    /// What the last unit holds behind the disk's end must not show when the disk goes on there:
    /// not all who write images leave zeroes.
    async fn wipe_rest(&self, port: &Port, end: u64, layers: &[Layer]) -> Result<()> {
        let rest = end.next_multiple_of(self.geometry().unit()) - end;
        if rest == 0 {
            return Ok(());
        }
        let guard = self.guard();
        let wipe = match self.map(port, end, rest).await?.place {
            Place::Data(host) if host < self.data_file().end() => {
                let buffer = Buffer::new(rest as usize);
                port.read(self.data_file(), host, buffer.span()).await?;
                buffer.bytes().iter().any(|b| *b != 0)
            }
            Place::Compressed(..) => true,
            _ => false,
        };
        drop(guard);
        if wipe {
            self.write_zeroes(port, end, rest, layers).await?;
            self.flush(port).await?;
        }
        Ok(())
    }

    /// Makes the L1 table at least so long.
    async fn grow_l1(&self, port: &Port, entries: u64) -> Result<()> {
        let g = self.geometry();
        if entries <= self.state().l1.len() as u64 {
            return Ok(());
        }
        let clusters = g.clusters(entries * 8);
        let first = self.allocate_run(port, clusters).await?;
        // Entries that change from here on would be lost.
        let _l1 = self.hold(Space::L1, 0, u64::MAX, true).await;
        let _commit = self.hold(Space::Commit, 0, 0, true).await;
        let _header = self.hold(Space::Header, 0, 0, true).await;
        let mut table = Buffer::new((clusters << g.cluster_bits) as usize);
        let old = {
            let state = self.state();
            for (place, entry) in table.bytes_mut().chunks_exact_mut(8).zip(&state.l1) {
                place.copy_from_slice(&entry.to_be_bytes());
            }
            (state.header.l1_offset, state.header.l1_entries)
        };
        let offset = first << g.cluster_bits;
        port.write(self.file(), offset, table.span()).await?;
        // The new table's clusters must be counted before the header names them.
        let refs = {
            let state = self.state();
            let work = state.refs.capture();
            let place = |key: u64| {
                state.reftable[(key / g.slices()) as usize] + key % g.slices() * g.slice()
            };
            work.iter()
                .map(|c| (place(c.key), c.data.clone()))
                .collect::<Vec<_>>()
        };
        for (at, data) in refs {
            port.write(self.file(), at, Buffer::from_slice(&data).span())
                .await?;
        }
        port.flush(self.file()).await?;
        self.write_reftable(port).await?;
        self.change_header(port, |header| {
            header.l1_offset = offset;
            header.l1_entries = entries as u32;
        })
        .await?;
        let mut state = self.state();
        state.l1.resize(entries as usize, 0);
        state.l1_dirty.clear();
        state.freed.push(Freed {
            first: old.0 >> g.cluster_bits,
            count: g.clusters(u64::from(old.1) * 8),
        });
        Ok(())
    }

    /// Finds a place for `len` bytes of compressed data: its offset and the entry for it. None if
    /// it cannot be expressed.
    pub(super) async fn allocate_packed(
        &self,
        port: &Port,
        len: u64,
    ) -> Result<Option<(u64, Entry)>> {
        let place = self.with(port, |s| s.allocate_packed(len)).await?;
        Ok(Entry::for_compressed(&self.geometry(), place, len).map(|e| (place, e)))
    }
}

impl State {
    /// Takes a place for `len` bytes of compressed data, at most a cluster's: right behind the last,
    /// if that can be.
    fn allocate_packed(&mut self, len: u64) -> std::result::Result<u64, Stop> {
        let g = self.geometry;
        let next = self.packed_end;
        let inside = next & (g.cluster() - 1);
        if inside != 0 {
            let cluster = next >> g.cluster_bits;
            let more = len > g.cluster() - inside;
            // All that may be lacking is asked for before anything changes.
            let count = self.refcount(cluster)?;
            let after = if more { self.refcount(cluster + 1)? } else { 0 };
            if count != 0 && count < g.refcount_max() && after == 0 {
                if more {
                    self.set_refcount(cluster + 1, 1)?;
                    self.untouched = self.untouched.max(cluster + 2);
                }
                self.set_refcount(cluster, count + 1)?;
                self.packed_end = next + len;
                return Ok(next);
            }
        }
        let (first, _, _) = self.allocate(1)?;
        let place = first << g.cluster_bits;
        self.packed_end = place + len;
        Ok(place)
    }
}
