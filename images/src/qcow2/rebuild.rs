//! Making the refcounts of an image anew, from what refers to its clusters.

use std::collections::HashMap;

use super::Image;
use super::check::{Checker, Repair};
use super::counts::Counts;
use super::geometry::set_refcount;
use super::header::incompatible;
use crate::Result;
use crate::io::{Buffer, Port};

/// Makes refcounts of an image that was not closed right again, from what refers to its clusters.
pub(super) async fn rebuild(image: &Image, port: &Port) -> Result<()> {
    let mut checker = Checker::new(image, port, Repair::None);
    checker.count().await?;
    if checker.report.corruptions > 0 {
        return Err(image.corrupt(checker.report.messages.join("; ")));
    }
    write_refcounts(image, port, &checker.counts).await?;
    checker.copied_flags(true).await?;
    image
        .change_header(port, |h| h.incompatible &= !incompatible::DIRTY)
        .await
}

/// Writes new refcount structures behind everything in use, and makes the header name them.
pub(super) async fn write_refcounts(image: &Image, port: &Port, counts: &Counts) -> Result<()> {
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
    // Only those that were counted: see `Checker::count`.
    let end = g.clusters(image.file().end());
    let counted =
        |b: &&u64| **b != 0 && b.is_multiple_of(g.cluster()) && **b >> g.cluster_bits <= end;
    for block in reftable.iter().filter(counted) {
        *old.entry(block >> g.cluster_bits).or_default() += 1;
    }
    let start = counts
        .last()
        .max(g.clusters(image.file().end()).saturating_sub(1))
        + 1;
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
        let part = region * per..(region + 1) * per;
        for (cluster, counted) in counts.range(part.clone()) {
            let count = counted.saturating_sub(old.get(&cluster).copied().unwrap_or(0));
            if count > g.refcount_max() {
                return Err(image.corrupt(format!(
                    "cluster {cluster} has {count} references, more than a refcount holds"
                )));
            }
            set_refcount(block.bytes_mut(), g.refcount_order, cluster % per, count);
        }
        // They are behind all others.
        for cluster in part.start.max(start)..part.end.min(start + blocks + table) {
            set_refcount(block.bytes_mut(), g.refcount_order, cluster % per, 1);
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
    image
        .change_header(port, |header| {
            header.reftable_offset = offset;
            header.reftable_clusters = table as u32;
        })
        .await?;
    let mut state = image.state();
    state.reftable = entries;
    state.reftable_dirty.clear();
    state.refs.clear();
    state.hint = 0;
    state.untouched = state.untouched.max(start + blocks + table);
    Ok(())
}
