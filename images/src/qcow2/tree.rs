//! What an L1 table leads to, as a whole: counted, its refcounts raised and lowered, its COPIED flags
//! made right. For one who has the image to himself, with nothing left to write back.

use super::Image;
use super::counts::Counts;
use super::entry::{COPIED, Entry, OFFSET};
use super::state::SECTOR_ENTRIES;
use crate::io::{Buffer, Port, join};
use crate::{Error, Result};

impl Image {
    /// Counts what the tables of an L1 table refer to, the L2 tables too. 4 bytes of memory for each
    /// cluster of the file, and each table is read once.
    pub(super) async fn count_tree(&self, port: &Port, l1: &[u64]) -> Result<Counts> {
        let g = self.geometry();
        let version = self.header().version;
        let end = if self.file().block_device() {
            u64::MAX
        } else {
            g.clusters(self.file().end())
        };
        let mut tables = Counts::default();
        let mut counts = Counts::default();
        let mut buffer = Buffer::new(g.cluster() as usize);
        for (i, table) in l1.iter().map(|e| e & OFFSET).enumerate() {
            if table == 0 {
                continue;
            }
            let cluster = table >> g.cluster_bits;
            let sane = table.is_multiple_of(g.cluster()) && cluster < end;
            if !sane || tables.get(cluster) > 0 {
                return Err(self.corrupt(format!("L1 entry {i} names an L2 table at {table:#x}")));
            }
            tables.add(cluster);
            counts.add(cluster);
            port.read(self.file(), table, buffer.span()).await?;
            for j in 0..g.l2_entries() {
                let entry = Entry::read(buffer.bytes_mut(), &g, j);
                if let Some(what) = entry.defect(&g, version, false) {
                    return Err(self.corrupt(format!("entry {j} of L2 table {i} {what}")));
                }
                let Some((first, count)) = entry.references(&g, false) else {
                    continue;
                };
                if first + count > end.saturating_add(1) {
                    return Err(self.corrupt(format!(
                        "entry {j} of L2 table {i} is beyond the file's end"
                    )));
                }
                (first..first + count).for_each(|cluster| counts.add(cluster));
            }
        }
        Ok(counts)
    }

    /// Refuses what refcounts of this width cannot count, before anything changes.
    pub(super) async fn check_room(&self, port: &Port, tree: &Counts) -> Result<()> {
        let g = self.geometry();
        for (cluster, more) in tree.iter() {
            let count = self.with(port, |s| s.refcount(cluster)).await?;
            if count == 0 {
                return Err(self.corrupt(format!("cluster {cluster} is in use, with refcount 0")));
            }
            if more > g.refcount_max() - count.min(g.refcount_max()) {
                return Err(Error::Unsupported {
                    path: self.path().to_owned(),
                    what: format!(
                        "its refcounts of {} bits cannot count one more snapshot: convert it with refcount_bits=16 or more",
                        g.refcount_bits()
                    ),
                });
            }
        }
        Ok(())
    }

    /// Raises or lowers refcounts by what was counted. What becomes free is given back.
    pub(super) async fn change_refcounts(
        &self,
        port: &Port,
        tree: &Counts,
        raise: bool,
    ) -> Result<()> {
        let mut free: Option<(u64, u64)> = None;
        for (cluster, n) in tree.iter() {
            let left = self
                .with(port, |s| {
                    let count = s.refcount(cluster)?;
                    let count = if raise {
                        count.saturating_add(n)
                    } else {
                        count.saturating_sub(n)
                    };
                    s.set_refcount(cluster, count)?;
                    Ok(count)
                })
                .await?;
            if left > 0 {
                continue;
            }
            match &mut free {
                Some((first, count)) if *first + *count == cluster => *count += 1,
                _ => self.punch(port, free.replace((cluster, 1))).await?,
            }
        }
        self.punch(port, free).await?;
        self.commit(port, true, true).await
    }

    async fn punch(&self, port: &Port, run: Option<(u64, u64)>) -> Result<()> {
        let bits = self.geometry().cluster_bits;
        match run {
            Some((first, count)) => port.punch(self.file(), first << bits, count << bits).await,
            None => Ok(()),
        }
    }

    /// Gives back the clusters of a table that the header named before.
    pub(super) async fn drop_range(&self, port: &Port, offset: u64, bytes: u64) -> Result<()> {
        let g = self.geometry();
        let first = offset >> g.cluster_bits;
        let mut range = Counts::default();
        (first..first + g.clusters(bytes)).for_each(|cluster| range.add(cluster));
        self.change_refcounts(port, &range, false).await
    }

    /// Writes bytes to new clusters; durable and counted with the next commit.
    pub(super) async fn write_new(&self, port: &Port, bytes: &[u8]) -> Result<u64> {
        let g = self.geometry();
        let clusters = g.clusters(bytes.len() as u64);
        if clusters == 0 {
            return Ok(0);
        }
        let first = self.allocate_run(port, clusters).await?;
        let mut buffer = Buffer::new((clusters << g.cluster_bits) as usize);
        buffer.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let written = port.write(self.file(), first << g.cluster_bits, buffer.span());
        if let Err(e) = written.await {
            self.give_back(port, first, clusters).await;
            return Err(e);
        }
        Ok(first << g.cluster_bits)
    }

    /// Makes the COPIED flags of the active tables say whether the refcount is one. In a table that
    /// is shared, nothing is alone.
    pub(super) async fn set_copied(&self, port: &Port) -> Result<()> {
        let g = self.geometry();
        self.state().l2.clear();
        let l1 = self.state().l1.clone();
        let mut buffer = Buffer::new(g.cluster() as usize);
        for (i, word) in l1.iter().enumerate() {
            let table = word & OFFSET;
            if table == 0 {
                continue;
            }
            let alone = self.alone(port, table).await?;
            if alone != (word & COPIED != 0) {
                let mut state = self.state();
                state.l1[i] ^= COPIED;
                state.l1_dirty.insert(i / SECTOR_ENTRIES);
            }
            port.read(self.file(), table, buffer.span()).await?;
            let mut changed = false;
            for j in 0..g.l2_entries() {
                let mut entry = Entry::read(buffer.bytes(), &g, j);
                let is = match entry.host(false) {
                    Some(host) => alone && self.alone(port, host).await?,
                    None => continue,
                };
                if is != entry.copied() {
                    entry.word ^= COPIED;
                    entry.store(buffer.bytes_mut(), &g, j);
                    changed = true;
                }
            }
            if changed {
                join([port.write(self.file(), table, buffer.span())]).await?;
            }
        }
        self.commit(port, true, true).await
    }

    async fn alone(&self, port: &Port, offset: u64) -> Result<bool> {
        let cluster = offset >> self.geometry().cluster_bits;
        Ok(self.with(port, |s| s.refcount(cluster)).await? == 1)
    }
}
