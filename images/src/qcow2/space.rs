//! Where free clusters are, and taking them.

use super::Image;
use super::geometry::{Geometry, refcount, set_refcount};
use super::state::{SECTOR_ENTRIES, Space, State, Stop, Table};
use crate::Result;
use crate::io::{Buffer, Port};

type Step<T> = std::result::Result<T, Stop>;

/// Slices of refblocks that are looked through before others may go on.
const MOST_SLICES: u32 = 16;

impl State {
    /// Takes up to `want` clusters in a row: the first, how many, and whether they read as zeroes.
    pub fn allocate(&mut self, want: u64) -> Step<(u64, u64, bool)> {
        let g = self.geometry;
        let per = g.refslice_entries();
        for _ in 0..MOST_SLICES {
            let at = self.hint;
            let region = at / g.refblock_entries();
            match self.reftable.get(region as usize) {
                None | Some(0) => return Err(Stop::Region(region)),
                Some(_) => {}
            }
            let key = at / per;
            let Some(slice) = self.refs.get(key) else {
                return Err(Stop::Load(Table::Refs, key));
            };
            let free = |i: &u64| refcount(slice, g.refcount_order, *i) == 0;
            let Some(first) = (at % per..per).find(free) else {
                self.hint = (key + 1) * per;
                continue;
            };
            let count = (first + 1..per.min(first + want)).take_while(free).count() as u64 + 1;
            // It is there: `get` found it.
            if let Some(slice) = self.refs.get_mut(key) {
                for i in first..first + count {
                    set_refcount(slice, g.refcount_order, i, 1);
                }
            }
            let first = key * per + first;
            self.hint = first + count;
            let fresh = first >= self.untouched;
            self.untouched = self.untouched.max(first + count);
            return Ok((first, count, fresh));
        }
        Err(Stop::Again)
    }

    /// Takes `want` clusters in a row, all of them, fewer than a slice has. Looks from `from` on, and
    /// notes there where to go on when something is lacking.
    fn take_run(&mut self, want: u64, from: &mut u64) -> Step<u64> {
        let g = self.geometry;
        *from = self.hint.max(*from);
        let stop = *from + g.refslice_entries() * u64::from(MOST_SLICES);
        let mut count = 0;
        while count < want {
            if *from >= stop {
                return Err(Stop::Again);
            }
            let cluster = *from + count;
            let region = cluster / g.refblock_entries();
            if self.reftable.get(region as usize).is_none_or(|e| *e == 0) {
                return Err(Stop::Region(region));
            }
            if self.refcount(cluster)? == 0 {
                count += 1;
            } else {
                (*from, count) = (cluster + 1, 0);
            }
        }
        for cluster in *from..*from + want {
            self.set_refcount(cluster, 1)?;
        }
        if *from == self.hint {
            self.hint += want;
        }
        self.untouched = self.untouched.max(*from + want);
        Ok(*from)
    }
}

impl State {
    /// Whether a range of the file holds what every step relies on: the header, the refcount table,
    /// the active L1 table. No guest's data is there unless the image is broken, or made to be.
    pub fn is_metadata(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        let h = &self.header;
        let cluster = self.geometry.cluster();
        let table = u64::from(h.reftable_clusters) * cluster;
        [
            (0, cluster),
            (h.reftable_offset, table),
            (h.l1_offset, u64::from(h.l1_entries) * 8),
        ]
        .into_iter()
        .any(|(at, bytes)| offset < at.saturating_add(bytes) && at < end)
    }
}

impl Image {
    /// Refuses an image whose own tables count as free: what is written to it would overwrite them.
    pub(super) async fn check_own_refcounts(&self, port: &Port) -> Result<()> {
        // As many refblocks as small images have; a broken one among more is found by `check`.
        const BLOCKS: usize = 4096;
        let g = self.geometry();
        let mut own: Vec<(u64, u64)> = {
            let state = self.state();
            let h = &state.header;
            let blocks = state.reftable.iter().filter(|b| **b != 0).take(BLOCKS);
            let mut own: Vec<_> = blocks.map(|b| (*b, 1)).collect();
            own.push((0, 1));
            own.push((h.reftable_offset, h.reftable_clusters.into()));
            own.push((h.l1_offset, g.clusters(u64::from(h.l1_entries) * 8)));
            own
        };
        own.sort_unstable();
        for (offset, clusters) in own {
            let first = offset >> g.cluster_bits;
            for cluster in first..first + clusters {
                if self.with(port, |s| s.refcount(cluster)).await? == 0 {
                    return Err(self.corrupt(format!(
                        "its table at {:#x} counts as free space",
                        cluster << g.cluster_bits
                    )));
                }
            }
        }
        Ok(())
    }

    /// Takes `want` clusters in a row for a table: the first.
    pub(super) async fn allocate_run(&self, port: &Port, want: u64) -> Result<u64> {
        // What is longer may be in no part of the file: each begins with its refblock.
        if want >= self.geometry().refslice_entries() {
            return self.append_run(port, want).await;
        }
        let mut from = 0;
        self.with(port, |s| s.take_run(want, &mut from)).await
    }

    /// Takes clusters behind all that refblocks cover, with new refblocks in front of them.
    async fn append_run(&self, port: &Port, want: u64) -> Result<u64> {
        let g = self.geometry();
        let per = g.refblock_entries();
        let blocks = want.div_ceil(per - 1);
        let _lock = self.hold(Space::Header, 0, 0, true).await;
        let region = loop {
            let (region, len) = {
                let state = self.state();
                let last = state.reftable.iter().rposition(|e| *e != 0);
                (
                    last.map_or(0, |i| i as u64 + 1),
                    state.reftable.len() as u64,
                )
            };
            self.check_place((region + blocks) * per)?;
            if region + blocks <= len {
                break region;
            }
            self.grow_reftable(port, region + blocks).await?;
        };
        let start = region * per;
        let mut content = Buffer::new((blocks << g.cluster_bits) as usize);
        for i in 0..blocks + want {
            let block = ((i / per) << g.cluster_bits) as usize;
            set_refcount(
                &mut content.bytes_mut()[block..],
                g.refcount_order,
                i % per,
                1,
            );
        }
        port.write(self.file(), start << g.cluster_bits, content.span())
            .await?;
        let mut state = self.state();
        for i in 0..blocks {
            let index = (region + i) as usize;
            state.reftable[index] = (start + i) << g.cluster_bits;
            state.reftable_dirty.insert(index / SECTOR_ENTRIES);
        }
        state.untouched = state.untouched.max(start + blocks + want);
        Ok(start + blocks)
    }

    /// Entries have 56 bits for an offset.
    pub(super) fn check_place(&self, cluster: u64) -> Result<()> {
        if cluster >> (56 - self.geometry().cluster_bits) != 0 {
            return Err(self.invalid("the file cannot grow beyond 64 PiB"));
        }
        Ok(())
    }
}

/// What is wrong with a refcount table, if anything. `end` is where the file ends.
pub(super) fn refblocks_defect(table: &[u64], g: &Geometry, end: u64) -> Option<String> {
    let mut blocks = Vec::new();
    for (i, at) in table.iter().enumerate().filter(|(_, at)| **at != 0) {
        if !at.is_multiple_of(g.cluster()) {
            return Some(format!("refblock {i} is at {at:#x}, not a cluster's start"));
        }
        if *at >= end {
            return Some(format!("refblock {i} is at {at:#x}, beyond the file's end"));
        }
        if (i as u64 * g.refblock_entries()) >> (56 - g.cluster_bits) != 0 {
            return Some(format!("refblock {i} is for what no file has"));
        }
        blocks.push(*at);
    }
    blocks.sort_unstable();
    let twice = blocks.windows(2).find(|w| w[0] == w[1]);
    twice.map(|w| {
        format!(
            "two parts of the file have the same refblock, at {:#x}",
            w[0]
        )
    })
}
