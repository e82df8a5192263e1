//! Checking an image: every reference is counted and compared with the refcounts.

use std::collections::HashMap;

use super::Image;
use super::counts::Counts;
use super::entry::{COPIED, Entry, OFFSET};
use super::geometry::{refcount, set_refcount};
use super::header::{autoclear, incompatible};
use super::image::read_table;
use super::state::SECTOR_ENTRIES;
use crate::Result;
use crate::io::{Buffer, Port};

/// Messages that a report keeps; the rest is only counted.
const KEPT: usize = 1000;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong and could damage data.
    pub corruptions: u64,
    /// Clusters that nothing refers to, but whose refcount says otherwise.
    pub leaks: u64,
    /// Corruptions that were mended.
    pub corruptions_fixed: u64,
    /// Leaks that were mended.
    pub leaks_fixed: u64,
    /// Guest clusters in all.
    pub total_clusters: u64,
    /// Guest clusters with data.
    pub allocated_clusters: u64,
    /// Of these, compressed.
    pub compressed_clusters: u64,
    /// Of these, not right behind their neighbour.
    pub fragmented_clusters: u64,
    /// Where the last cluster in use ends.
    pub image_end: u64,
    /// The first findings, in words.
    pub messages: Vec<String>,
}

impl Report {
    fn say(&mut self, message: impl FnOnce() -> String) {
        if self.messages.len() < KEPT {
            self.messages.push(message());
        }
    }

    fn corrupt(&mut self, message: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.say(|| format!("ERROR {}", message()));
    }

    /// Nothing is wrong, not even a leak.
    pub fn clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0
    }
}

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

struct Checker<'a> {
    image: &'a Image,
    port: &'a Port,
    counts: Counts,
    report: Report,
    repair: Repair,
    /// Clusters from here on are beyond the file's end.
    end: u64,
}

/// Checks an image that was opened for checking, and mends what `repair` says.
pub async fn check(image: &Image, port: &Port, repair: Repair) -> Result<Report> {
    let mut checker = Checker::new(image, port, repair);
    checker.count().await?;
    checker.compare().await?;
    let rebuilt =
        repair == Repair::All && checker.report.corruptions > checker.report.corruptions_fixed;
    if rebuilt {
        write_refcounts(image, port, &checker.counts).await?;
        checker.copied_flags(true).await?;
        checker.report.corruptions_fixed = checker.report.corruptions;
        checker.report.leaks_fixed = checker.report.leaks;
    } else {
        checker.copied_flags(repair == Repair::All).await?;
    }
    if repair == Repair::All && checker.report.corruptions == checker.report.corruptions_fixed {
        let marks = incompatible::CORRUPT | incompatible::DIRTY;
        let marked = image.state().header.incompatible & marks != 0;
        if marked {
            image.state().header.incompatible &= !marks;
            image.write_header(port).await?;
        }
    }
    if repair != Repair::None {
        port.flush(image.file()).await?;
    }
    Ok(checker.report)
}

/// Makes refcounts of an image that was not closed right again, from what refers to its clusters.
pub(super) async fn rebuild(image: &Image, port: &Port) -> Result<()> {
    let mut checker = Checker::new(image, port, Repair::None);
    checker.count().await?;
    if checker.report.corruptions > 0 {
        return Err(image.corrupt(checker.report.messages.join("; ")));
    }
    write_refcounts(image, port, &checker.counts).await?;
    checker.copied_flags(true).await?;
    image.state().header.incompatible &= !incompatible::DIRTY;
    image.write_header(port).await
}

impl<'a> Checker<'a> {
    fn new(image: &'a Image, port: &'a Port, repair: Repair) -> Checker<'a> {
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
            end: if image.file().block_device() {
                u64::MAX
            } else {
                g.clusters(image.file().end())
            },
        }
    }

    fn refer(&mut self, offset: u64, bytes: u64, what: impl Fn() -> String) -> bool {
        let bits = self.image.geometry().cluster_bits;
        if bytes == 0 {
            return true;
        }
        let last = (offset + bytes - 1) >> bits;
        if last > self.end {
            self.report
                .corrupt(|| format!("{} at {offset:#x} is beyond the file's end", what()));
            return false;
        }
        for cluster in offset >> bits..=last {
            self.counts.add(cluster);
        }
        true
    }

    async fn count(&mut self) -> Result<()> {
        let g = self.image.geometry();
        let header = self.image.header();
        self.refer(0, g.cluster(), || "the header".into());
        let reftable_bytes = u64::from(header.reftable_clusters) << g.cluster_bits;
        self.refer(header.reftable_offset, reftable_bytes, || {
            "the refcount table".into()
        });
        let reftable = self.image.state().reftable.clone();
        for (i, block) in reftable.iter().enumerate().filter(|(_, b)| **b != 0) {
            self.refer(*block, g.cluster(), || format!("refblock {i}"));
        }
        let l1 = self.image.state().l1.clone();
        self.refer(header.l1_offset, l1.len() as u64 * 8, || {
            "the L1 table".into()
        });
        self.count_l1(&l1, true, "").await?;
        let snapshots = super::snapshot::read_list(self.image, self.port).await;
        match snapshots {
            Ok((list, bytes)) => {
                self.refer(header.snapshots_offset, bytes, || {
                    "the snapshot table".into()
                });
                for snapshot in list {
                    let bytes = u64::from(snapshot.l1_entries) * 8;
                    let name = format!("snapshot {}'s ", snapshot.id);
                    if self.refer(snapshot.l1_offset, bytes, || format!("{name}L1 table")) {
                        let file = self.image.file();
                        let l1 = read_table(self.port, file, snapshot.l1_offset, bytes).await?;
                        self.count_l1(&l1, false, &name).await?;
                    }
                }
            }
            Err(e) => self.report.corrupt(|| e.to_string()),
        }
        if let Some(bitmaps) = header
            .bitmaps
            .filter(|_| header.autoclear & autoclear::BITMAPS != 0)
        {
            match super::directory::places(self.image, self.port, &bitmaps).await {
                Ok(places) => {
                    for (offset, bytes) in places {
                        self.refer(offset, bytes, || "a bitmap".into());
                    }
                }
                Err(e) => self.report.corrupt(|| e.to_string()),
            }
        }
        Ok(())
    }

    async fn count_l1(&mut self, l1: &[u64], active: bool, whose: &str) -> Result<()> {
        let g = self.image.geometry();
        let version = self.image.header().version;
        let external = self.image.external();
        let mut next = 0;
        for (i, word) in l1.iter().enumerate() {
            let table = word & OFFSET;
            if table == 0 {
                continue;
            }
            if !table.is_multiple_of(g.cluster()) {
                self.report
                    .corrupt(|| format!("{whose}L1 entry {i} is {word:#x}, not a cluster's start"));
                continue;
            }
            if !self.refer(table, g.cluster(), || format!("{whose}L2 table {i}")) {
                continue;
            }
            let buffer = Buffer::new(g.cluster() as usize);
            self.port
                .read(self.image.file(), table, buffer.span())
                .await?;
            for j in 0..g.l2_entries() {
                let entry = Entry::read(buffer.bytes(), &g, j);
                if let Some(what) = entry.defect(&g, version, external) {
                    self.report.corrupt(|| {
                        format!("{whose}L2 table {i}: entry {j} ({:#x}) {what}", entry.word)
                    });
                    continue;
                }
                let Some((first, count)) = entry.references(&g, external) else {
                    continue;
                };
                let offset = first << g.cluster_bits;
                self.refer(offset, count << g.cluster_bits, || {
                    format!("{whose}the data of entry {j} of L2 table {i}")
                });
                if active {
                    self.report.allocated_clusters += 1;
                    if entry.compressed() {
                        self.report.compressed_clusters += 1;
                        self.report.fragmented_clusters += 1;
                    } else {
                        if next != 0 && first != next {
                            self.report.fragmented_clusters += 1;
                        }
                        next = first + 1;
                    }
                }
            }
        }
        Ok(())
    }

    async fn compare(&mut self) -> Result<()> {
        let g = self.image.geometry();
        let reftable = self.image.state().reftable.clone();
        self.report.image_end = (self.counts.last() + 1) << g.cluster_bits;
        let mut seen = 0;
        for (i, at) in reftable.iter().enumerate() {
            let first = i as u64 * g.refblock_entries();
            if *at == 0 || at >> g.cluster_bits >= self.end {
                continue;
            }
            let mut block = Buffer::new(g.cluster() as usize);
            self.port.read(self.image.file(), *at, block.span()).await?;
            let mut changed = false;
            for j in 0..g.refblock_entries() {
                let is = refcount(block.bytes(), g.refcount_order, j);
                let cluster = first + j;
                let should = self.counts.get(cluster);
                seen += u64::from(should > 0);
                if is == should {
                    continue;
                }
                let leak = is > should;
                if leak {
                    self.report.leaks += 1;
                    self.report.say(|| {
                        format!("Leaked cluster {cluster} refcount={is} reference={should}")
                    });
                } else {
                    self.report
                        .corrupt(|| format!("cluster {cluster} refcount={is} reference={should}"));
                }
                let mends = leak && self.repair != Repair::None;
                if mends {
                    set_refcount(block.bytes_mut(), g.refcount_order, j, should);
                    self.report.leaks_fixed += 1;
                    changed = true;
                }
            }
            if changed {
                self.port
                    .write(self.image.file(), *at, block.span())
                    .await?;
            }
        }
        let referred = self.counts.iter().count() as u64;
        if referred > seen {
            let missing = referred - seen;
            self.report.corruptions += missing - 1;
            self.report
                .corrupt(|| format!("{missing} clusters are in use where there is no refblock"));
        }
        Ok(())
    }

    fn replace_l1(&self, l1: Vec<u64>) {
        let mut state = self.image.state();
        let sectors = l1.len().div_ceil(SECTOR_ENTRIES);
        state.l1 = l1;
        state.l1_dirty.extend(0..sectors);
    }

    /// The COPIED flags of the active tables say whether the refcount is exactly one.
    async fn copied_flags(&mut self, mend: bool) -> Result<()> {
        let g = self.image.geometry();
        let external = self.image.external();
        let mut l1 = self.image.state().l1.clone();
        let mut l1_changed = false;
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
                    .corrupt(|| format!("L1 entry {i}: the COPIED flag is wrong"));
                if mend {
                    *word ^= COPIED;
                    l1_changed = true;
                    self.report.corruptions_fixed += 1;
                }
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
                    .corrupt(|| format!("L2 table {i}, entry {j}: the COPIED flag is wrong"));
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

/// Writes new refcount structures behind everything in use, and makes the header name them.
async fn write_refcounts(image: &Image, port: &Port, counts: &Counts) -> Result<()> {
    let g = image.geometry();
    let per = g.refblock_entries();
    let header = image.header();
    // The old structures are not in use any more.
    let mut old: HashMap<u64, u64> = HashMap::new();
    let first = header.reftable_offset >> g.cluster_bits;
    for cluster in first..first + u64::from(header.reftable_clusters) {
        *old.entry(cluster).or_default() += 1;
    }
    let reftable = image.state().reftable.clone();
    for block in reftable.iter().filter(|b| **b != 0) {
        *old.entry(block >> g.cluster_bits).or_default() += 1;
    }
    let start = counts
        .last()
        .max(g.clusters(image.file().end()).saturating_sub(1))
        + 1;
    let wanted = |cluster: u64| {
        counts
            .get(cluster)
            .saturating_sub(old.get(&cluster).copied().unwrap_or(0))
    };
    // Which blocks are needed: those with counts, and those for the new structures themselves.
    let mut regions: Vec<u64> = counts.iter().map(|(cluster, _)| cluster / per).collect();
    regions.dedup();
    let (mut blocks, mut table);
    loop {
        regions.sort_unstable();
        regions.dedup();
        blocks = regions.len() as u64;
        let last = regions.last().copied().unwrap_or(0);
        table = g.clusters((last + 1) * 8).max(1);
        let before = regions.len();
        let end = start + blocks + table;
        regions.extend(start / per..=(end - 1) / per);
        regions.sort_unstable();
        regions.dedup();
        if regions.len() == before {
            break;
        }
    }
    if table << g.cluster_bits > super::header::MAX_REFTABLE {
        return Err(image.invalid("it is too large for a refcount table"));
    }
    let mut entries = vec![0u64; ((table << g.cluster_bits) / 8) as usize];
    for (i, region) in regions.iter().enumerate() {
        let mut block = Buffer::new(g.cluster() as usize);
        for j in 0..per {
            let cluster = region * per + j;
            let own = u64::from((start..start + blocks + table).contains(&cluster));
            let count = wanted(cluster) + own;
            if count > g.refcount_max() {
                return Err(image.corrupt(format!(
                    "cluster {cluster} has {count} references, more than a refcount holds"
                )));
            }
            if count > 0 {
                set_refcount(block.bytes_mut(), g.refcount_order, j, count);
            }
        }
        let at = (start + i as u64) << g.cluster_bits;
        entries[*region as usize] = at;
        port.write(image.file(), at, block.span()).await?;
    }
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
    let offset = (start + blocks) << g.cluster_bits;
    port.write(image.file(), offset, Buffer::from_slice(&bytes).span())
        .await?;
    port.flush(image.file()).await?;
    {
        let mut state = image.state();
        state.header.reftable_offset = offset;
        state.header.reftable_clusters = table as u32;
        state.reftable = entries;
        state.reftable_dirty.clear();
        state.refs.clear();
        state.hint = 0;
        state.untouched = state.untouched.max(start + blocks + table);
    }
    image.write_header(port).await
}
