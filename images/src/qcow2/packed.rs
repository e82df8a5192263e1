//! Writing many compressed clusters at once.

use super::Image;
use super::entry::Entry;
use super::state::{Freed, Space};
use crate::Result;
use crate::io::{Buffer, Port, join};

/// One cluster, compressed: its guest offset and its packed bytes.
pub type PackedCluster = (u64, Vec<u8>);

impl Image {
    /// Writes whole clusters compressed, in the order of their offsets, which are those of no other
    /// write under way. The packed bytes are put one behind the other and go to the file in few
    /// large pieces. What cannot be put so is given back, to be written plainly.
    pub async fn write_packed_clusters(
        &self,
        port: &Port,
        clusters: Vec<PackedCluster>,
    ) -> Result<Vec<u64>> {
        self.guard_bitmaps(port).await?;
        let g = self.geometry();
        let bits = g.cluster_bits;
        let (Some(first), Some(last)) = (clusters.first(), clusters.last()) else {
            return Ok(Vec::new());
        };
        let _clusters = self
            .hold(Space::Cluster, first.0 >> bits, last.0 >> bits, true)
            .await;
        // A cluster number that no disk has: whoever holds it decides where packed data goes.
        let lock = self.hold(Space::Cluster, u64::MAX, u64::MAX, true).await;
        self.forget_unpacked();
        let mut refused = Vec::new();
        let mut placed: Vec<(u64, Entry)> = Vec::new();
        // Runs of packed data without gaps: where, and the bytes.
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (offset, packed) in clusters {
            let index = (offset / g.l2_coverage()) as usize;
            self.own_table(port, index).await?;
            let place = self.allocate_packed(port, packed.len() as u64).await?;
            let Some((at, entry)) = place else {
                refused.push(offset);
                continue;
            };
            placed.push((offset, entry));
            match runs.last_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == at => {
                    bytes.extend_from_slice(&packed);
                }
                _ => runs.push((at, packed)),
            }
        }
        drop(lock);
        let writes: Vec<_> = runs
            .iter()
            .map(|(at, bytes)| port.write(self.file(), *at, Buffer::from_slice(bytes).span()))
            .collect();
        join(writes).await?;
        for (offset, entry) in placed {
            self.with(port, |s| {
                let old = s.entry(offset)?.unwrap_or_default();
                s.set_entry(offset, entry)?;
                if let Some((first, count)) = old.references(&g, false) {
                    s.freed.push(Freed { first, count });
                }
                Ok(())
            })
            .await?;
        }
        Ok(refused)
    }
}
