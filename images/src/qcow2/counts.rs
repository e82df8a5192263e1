//! References to clusters, counted.

use std::collections::BTreeMap;

/// Counts by cluster, in pages, so that a file with few references far apart takes little memory:
/// 256 bytes for each 64 clusters with any reference.
#[derive(Default)]
pub(super) struct Counts(BTreeMap<u64, Box<[u32; PAGE as usize]>>);
pub(super) const PAGE: u64 = 64;

impl Counts {
    /// One more reference.
    pub fn add(&mut self, cluster: u64) {
        self.add_many(cluster, 1);
    }

    /// So many more references.
    pub fn add_many(&mut self, cluster: u64, times: u32) {
        let page = self
            .0
            .entry(cluster / PAGE)
            .or_insert_with(|| Box::new([0; PAGE as usize]));
        let n = &mut page[(cluster % PAGE) as usize];
        *n = n.saturating_add(times);
    }

    /// The counts of the page with a cluster; none if all are 0.
    pub fn page(&self, cluster: u64) -> Option<&[u32; PAGE as usize]> {
        self.0.get(&(cluster / PAGE)).map(|page| &**page)
    }

    /// The references to a cluster.
    pub fn get(&self, cluster: u64) -> u64 {
        let page = self.0.get(&(cluster / PAGE));
        page.map_or(0, |p| u64::from(p[(cluster % PAGE) as usize]))
    }

    /// The last cluster with a reference; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.iter().next_back().map_or(0, |(cluster, _)| cluster)
    }

    /// Those with references of a range of clusters that begins and ends with a page.
    pub fn range(&self, clusters: std::ops::Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        let pages = self
            .0
            .range(clusters.start / PAGE..clusters.end.div_ceil(PAGE));
        pages.flat_map(|(page, counts)| {
            let used = counts.iter().enumerate().filter(|(_, n)| **n > 0);
            used.map(move |(i, n)| (page * PAGE + i as u64, u64::from(*n)))
        })
    }

    /// The clusters with references, and how many, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.0.iter().flat_map(|(page, counts)| {
            let used = counts.iter().enumerate().filter(|(_, n)| **n > 0);
            used.map(move |(i, n)| (page * PAGE + i as u64, u64::from(*n)))
        })
    }
}
