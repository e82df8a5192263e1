//! Persistent dirty bitmaps: what tools do with them, and how their content is read and written.
//!
//! Nothing is changed in place. A new directory, and what is new below it, is durable before the
//! header's first sector names it; what is superfluous then is given back after. A power cut leaves
//! leaks at most.

use super::Image;
use super::directory::{
    Bitmap, DIRTY_TRACKING, GRANULARITY_BITS, MAX_BITMAP, MAX_BITMAPS, MAX_DIRECTORY, MAX_NAME,
    OFFSET, ONES, flag, read_bitmap_table, read_directory,
};
use super::header::{BitmapsExtension, autoclear};
use super::state::{Freed, Space};
use super::tracker::Tracker;
use crate::io::{Buffer, Port};
use crate::{Error, Result};

/// Bitmaps of at most so many bytes are counted to be shown.
const CHEAP: u64 = 1 << 20;
/// The longest name of a backing format that leaves the bitmaps in the header's first sector: that
/// has 112 bytes of fields, 8 before the name, and 32 for the bitmaps.
const MAX_FORMAT: usize = 512 - 112 - 8 - 32;

/// A persistent bitmap, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of the disk for each bit.
    pub granularity: u64,
    /// It was not stored, or is being tracked right now: its content means nothing.
    pub in_use: bool,
    /// It is to track changes whenever the image is written.
    pub auto: bool,
    /// It does: it is so and not in use.
    pub enabled: bool,
    /// Bytes that are dirty, where that is quickly said.
    pub dirty: Option<u64>,
}

impl Image {
    /// The persistent bitmaps. Those in the file that are not consistent with its data are not shown.
    pub async fn bitmaps(&self, port: &Port) -> Result<Vec<BitmapInfo>> {
        let size = self.size();
        let mut shown = Vec::new();
        for bitmap in self.directory(port).await? {
            let cheap = bitmap.usable() && bitmap.memory(size) <= CHEAP;
            shown.push(BitmapInfo {
                name: String::from_utf8_lossy(&bitmap.name).into_owned(),
                granularity: 1 << bitmap.granularity_bits,
                in_use: bitmap.in_use(),
                auto: bitmap.auto(),
                enabled: bitmap.auto() && !bitmap.in_use(),
                dirty: if cheap {
                    Some(self.read_bitmap(port, &bitmap).await?.map().dirty())
                } else {
                    None
                },
            });
        }
        Ok(shown)
    }

    /// Makes an empty bitmap that tracks from now on. `granularity` is in bytes: a power of two from
    /// 512 bytes to 2 GiB.
    pub async fn bitmap_add(&self, port: &Port, name: &str, granularity: u64) -> Result<()> {
        let _lock = self.hold(Space::Bitmaps, 0, 0, true).await;
        let header = self.header();
        if header.version < 3 {
            return Err(self.invalid("bitmaps need version 3 (compat=1.1)"));
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(self.invalid(format!(
                "a bitmap's name has 1 to {MAX_NAME} bytes, and this one has {}",
                name.len()
            )));
        }
        let bits = granularity.checked_ilog2().unwrap_or(0);
        if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&bits) {
            return Err(self.invalid(format!(
                "the granularity {granularity} is not a power of two from 512 to 2147483648"
            )));
        }
        let mut list = self.directory(port).await?;
        if list.iter().any(|b| b.name == name.as_bytes()) {
            return Err(self.invalid(format!(
                "there is a bitmap \u{201c}{}\u{201d} already",
                name.escape_debug()
            )));
        }
        if list.len() >= MAX_BITMAPS {
            return Err(self.invalid(format!("it has {MAX_BITMAPS} bitmaps, the most")));
        }
        if self.size() == 0 {
            return Err(self.invalid("a disk of 0 bytes has nothing to track"));
        }
        let bytes = Tracker::bytes_for(self.size(), bits);
        let entries = self.geometry().clusters(bytes);
        if entries * self.geometry().cluster() > MAX_BITMAP {
            return Err(self.invalid("the bitmap would be too large: take a larger granularity"));
        }
        list.push(Bitmap {
            table: self.write_new(port, &vec![0; entries as usize * 8]).await?,
            entries: entries as u32,
            flags: flag::AUTO,
            kind: DIRTY_TRACKING,
            granularity_bits: bits as u8,
            extra: Vec::new(),
            name: name.as_bytes().to_vec(),
        });
        self.switch_directory(port, &list, Vec::new()).await
    }

    /// Removes a bitmap, consistent or not.
    pub async fn bitmap_remove(&self, port: &Port, name: &str) -> Result<()> {
        let _lock = self.hold(Space::Bitmaps, 0, 0, true).await;
        let mut list = self.directory(port).await?;
        let bitmap = list.remove(self.find_bitmap(&list, name)?);
        let freed = self.bitmap_clusters(port, &bitmap).await?;
        self.switch_directory(port, &list, freed).await
    }

    /// Makes a bitmap empty.
    pub async fn bitmap_clear(&self, port: &Port, name: &str) -> Result<()> {
        let _lock = self.hold(Space::Bitmaps, 0, 0, true).await;
        let mut list = self.directory(port).await?;
        let at = self.find_consistent(&list, name)?;
        let freed = self.bitmap_clusters(port, &list[at]).await?;
        let table = vec![0; list[at].entries as usize * 8];
        list[at].table = self.write_new(port, &table).await?;
        self.switch_directory(port, &list, freed).await
    }

    /// Makes a bitmap track changes from now on, or no more.
    pub async fn bitmap_enable(&self, port: &Port, name: &str, on: bool) -> Result<()> {
        let _lock = self.hold(Space::Bitmaps, 0, 0, true).await;
        let mut list = self.directory(port).await?;
        let at = self.find_consistent(&list, name)?;
        if list[at].auto() == on {
            return Ok(());
        }
        list[at].flags ^= flag::AUTO;
        self.switch_directory(port, &list, Vec::new()).await
    }

    fn find_bitmap(&self, list: &[Bitmap], name: &str) -> Result<usize> {
        let found = list.iter().position(|b| b.name == name.as_bytes());
        found.ok_or_else(|| {
            self.invalid(format!(
                "there is no bitmap \u{201c}{}\u{201d}",
                name.escape_debug()
            ))
        })
    }

    fn find_consistent(&self, list: &[Bitmap], name: &str) -> Result<usize> {
        let at = self.find_bitmap(list, name)?;
        if list[at].in_use() {
            return Err(self.invalid(format!(
                "the bitmap \u{201c}{}\u{201d} was not stored when the image was last written: it can only be removed",
                name.escape_debug()
            )));
        }
        Ok(at)
    }

    /// The bitmaps, if they are consistent.
    pub(super) async fn directory(&self, port: &Port) -> Result<Vec<Bitmap>> {
        let header = self.header();
        match &header.bitmaps {
            Some(extension) if header.autoclear & autoclear::BITMAPS != 0 => {
                read_directory(self, port, extension).await
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The clusters of a bitmap: its data and its table.
    pub(super) async fn bitmap_clusters(&self, port: &Port, bitmap: &Bitmap) -> Result<Vec<Freed>> {
        let g = self.geometry();
        let table = read_bitmap_table(self, port, bitmap).await?;
        let data = table.iter().map(|e| e & OFFSET).filter(|o| *o != 0);
        let data = data.map(|offset| (offset, 1));
        let own = (bitmap.table, g.clusters(u64::from(bitmap.entries) * 8));
        let freed = |(offset, count)| Freed {
            first: offset >> g.cluster_bits,
            count,
        };
        Ok(data.chain([own]).map(freed).collect())
    }

    /// Reads a bitmap's content.
    pub(super) async fn read_bitmap(&self, port: &Port, bitmap: &Bitmap) -> Result<Tracker> {
        let g = self.geometry();
        let size = self.size();
        let expected = g.clusters(bitmap.memory(size));
        if u64::from(bitmap.entries) != expected {
            return Err(self.corrupt(format!(
                "bitmap \u{201c}{}\u{201d} has a table of {} entries, and the disk's size needs {expected}",
                bitmap.shown(),
                bitmap.entries
            )));
        }
        let table = read_bitmap_table(self, port, bitmap).await?;
        let tracker = bitmap.tracker(size);
        let mut buffer = Buffer::new(g.cluster() as usize);
        for (i, entry) in table.iter().enumerate() {
            match *entry {
                0 => continue,
                ONES => buffer.bytes_mut().fill(0xff),
                offset => port.read(self.file(), offset, buffer.span()).await?,
            }
            tracker
                .map()
                .fill((i as u64) << g.cluster_bits, buffer.bytes());
        }
        Ok(tracker)
    }

    /// Writes a bitmap's content to new clusters and makes its entry name them. Every cluster that is
    /// taken is put on `new`.
    pub(super) async fn write_bitmap(
        &self,
        port: &Port,
        bitmap: &mut Bitmap,
        tracker: &Tracker,
        new: &mut Vec<Freed>,
    ) -> Result<()> {
        let g = self.geometry();
        let bytes = bitmap.memory(tracker.map().size());
        let entries = g.clusters(bytes);
        if entries == 0 || entries * g.cluster() > MAX_BITMAP {
            return Err(self.invalid(format!(
                "the bitmap \u{201c}{}\u{201d} would have {bytes} bytes",
                bitmap.shown()
            )));
        }
        let mut table = Vec::new();
        let mut part = vec![0; g.cluster() as usize];
        for i in 0..entries {
            tracker.map().copy_to(i << g.cluster_bits, &mut part);
            let entry = if part.iter().all(|b| *b == 0) {
                0
            } else if part.iter().all(|b| *b == 0xff) {
                ONES
            } else {
                let offset = self.write_new(port, &part).await?;
                new.push(Freed {
                    first: offset >> g.cluster_bits,
                    count: 1,
                });
                offset
            };
            table.extend_from_slice(&entry.to_be_bytes());
        }
        bitmap.table = self.write_new(port, &table).await?;
        bitmap.entries = entries as u32;
        new.push(Freed {
            first: bitmap.table >> g.cluster_bits,
            count: g.clusters(entries * 8),
        });
        Ok(())
    }

    /// Makes `list` the directory, durably, and gives `freed` back. The caller holds
    /// [`Space::Bitmaps`].
    pub(super) async fn switch_directory(
        &self,
        port: &Port,
        list: &[Bitmap],
        mut freed: Vec<Freed>,
    ) -> Result<()> {
        if self.file().readonly() {
            return Err(Error::ReadOnly {
                path: self.path().to_owned(),
            });
        }
        // The extension lies behind that with the format of the layer below, and must be switched with
        // the first sector.
        let format = self.header().backing_format;
        if format.is_some_and(|f| f.len() > MAX_FORMAT) {
            return Err(self.invalid("its header has no room for bitmaps"));
        }
        let g = self.geometry();
        let mut bytes = Vec::new();
        list.iter().for_each(|b| b.store(&mut bytes));
        if bytes.len() as u64 > MAX_DIRECTORY {
            return Err(self.invalid("its bitmap directory is full"));
        }
        let offset = self.write_new(port, &bytes).await?;
        self.commit(port, true, true).await?;
        let lock = self.hold(Space::Header, 0, 0, true).await;
        let old = self.header();
        self.change_header(port, |header| {
            header.bitmaps = (!list.is_empty()).then_some(BitmapsExtension {
                count: list.len() as u32,
                directory_size: bytes.len() as u64,
                directory_offset: offset,
            });
            header.autoclear &= !autoclear::BITMAPS;
            if !list.is_empty() {
                header.autoclear |= autoclear::BITMAPS;
            }
        })
        .await?;
        drop(lock);
        if let Some(extension) = old.bitmaps
            && old.autoclear & autoclear::BITMAPS != 0
        {
            freed.push(Freed {
                first: extension.directory_offset >> g.cluster_bits,
                count: g.clusters(extension.directory_size),
            });
        }
        {
            let mut state = self.state();
            state.freed.append(&mut freed);
            state.unguarded = list.iter().any(|b| b.auto() && !b.in_use());
        }
        // What is freed is released after one round, and its refcounts are written by the next.
        self.commit(port, true, true).await?;
        self.commit(port, true, true).await
    }
}
