//! The bitmap directory and the tables that it names (qcow2 specification, "Bitmaps"), as they are in
//! the file.

use super::Image;
use super::header::{BitmapsExtension, be32, be64};
use super::image::read_table;
use super::tracker::Tracker;
use crate::Result;
use crate::io::{Buffer, Port};

/// The most bitmaps, as in QEMU.
pub(super) const MAX_BITMAPS: usize = 65535;
/// The most bytes of the directory.
pub(super) const MAX_DIRECTORY: u64 = 64 << 20;
/// The most bytes of one bitmap in the file, as in QEMU.
pub(super) const MAX_BITMAP: u64 = 512 << 20;
pub(super) const MAX_NAME: usize = 1023;
/// log2 of the bytes of the disk that a bit may stand for.
pub(super) const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 9..=31;
/// Bytes of a directory entry before its extra data.
const FIXED: usize = 24;

/// Flags of a directory entry.
pub(super) mod flag {
    /// It is being changed, or was when power was lost: it is not to be used.
    pub const IN_USE: u32 = 1;
    /// It tracks all changes.
    pub const AUTO: u32 = 1 << 1;
    /// It may be used by those who do not know its extra data.
    pub const EXTRA_COMPATIBLE: u32 = 1 << 2;
    pub const KNOWN: u32 = IN_USE | AUTO | EXTRA_COMPATIBLE;
}

/// In a table: this cluster of the bitmap is all ones. The rest of the word is 0 then.
pub(super) const ONES: u64 = 1;
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The only type: a dirty tracking bitmap.
pub(super) const DIRTY_TRACKING: u8 = 1;

/// A directory entry.
#[derive(Debug, Clone)]
pub(super) struct Bitmap {
    pub table: u64,
    pub entries: u32,
    pub flags: u32,
    pub kind: u8,
    pub granularity_bits: u8,
    pub extra: Vec<u8>,
    pub name: Vec<u8>,
}

impl Bitmap {
    pub fn parse(bytes: &[u8]) -> Option<(Bitmap, usize)> {
        let fixed = bytes.get(..FIXED)?;
        let name_len = usize::from(u16::from_be_bytes([fixed[18], fixed[19]]));
        let extra_len = be32(fixed, 20) as usize;
        let end = extra_len.checked_add(FIXED + name_len)?;
        let (extra, name) = bytes.get(FIXED..end)?.split_at_checked(extra_len)?;
        let bitmap = Bitmap {
            table: be64(fixed, 0),
            entries: be32(fixed, 8),
            flags: be32(fixed, 12),
            kind: fixed[16],
            granularity_bits: fixed[17],
            extra: extra.to_vec(),
            name: name.to_vec(),
        };
        Some((bitmap, end.checked_next_multiple_of(8)?))
    }

    pub fn store(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.table.to_be_bytes());
        out.extend_from_slice(&self.entries.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&[self.kind, self.granularity_bits]);
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(&self.name);
        out.resize(out.len().next_multiple_of(8), 0);
    }

    /// What is wrong with the entry, if anything.
    fn defect(&self, cluster: u64) -> Option<&'static str> {
        let bits = u32::from(self.granularity_bits);
        if self.table == 0 || !self.table.is_multiple_of(cluster) {
            Some("has its table not at a cluster's start")
        } else if self.entries == 0 || u64::from(self.entries) * cluster > MAX_BITMAP {
            Some("has a table of a wrong length")
        } else if !GRANULARITY_BITS.contains(&bits) {
            Some("has a granularity not between 512 bytes and 2 GiB")
        } else if self.name.len() > MAX_NAME {
            Some("has a name of more than 1023 bytes")
        } else if self.flags & !flag::KNOWN != 0 {
            Some("has unknown flags")
        } else {
            None
        }
    }

    pub fn in_use(&self) -> bool {
        self.flags & flag::IN_USE != 0
    }

    pub fn set_in_use(&mut self, on: bool) {
        self.flags = self.flags & !flag::IN_USE | if on { flag::IN_USE } else { 0 };
    }

    pub fn auto(&self) -> bool {
        self.flags & flag::AUTO != 0
    }

    /// Whether its content may be used by this engine.
    pub fn usable(&self) -> bool {
        let known = self.extra.is_empty() || self.flags & flag::EXTRA_COMPATIBLE != 0;
        self.kind == DIRTY_TRACKING && known && !self.in_use()
    }

    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name)
            .escape_debug()
            .to_string()
    }

    /// An empty tracker for it.
    pub fn tracker(&self, size: u64) -> Tracker {
        let bits = u32::from(self.granularity_bits);
        Tracker::new(self.name.clone(), bits, self.auto(), size)
    }

    /// Bytes of memory for its tracker.
    pub fn memory(&self, size: u64) -> u64 {
        Tracker::bytes_for(size, self.granularity_bits.into())
    }
}

/// Reads the directory: as many bytes as it has.
pub(super) async fn read_directory(
    image: &Image,
    port: &Port,
    extension: &BitmapsExtension,
) -> Result<Vec<Bitmap>> {
    let BitmapsExtension {
        count,
        directory_size: size,
        directory_offset: offset,
    } = *extension;
    let cluster = image.geometry().cluster();
    let there = image.file().end().saturating_sub(offset);
    let count = count as usize;
    if !offset.is_multiple_of(cluster) || offset == 0 || size > there.min(MAX_DIRECTORY) {
        return Err(image.corrupt(format!(
            "the bitmap directory has {size} bytes at {offset:#x}"
        )));
    }
    if count > MAX_BITMAPS {
        return Err(image.corrupt(format!("there are {count} bitmaps, above {MAX_BITMAPS}")));
    }
    let buffer = Buffer::new(size as usize);
    port.read(image.file(), offset, buffer.span()).await?;
    let mut list: Vec<Bitmap> = Vec::new();
    let mut at = 0;
    while list.len() < count {
        let rest = buffer.bytes().get(at..).unwrap_or_default();
        let Some((bitmap, n)) = Bitmap::parse(rest) else {
            return Err(image.corrupt(format!(
                "the bitmap directory ends in bitmap {} of {count}",
                list.len() + 1
            )));
        };
        if let Some(what) = bitmap.defect(cluster) {
            return Err(image.corrupt(format!("bitmap \u{201c}{}\u{201d} {what}", bitmap.shown())));
        }
        list.push(bitmap);
        at += n;
    }
    Ok(list)
}

/// Where the directory, the tables and the data of all bitmaps are: offsets and bytes.
pub(super) async fn places(
    image: &Image,
    port: &Port,
    extension: &BitmapsExtension,
) -> Result<Vec<(u64, u64)>> {
    let list = read_directory(image, port, extension).await?;
    let mut places = vec![(extension.directory_offset, extension.directory_size)];
    let mut tables: Vec<(u64, u64)> = list
        .iter()
        .map(|b| (b.table, u64::from(b.entries) * 8))
        .collect();
    tables.sort_unstable();
    // One table for many bitmaps would make this list much larger than the file.
    if tables.windows(2).any(|w| w[0].0 + w[0].1 > w[1].0) {
        return Err(image.corrupt("two bitmaps have the same table"));
    }
    for bitmap in &list {
        places.push((bitmap.table, u64::from(bitmap.entries) * 8));
        let cluster = image.geometry().cluster();
        let table = read_bitmap_table(image, port, bitmap).await?;
        let data = table.iter().map(|e| e & OFFSET).filter(|o| *o != 0);
        places.extend(data.map(|o| (o, cluster)));
    }
    Ok(places)
}

pub(super) async fn read_bitmap_table(
    image: &Image,
    port: &Port,
    bitmap: &Bitmap,
) -> Result<Vec<u64>> {
    let cluster = image.geometry().cluster();
    let end = image.file().end().next_multiple_of(cluster);
    let bytes = u64::from(bitmap.entries) * 8;
    let table = read_table(port, image.file(), bitmap.table, bytes).await?;
    let wrong = |e: &&u64| match **e {
        0 | ONES => false,
        e => e & !OFFSET != 0 || !e.is_multiple_of(cluster) || e >= end,
    };
    if let Some(entry) = table.iter().find(wrong) {
        return Err(image.corrupt(format!(
            "bitmap \u{201c}{}\u{201d} has the entry {entry:#x}",
            bitmap.shown()
        )));
    }
    Ok(table)
}

#[cfg(test)]
#[path = "directory_test.rs"]
mod tests;
