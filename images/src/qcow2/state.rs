//! What is known of an open image, and the steps that change it. Everything here is synchronous and
//! does no I/O: a step that lacks something changes nothing and says what it lacks ([`Stop`]).

use std::collections::{BTreeSet, VecDeque};
use std::task::Waker;

use super::cache::SliceCache;
use super::entry::{COPIED, Entry, OFFSET, Place, Run};
use super::geometry::{Geometry, refcount, set_refcount};
use super::header::Header;

/// Why a step cannot be done now.
pub(super) enum Stop {
    /// A slice is not in memory.
    Load(Table, u64),
    /// There is no refblock for this part of the file.
    Region(u64),
    /// The step went on for long and has got somewhere: others first.
    Again,
    /// The step can never be done; the image is named by whoever knows its path.
    Corrupt(String),
}

/// Which tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    L2,
    Refs,
}

/// Clusters that nothing refers to any more, once that is durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Freed {
    pub first: u64,
    pub count: u64,
}

/// Freed clusters whose release waits for the requests that may still use them.
pub(super) struct Limbo {
    pub epoch: u64,
    pub freed: Vec<Freed>,
}

/// A range of clusters (or of table numbers) that a task has for itself, or shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub space: Space,
    pub first: u64,
    pub last: u64,
    pub exclusive: bool,
}

/// What a lock's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// Guest clusters.
    Cluster,
    /// L1 entries.
    L1,
    /// The header and the refcount table.
    Header,
    /// The write-back.
    Commit,
    /// The bitmap directory.
    Bitmaps,
}

pub(super) struct State {
    pub header: Header,
    pub geometry: Geometry,
    pub external: bool,
    pub l1: Vec<u64>,
    pub l1_dirty: BTreeSet<usize>,
    pub l2: SliceCache,
    pub refs: SliceCache,
    pub reftable: Vec<u64>,
    pub reftable_dirty: BTreeSet<usize>,
    /// No cluster before this one is free.
    pub hint: u64,
    /// From this cluster on, the file was never written: it reads as zeroes.
    pub untouched: u64,
    /// Where the last compressed data ends: the next goes behind it. 0 if there is none.
    pub packed_end: u64,
    /// Bitmaps claim to track changes, and nobody does yet: see `tracking`.
    pub unguarded: bool,
    pub freed: Vec<Freed>,
    pub limbo: VecDeque<Limbo>,
    pub epoch: u64,
    pub held: Vec<Held>,
    pub waiters: Vec<Waker>,
    /// The header in the file may be another than this one.
    pub header_unsure: bool,
}

/// L1 entries and refcount table entries are written by sectors of so many.
pub(super) const SECTOR_ENTRIES: usize = 64;

/// How a write reaches the disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Offset in the data file of the start of the first cluster.
    pub host: u64,
    /// Guest bytes that the plan covers.
    pub len: u64,
    /// What the first unit holds before the write must be copied, so far back.
    pub head: u64,
    /// What the last unit holds after the write must be copied, so far on.
    pub tail: u64,
    /// Entries change when the data is written.
    pub update: bool,
    /// Clusters that were allocated for it.
    pub new: u64,
    /// The new clusters read as zeroes.
    pub fresh: bool,
    /// All subclusters of the cluster are written.
    pub whole: bool,
}

impl State {
    fn corrupt<T>(&self, what: String) -> Result<T, Stop> {
        Err(Stop::Corrupt(what))
    }

    /// The L2 table of an L1 entry; 0 if there is none.
    pub fn l2_table(&self, index: usize) -> u64 {
        self.l1.get(index).map_or(0, |e| e & OFFSET)
    }

    /// The entry of the cluster at a guest offset. None if there is no table.
    pub fn entry(&mut self, offset: u64) -> Result<Option<Entry>, Stop> {
        let g = self.geometry;
        // All sizes are powers of two, and this is the hot path: shifts, not divisions.
        if self.l2_table((offset >> g.l2_coverage().trailing_zeros()) as usize) == 0 {
            return Ok(None);
        }
        let key = offset >> g.slice_coverage().trailing_zeros();
        let Some(slice) = self.l2.get(key) else {
            return Err(Stop::Load(Table::L2, key));
        };
        let index = (offset >> g.cluster_bits) & (g.slice_entries() - 1);
        let entry = Entry::read(slice, &g, index);
        match entry.defect(&g, self.header.version, self.external) {
            None => Ok(Some(entry)),
            Some(what) => self.corrupt(format!("the L2 entry of guest offset {offset:#x} {what}")),
        }
    }

    /// Stores the entry of the cluster at a guest offset, whose slice is loaded and whose table is
    /// ours alone.
    pub fn set_entry(&mut self, offset: u64, entry: Entry) -> Result<(), Stop> {
        let g = self.geometry;
        let key = offset / g.slice_coverage();
        let Some(slice) = self.l2.get_mut(key) else {
            return Err(Stop::Load(Table::L2, key));
        };
        entry.store(slice, &g, (offset >> g.cluster_bits) % g.slice_entries());
        Ok(())
    }

    /// Where the bytes from `offset` are, and for how many of `len` that goes on.
    pub fn map(&mut self, offset: u64, len: u64) -> Result<Run, Stop> {
        let g = self.geometry;
        let unit = g.unit();
        let mut run: Option<Run> = None;
        let mut at = offset;
        let end = offset + len;
        // Within one slice: the next call goes on.
        let stop = end.min((offset / g.slice_coverage() + 1) * g.slice_coverage());
        while at < stop {
            let Some(entry) = self.entry(at)? else {
                let covered = (at / g.l2_coverage() + 1) * g.l2_coverage();
                return Ok(Run {
                    place: Place::Hole,
                    len: covered.min(end) - offset,
                });
            };
            let in_unit = at % unit;
            let sub = if g.extended {
                (at % g.cluster() / unit) as u32
            } else {
                0
            };
            let step = (unit - in_unit).min(stop - at);
            let place = match entry.place(&g, self.external, sub) {
                Place::Data(host) => Place::Data(host + in_unit),
                // A compressed cluster is a run of its own.
                Place::Compressed(host, size) => {
                    if run.is_none() {
                        let len = (g.cluster() - at % g.cluster()).min(stop - at);
                        let place = Place::Compressed(host, size);
                        return Ok(Run { place, len });
                    }
                    break;
                }
                place => place,
            };
            match &mut run {
                None => run = Some(Run { place, len: step }),
                Some(run) => {
                    let goes_on = match (run.place, place) {
                        (Place::Data(first), Place::Data(host)) => first + run.len == host,
                        (a, b) => a == b,
                    };
                    if !goes_on {
                        break;
                    }
                    run.len += step;
                }
            }
            at += step;
        }
        Ok(run.unwrap_or(Run {
            place: Place::Hole,
            len,
        }))
    }

    /// Where `len` bytes from `offset` can be written in place, all of them; none otherwise.
    pub fn map_in_place(&mut self, offset: u64, len: u64) -> Option<u64> {
        if self.unguarded {
            return None;
        }
        let g = self.geometry;
        let mut first = None;
        let mut at = offset;
        while at < offset + len {
            let entry = self.entry(at).ok()??;
            if !entry.copied() {
                return None;
            }
            let in_cluster = at % g.cluster();
            let step = (g.cluster() - in_cluster).min(offset + len - at);
            let host = entry.host(self.external)?;
            if g.extended {
                let covered = super::entry::mask(
                    (in_cluster / g.unit()) as u32,
                    (in_cluster + step).div_ceil(g.unit()) as u32,
                );
                if entry.allocated() & covered != covered {
                    return None;
                }
            } else if entry.word & super::entry::ZERO != 0 {
                return None;
            }
            let place = host + in_cluster;
            if place != *first.get_or_insert(place) + (at - offset) {
                return None;
            }
            at += step;
        }
        first.filter(|host| self.external || !self.is_metadata(*host, len))
    }

    /// Looks at the refcount of a cluster.
    pub fn refcount(&mut self, cluster: u64) -> Result<u64, Stop> {
        let g = self.geometry;
        let region = cluster / g.refblock_entries();
        if self.reftable.get(region as usize).is_none_or(|e| *e == 0) {
            return Ok(0);
        }
        let key = cluster / g.refslice_entries();
        match self.refs.get(key) {
            Some(slice) => Ok(refcount(
                slice,
                g.refcount_order,
                cluster % g.refslice_entries(),
            )),
            None => Err(Stop::Load(Table::Refs, key)),
        }
    }

    /// Sets the refcount of a cluster whose refblock exists.
    pub fn set_refcount(&mut self, cluster: u64, value: u64) -> Result<(), Stop> {
        let g = self.geometry;
        let region = cluster / g.refblock_entries();
        if self.reftable.get(region as usize).is_none_or(|e| *e == 0) {
            return Err(Stop::Region(region));
        }
        if value > g.refcount_max() {
            return self.corrupt(format!(
                "a refcount would become {value}, above what {} bits hold",
                g.refcount_bits()
            ));
        }
        let key = cluster / g.refslice_entries();
        let Some(slice) = self.refs.get_mut(key) else {
            return Err(Stop::Load(Table::Refs, key));
        };
        let index = cluster % g.refslice_entries();
        set_refcount(slice, g.refcount_order, index, value);
        if value == 0 {
            self.hint = self.hint.min(cluster);
            // Compressed data must not go on in a cluster that becomes something else.
            if self.packed_end >> g.cluster_bits == cluster {
                self.packed_end = 0;
            }
        }
        Ok(())
    }

    /// Decides how the write of `len` bytes at `offset`, within one L2 slice, reaches the disk. The
    /// table is ours; with `shared`, nothing may be allocated or copied (then: None).
    pub fn plan(&mut self, offset: u64, len: u64, shared: bool) -> Result<Option<Plan>, Stop> {
        let g = self.geometry;
        let Some(entry) = self.entry(offset)? else {
            return self.corrupt(format!("guest offset {offset:#x} has no L2 table"));
        };
        let usable = |e: &Entry| e.copied() && e.host(self.external).is_some();
        if usable(&entry) {
            return self.plan_in_place(offset, len, entry, shared);
        }
        if shared {
            return Ok(None);
        }
        // Old subclusters that are in another place move together.
        let external = self.external;
        let whole = |e: &Entry| g.extended && (e.compressed() || e.host(external).is_some());
        let clusters = if whole(&entry) {
            1
        } else {
            let mut n = 1;
            let first = offset & !(g.cluster() - 1);
            while first + n * g.cluster() < offset + len {
                let Some(next) = self.entry(first + n * g.cluster())? else {
                    break;
                };
                if next.copied() && next.host(external).is_some() || whole(&next) {
                    break;
                }
                n += 1;
            }
            n
        };
        let (host, n, fresh) = if self.external {
            (offset & !(g.cluster() - 1), clusters, false)
        } else {
            let (first, n, fresh) = self.allocate(clusters)?;
            if first >> (56 - g.cluster_bits) != 0 {
                return self.corrupt("the file would grow beyond 64 PiB".into());
            }
            (first << g.cluster_bits, n, fresh)
        };
        let start = offset & !(g.cluster() - 1);
        let len = len.min(start + n * g.cluster() - offset);
        let whole = whole(&entry);
        let unit = if whole { g.cluster() } else { g.unit() };
        Ok(Some(Plan {
            host,
            len,
            head: offset % unit,
            tail: (offset + len).next_multiple_of(unit) - (offset + len),
            update: true,
            new: n,
            fresh,
            whole,
        }))
    }

    fn plan_in_place(
        &mut self,
        offset: u64,
        len: u64,
        entry: Entry,
        shared: bool,
    ) -> Result<Option<Plan>, Stop> {
        let g = self.geometry;
        let unit = g.unit();
        let host = entry.word & OFFSET;
        let start = offset & !(g.cluster() - 1);
        // Clusters that follow in the guest and in the file.
        let mut n = 1;
        while start + n * g.cluster() < offset + len {
            match self.entry(start + n * g.cluster())? {
                Some(e)
                    if e.copied()
                        && e.host(self.external) == Some(host + n * g.cluster())
                        && (g.extended
                            || e.word & super::entry::ZERO == entry.word & super::entry::ZERO) => {}
                _ => break,
            }
            n += 1;
        }
        if !self.external && self.is_metadata(host, n * g.cluster()) {
            return self.corrupt(format!(
                "guest offset {offset:#x} leads to the image's own tables"
            ));
        }
        let len = len.min(start + n * g.cluster() - offset);
        let end = offset + len;
        let mut plan = Plan {
            host,
            len,
            head: 0,
            tail: 0,
            update: false,
            new: 0,
            fresh: false,
            whole: false,
        };
        let allocated = |e: Option<Entry>, at: u64| match e {
            Some(e) if g.extended => e.allocated() >> (at % g.cluster() / unit) & 1 != 0,
            Some(e) => e.word & super::entry::ZERO == 0,
            None => false,
        };
        let mut at = offset & !(unit - 1);
        while at < end {
            let entry = self.entry(at)?;
            if !allocated(entry, at) {
                plan.update = true;
                if at < offset {
                    plan.head = offset - at;
                }
                if at + unit > end {
                    plan.tail = at + unit - end;
                }
            }
            at += unit;
        }
        if shared && (plan.head != 0 || plan.tail != 0) {
            return Ok(None);
        }
        Ok(Some(plan))
    }

    /// Makes the entries say what a carried-out plan did.
    pub fn carry_out(&mut self, offset: u64, plan: &Plan) -> Result<(), Stop> {
        if !plan.update {
            return Ok(());
        }
        let g = self.geometry;
        let (from, to) = (offset - plan.head, offset + plan.len + plan.tail);
        let start = from & !(g.cluster() - 1);
        let mut freed = Vec::new();
        let mut at = start;
        while at < to {
            let old = self.entry(at)?.unwrap_or_default();
            let host = plan.host + (at - start);
            let mut new = Entry {
                word: host | COPIED,
                bitmap: 0,
            };
            if g.extended {
                let covered = super::entry::mask(
                    (from.saturating_sub(at) / g.unit()) as u32,
                    ((to - at).min(g.cluster()).div_ceil(g.unit())) as u32,
                );
                new = if plan.whole {
                    new.with_bits(u32::MAX, 0)
                } else {
                    new.with_bits(old.allocated() | covered, old.zeroed() & !covered)
                };
            }
            if plan.new != 0
                && let Some((first, count)) = old.references(&g, self.external)
            {
                freed.push(Freed { first, count });
            }
            self.set_entry(at, new)?;
            at += g.cluster();
        }
        self.freed.extend(freed);
        Ok(())
    }

    /// Makes `len` bytes from `offset`, whole units within one L2 slice, read as zeroes (`zero`) or
    /// as if they had never been written, and gives their space back (`unmap`).
    pub fn clear(&mut self, offset: u64, len: u64, zero: bool, unmap: bool) -> Result<(), Stop> {
        let g = self.geometry;
        let mut at = offset;
        while at < offset + len {
            let start = at & !(g.cluster() - 1);
            let end = (start + g.cluster()).min(offset + len);
            let Some(old) = self.entry(at)? else {
                at = end;
                continue;
            };
            let keep = !unmap && old.copied() && old.host(self.external).is_some();
            let new = if g.extended {
                let covered = super::entry::mask(
                    ((at - start) / g.unit()) as u32,
                    ((end - start) / g.unit()) as u32,
                );
                let base = if old.compressed() {
                    Entry::default()
                } else {
                    old
                };
                let allocated = base.allocated() & !covered;
                let zeroed = if zero {
                    base.zeroed() | covered
                } else {
                    base.zeroed() & !covered
                };
                let word = if allocated == 0 && !keep {
                    0
                } else {
                    base.word
                };
                Entry { word, bitmap: 0 }.with_bits(allocated, zeroed)
            } else {
                let host = if keep {
                    old.word & (OFFSET | COPIED)
                } else {
                    0
                };
                Entry {
                    word: host | if zero { super::entry::ZERO } else { 0 },
                    bitmap: 0,
                }
            };
            if new != old {
                self.set_entry(at, new)?;
                if (new.word & OFFSET == 0 || old.compressed())
                    && let Some((first, count)) = old.references(&g, self.external)
                {
                    self.freed.push(Freed { first, count });
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Whether there is nothing to write back.
    pub fn clean(&self) -> bool {
        self.l2.dirty() == 0
            && self.l1_dirty.is_empty()
            && self.reftable_dirty.is_empty()
            && (self.header.lazy() || self.refs.dirty() == 0)
            && self.freed.is_empty()
            && !self.header_unsure
    }

    /// Wakes everybody who waits for something to change.
    pub fn wake(&mut self) {
        for waker in self.waiters.drain(..) {
            waker.wake();
        }
    }

    /// Whether somebody else's lock is in the way of this one.
    pub fn blocked(&self, want: Held) -> bool {
        self.held.iter().any(|h| {
            h.space == want.space
                && (h.exclusive || want.exclusive)
                && h.first <= want.last
                && want.first <= h.last
        })
    }

    /// Takes a lock, unless somebody else's is in the way.
    pub fn try_hold(&mut self, want: Held) -> bool {
        let free = !self.blocked(want);
        if free {
            self.held.push(want);
        }
        free
    }

    /// Gives a lock back.
    pub fn let_go(&mut self, held: Held) {
        if let Some(i) = self.held.iter().position(|h| *h == held) {
            self.held.swap_remove(i);
            self.wake();
        }
    }
}
