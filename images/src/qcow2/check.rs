//! Checking an image: every reference is counted and compared with the refcounts.

use std::collections::{HashMap, HashSet};

use super::Image;
use super::counts::{Counts, PAGE};
use super::entry::{COPIED, Entry, OFFSET};
use super::geometry::{refcount, set_refcount};
use super::header::{MAX_L1, autoclear, incompatible};
use super::image::read_table;
use super::rebuild::write_refcounts;
use super::state::SECTOR_ENTRIES;
use crate::Result;
use crate::io::{Buffer, Port};

pub use super::report::Report;

/// What a check may mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Repair {
    /// Nothing.
    #[default]
    None,
    /// Leaks.
    Leaks,
    /// Everything that can be.
    All,
}

pub(super) struct Checker<'a> {
    image: &'a Image,
    port: &'a Port,
    pub(super) counts: Counts,
    pub(super) report: Report,
    repair: Repair,
    /// Clusters behind this one are beyond the file's end.
    end: u64,
    /// Something that has references cannot be read: what it refers to is not known.
    blind: bool,
}

/// L2 tables, each to be looked at once however many L1 entries refer to it.
#[derive(Default)]
struct Tables {
    /// Whose L1 table, the entry's index, and where it points to.
    found: Vec<(u32, u32, u64)>,
    times: HashMap<u64, u32>,
    /// Whose: nobody's name is that of the active L1 table.
    names: Vec<String>,
    /// Bytes of L1 tables.
    bytes: u64,
}

/// Checks an image that was opened for checking, and mends what `repair` says.
pub async fn check(image: &Image, port: &Port, repair: Repair) -> Result<Report> {
    let mut checker = Checker::new(image, port, repair);
    checker.count().await?;
    checker.compare().await?;
    let broken = checker.report.corruptions > checker.report.corruptions_fixed;
    if repair == Repair::All && broken && !checker.blind {
        write_refcounts(image, port, &checker.counts).await?;
        checker.copied_flags(true).await?;
        // What cannot be mended is found again.
        port.flush(image.file()).await?;
        let mut again = Checker::new(image, port, Repair::None);
        again.count().await?;
        again.compare().await?;
        again.copied_flags(false).await?;
        let fixed = |was: u64, is: u64| was.saturating_sub(is);
        let (was, is) = (&mut checker.report, &again.report);
        was.corruptions_fixed = fixed(was.corruptions, is.corruptions);
        was.leaks_fixed = fixed(was.leaks, is.leaks);
    } else {
        checker
            .copied_flags(repair == Repair::All && !checker.blind)
            .await?;
    }
    if repair == Repair::All && checker.report.corruptions == checker.report.corruptions_fixed {
        let marks = incompatible::CORRUPT | incompatible::DIRTY;
        if image.header().needs(marks) {
            image
                .change_header(port, |h| h.incompatible &= !marks)
                .await?;
        }
    }
    if repair != Repair::None {
        port.flush(image.file()).await?;
    }
    Ok(checker.report)
}

impl<'a> Checker<'a> {
    pub(super) fn new(image: &'a Image, port: &'a Port, repair: Repair) -> Checker<'a> {
        let g = image.geometry();
        Checker {
            image,
            port,
            counts: Counts::default(),
            report: Report {
                total_clusters: g.clusters(image.size()),
                ..Report::default()
            },
            repair,
            end: g.clusters(image.file().end()),
            blind: false,
        }
    }

    /// Counts a reference to every cluster of a range, `times` over. False if it is not in the file.
    fn refer(&mut self, offset: u64, bytes: u64, times: u32, what: impl Fn() -> String) -> bool {
        let bits = self.image.geometry().cluster_bits;
        if bytes == 0 {
            return true;
        }
        let last = offset.checked_add(bytes - 1).map(|last| last >> bits);
        let Some(last) = last.filter(|last| *last <= self.end) else {
            self.report
                .corrupt(|| format!("{} at {offset:#x} is beyond the file's end", what()));
            return false;
        };
        for cluster in offset >> bits..=last {
            self.counts.add_many(cluster, times);
        }
        true
    }

    pub(super) async fn count(&mut self) -> Result<()> {
        let g = self.image.geometry();
        let header = self.image.header();
        self.refer(0, g.cluster(), 1, || "the header".into());
        let reftable_bytes = u64::from(header.reftable_clusters) << g.cluster_bits;
        self.refer(header.reftable_offset, reftable_bytes, 1, || {
            "the refcount table".into()
        });
        let reftable = self.image.state().reftable.clone();
        for (i, block) in reftable.iter().enumerate().filter(|(_, b)| **b != 0) {
            if block.is_multiple_of(g.cluster()) {
                self.refer(*block, g.cluster(), 1, || format!("refblock {i}"));
            } else {
                self.report
                    .corrupt(|| format!("refblock {i} is at {block:#x}, not a cluster's start"));
            }
        }
        let l1 = self.image.state().l1.clone();
        self.refer(header.l1_offset, l1.len() as u64 * 8, 1, || {
            "the L1 table".into()
        });
        let mut tables = Tables::default();
        let dropped = self.gather(&mut tables, &l1, String::new());
        if !dropped.is_empty() && self.repair == Repair::All {
            let mut l1 = l1;
            for i in dropped {
                l1[i] = 0;
            }
            self.replace_l1(l1);
            self.image.commit(self.port, true, false).await?;
        }
        self.count_snapshots(&mut tables).await?;
        self.count_tables(tables).await?;
        if let Some(bitmaps) = header
            .bitmaps
            .filter(|_| header.autoclear & autoclear::BITMAPS != 0)
        {
            match super::directory::places(self.image, self.port, &bitmaps).await {
                Ok(places) => {
                    for (offset, bytes) in places {
                        self.refer(offset, bytes, 1, || "a bitmap".into());
                    }
                }
                Err(e) => self.cannot_see(e.to_string()),
            }
        }
        Ok(())
    }

    fn cannot_see(&mut self, what: String) {
        self.blind = true;
        self.report.corrupt(|| what);
    }

    async fn count_snapshots(&mut self, tables: &mut Tables) -> Result<()> {
        let (list, bytes) = match super::snapshot::read_list(self.image, self.port).await {
            Ok(found) => found,
            Err(e) => {
                self.cannot_see(e.to_string());
                return Ok(());
            }
        };
        let file = self.image.file();
        self.refer(self.image.header().snapshots_offset, bytes, 1, || {
            "the snapshot table".into()
        });
        for snapshot in list {
            let bytes = u64::from(snapshot.l1_entries) * 8;
            let name = format!("snapshot {}'s ", snapshot.id.escape_debug());
            // Tables that do not overlap fit into the file.
            tables.bytes += bytes;
            if bytes > MAX_L1 || tables.bytes > file.end() {
                self.cannot_see(format!("{name}L1 table has {bytes} bytes"));
                continue;
            }
            let at = snapshot.l1_offset;
            if !self.refer(at, bytes, 1, || format!("{name}L1 table")) {
                self.blind = true;
                continue;
            }
            match read_table(self.port, file, at, bytes).await {
                Ok(l1) => {
                    self.gather(tables, &l1, name);
                }
                Err(e) => self.cannot_see(e.to_string()),
            }
        }
        Ok(())
    }

    /// Counts what an L1 table refers to, and remembers it. The entries that cannot be.
    fn gather(&mut self, tables: &mut Tables, l1: &[u64], whose: String) -> Vec<usize> {
        let g = self.image.geometry();
        let mut dropped = Vec::new();
        let owner = tables.names.len() as u32;
        for (i, word) in l1.iter().enumerate() {
            let table = word & OFFSET;
            if table == 0 {
                continue;
            }
            if !table.is_multiple_of(g.cluster()) {
                self.report
                    .corrupt(|| format!("{whose}L1 entry {i} is {word:#x}, not a cluster's start"));
                dropped.push(i);
            } else if self.refer(table, g.cluster(), 1, || format!("{whose}L2 table {i}")) {
                tables.found.push((owner, i as u32, table));
                *tables.times.entry(table).or_default() += 1;
            } else {
                dropped.push(i);
            }
        }
        tables.names.push(whose);
        dropped
    }

    async fn count_tables(&mut self, mut tables: Tables) -> Result<()> {
        let g = self.image.geometry();
        let version = self.image.header().version;
        let external = self.image.external();
        // What cannot be used becomes zeroes, where there is a way to say so.
        let nothing = match (version, g.extended) {
            (..3, _) => Entry::default(),
            (_, false) => Entry { word: 1, bitmap: 0 },
            (_, true) => Entry::default().with_bits(0, u32::MAX),
        };
        for (owner, i, table) in tables.found {
            // Where the entry before ends: QEMU begins anew in each table, too.
            let mut next = 0;
            let Some(times) = tables.times.remove(&table) else {
                continue;
            };
            let whose = &tables.names[owner as usize];
            let mut buffer = Buffer::new(g.cluster() as usize);
            self.port
                .read(self.image.file(), table, buffer.span())
                .await?;
            let mut changed = false;
            for j in 0..g.l2_entries() {
                let entry = Entry::read(buffer.bytes(), &g, j);
                if entry == Entry::default() {
                    continue;
                }
                let fits = match entry.defect(&g, version, external) {
                    Some(what) => {
                        self.report.corrupt(|| {
                            format!("{whose}L2 table {i}: entry {j} ({:#x}) {what}", entry.word)
                        });
                        false
                    }
                    None => match entry.references(&g, external) {
                        None => true,
                        Some((first, count)) => {
                            let (at, bytes) = (first << g.cluster_bits, count << g.cluster_bits);
                            self.refer(at, bytes, times, || {
                                format!("{whose}the data of entry {j} of L2 table {i}")
                            })
                        }
                    },
                };
                if !fits {
                    nothing.store(buffer.bytes_mut(), &g, j);
                    changed = true;
                } else if owner == 0 {
                    self.describe(entry, &mut next);
                }
            }
            if changed && self.repair == Repair::All {
                self.port
                    .write(self.image.file(), table, buffer.span())
                    .await?;
            }
        }
        Ok(())
    }

    /// Counts a guest cluster of the active tables.
    fn describe(&mut self, entry: Entry, next: &mut u64) {
        let g = self.image.geometry();
        if entry.compressed() {
            self.report.allocated_clusters += 1;
            self.report.compressed_clusters += 1;
            self.report.fragmented_clusters += 1;
        } else if let Some(host) = entry.host(self.image.external()) {
            self.report.allocated_clusters += 1;
            self.report.fragmented_clusters += u64::from(*next != 0 && host != *next);
            *next = host + g.cluster();
        }
    }

    pub(super) async fn compare(&mut self) -> Result<()> {
        let g = self.image.geometry();
        let reftable = self.image.state().reftable.clone();
        let mut last = self.counts.last();
        let mut seen = HashSet::new();
        let mut covered = 0;
        for (i, at) in reftable.iter().enumerate() {
            let first = i as u64 * g.refblock_entries();
            if *at == 0 || !at.is_multiple_of(g.cluster()) || at >> g.cluster_bits >= self.end {
                continue;
            }
            if !seen.insert(*at) {
                self.report
                    .corrupt(|| format!("refblock {i} is another part's, too: {at:#x}"));
                continue;
            }
            let mut block = Buffer::new(g.cluster() as usize);
            self.port.read(self.image.file(), *at, block.span()).await?;
            let mut changed = false;
            let mut j = 0;
            while j < g.refblock_entries() {
                // A page of counts at a time: nearly all are nothing in both.
                let page = self.counts.page(first + j);
                let n = (PAGE - (first + j) % PAGE).min(g.refblock_entries() - j);
                let from = (j << g.refcount_order >> 3) as usize;
                let to = ((j + n) << g.refcount_order >> 3) as usize;
                if page.is_none() && block.bytes()[from..to].iter().all(|b| *b == 0) {
                    j += n;
                    continue;
                }
                for j in j..j + n {
                    let is = refcount(block.bytes(), g.refcount_order, j);
                    let should = self.counts.get(first + j);
                    covered += u64::from(should > 0);
                    last = last.max(if is > 0 { first + j } else { 0 });
                    if is != should && self.differs(first + j, is, should) {
                        set_refcount(block.bytes_mut(), g.refcount_order, j, should);
                        changed = true;
                    }
                }
                j += n;
            }
            if changed {
                self.port
                    .write(self.image.file(), *at, block.span())
                    .await?;
            }
        }
        self.report.image_end = (last + 1) << g.cluster_bits;
        let referred = self.counts.iter().count() as u64;
        if referred > covered {
            let missing = referred - covered;
            self.report.corruptions += missing - 1;
            self.report
                .corrupt(|| format!("{missing} clusters are in use where there is no refblock"));
        }
        Ok(())
    }

    /// Reports a wrong refcount. Whether it is to be mended here.
    fn differs(&mut self, cluster: u64, is: u64, should: u64) -> bool {
        if is < should {
            self.report
                .corrupt(|| format!("cluster {cluster} refcount={is} reference={should}"));
            return false;
        }
        self.report.leaks += 1;
        self.report
            .say(|| format!("Leaked cluster {cluster} refcount={is} reference={should}"));
        // What cannot be seen may be what has the references.
        let mends = self.repair != Repair::None && !self.blind;
        self.report.leaks_fixed += u64::from(mends);
        mends
    }

    fn replace_l1(&self, l1: Vec<u64>) {
        let mut state = self.image.state();
        let sectors = l1.len().div_ceil(SECTOR_ENTRIES);
        state.l1 = l1;
        state.l1_dirty.extend(0..sectors);
    }

    /// The COPIED flags of the active tables say whether the refcount is exactly one.
    pub(super) async fn copied_flags(&mut self, mend: bool) -> Result<()> {
        let g = self.image.geometry();
        let external = self.image.external();
        let mut l1 = self.image.state().l1.clone();
        let mut l1_changed = false;
        let mut seen = HashSet::new();
        for (i, word) in l1.iter_mut().enumerate() {
            let table = *word & OFFSET;
            if table == 0
                || !table.is_multiple_of(g.cluster())
                || table >> g.cluster_bits >= self.end
            {
                continue;
            }
            let alone = self.counts.get(table >> g.cluster_bits) == 1;
            if alone != (*word & COPIED != 0) {
                self.report
                    .corrupt(|| format!("L1 entry {i} {}", copied_flaw(alone)));
                if mend {
                    *word ^= COPIED;
                    l1_changed = true;
                    self.report.corruptions_fixed += 1;
                }
            }
            if !seen.insert(table) {
                continue;
            }
            let mut buffer = Buffer::new(g.cluster() as usize);
            self.port
                .read(self.image.file(), table, buffer.span())
                .await?;
            let mut changed = false;
            for j in 0..g.l2_entries() {
                let mut entry = Entry::read(buffer.bytes(), &g, j);
                let Some(host) = entry.host(external).filter(|_| !external) else {
                    continue;
                };
                let alone = self.counts.get(host >> g.cluster_bits) == 1;
                if alone == entry.copied() {
                    continue;
                }
                self.report
                    .corrupt(|| format!("L2 table {i}, entry {j} {}", copied_flaw(alone)));
                if mend {
                    entry.word ^= COPIED;
                    entry.store(buffer.bytes_mut(), &g, j);
                    changed = true;
                    self.report.corruptions_fixed += 1;
                }
            }
            if changed {
                self.port
                    .write(self.image.file(), table, buffer.span())
                    .await?;
            }
        }
        if l1_changed {
            self.replace_l1(l1);
            self.image.commit(self.port, true, false).await?;
        }
        Ok(())
    }
}

fn copied_flaw(alone: bool) -> &'static str {
    if alone {
        "lacks the COPIED flag"
    } else {
        "has the COPIED flag, and the cluster is shared"
    }
}
