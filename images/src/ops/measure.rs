//! How large a file a new image needs.

use super::extent;
use crate::Result;
use crate::chain::Stack;
use crate::io::Port;
use crate::qcow2::{CreateOptions, Geometry, Preallocation};

/// Bytes of an image's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// At first, with what the source holds.
    pub required: u64,
    /// When everything is written.
    pub fully_allocated: u64,
}

/// Measures a qcow2 image with these options, which have been checked. `source` is what it is to
/// hold.
pub async fn measure(
    port: &Port,
    options: &CreateOptions,
    source: Option<&Stack>,
) -> Result<Measure> {
    let geometry = Geometry {
        cluster_bits: options.cluster_size.trailing_zeros(),
        refcount_order: options.refcount_bits.trailing_zeros(),
        extended: options.extended_l2,
    };
    let size = options.size.next_multiple_of(geometry.cluster());
    let tables = tables(&geometry, size);
    let full = matches!(
        options.preallocation,
        Preallocation::Falloc | Preallocation::Full
    );
    let data = match source {
        // How much of it is below already is not known: the worst is assumed.
        _ if full || options.backing.is_some() => size,
        None => 0,
        Some(source) => data(port, source, geometry.cluster()).await?,
    };
    Ok(Measure {
        required: tables + data,
        fully_allocated: tables + size,
    })
}

/// Bytes of the clusters that hold a disk's data.
async fn data(port: &Port, source: &Stack, cluster: u64) -> Result<u64> {
    let end = source.size();
    let (mut at, mut bytes) = (0, 0);
    // Clusters up to here are counted.
    let mut counted = 0;
    while at < end {
        let found = extent(port, source.layers(), at, end - at).await?;
        let next = at + found.len;
        if found.present && !found.zero {
            let first = (at / cluster * cluster).max(counted);
            let last = next.next_multiple_of(cluster);
            bytes += last.saturating_sub(first);
            counted = last;
        }
        at = next;
    }
    Ok(bytes)
}

/// Bytes of the header and of all tables for a disk whose every cluster is allocated.
fn tables(g: &Geometry, size: u64) -> u64 {
    let cluster = g.cluster();
    let l2 = (size / cluster * g.l2_entry()).next_multiple_of(cluster);
    let l1 = (l2 / cluster * 8).next_multiple_of(cluster);
    let counted = (cluster + l2 + l1 + size) / cluster;
    // Refblocks count themselves, and the table that names them.
    let (mut blocks, mut table) = (0, 0);
    loop {
        let b = (counted + blocks + table).div_ceil(g.refblock_entries());
        let t = g.clusters(b * 8);
        if (b, t) == (blocks, table) {
            break;
        }
        (blocks, table) = (b, t);
    }
    cluster + l2 + l1 + (blocks + table) * cluster
}
