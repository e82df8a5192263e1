//! A header made bytes, and the one in the file replaced.
//!
//! All that changes is in the first sector, which is written as a whole. What does not fit there (the
//! name of the layer below, extensions of others) is written before, where the header that is in
//! force has nothing: until the first sector says otherwise, the old header is whole.

use std::path::Path;

use super::Image;
use super::geometry::CLUSTER_BITS;
use super::header::{Compression, Header, LENGTH_V2, MAGIC, MAX_HEADER, MAX_NAME, extension};
use super::state::Space;
use crate::Result;
use crate::io::{Buffer, Port};

/// Bytes of the header that this engine writes, without extensions.
const LENGTH_V3: usize = 112;
const SECTOR: usize = 512;
/// A change of more sectors behind the first is refused: a name takes four at most.
const MOST_SECTORS: usize = 8;
const _: () = assert!(1 << *CLUSTER_BITS.start() >= SECTOR);

/// Which bytes a header refers to: up to the extensions' end, and its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    extensions: usize,
    name: (usize, usize),
}

impl Used {
    /// The bytes behind the first sector.
    fn behind(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let name = self.name.0..self.name.0 + self.name.1;
        [0..self.extensions, name]
            .into_iter()
            .map(|r| r.start.max(SECTOR)..r.end)
            .filter(|r| !r.is_empty())
    }

    fn end(self) -> usize {
        let name = match self.name {
            (_, 0) => 0,
            (at, len) => at + len,
        };
        self.extensions.max(name)
    }
}

impl Header {
    /// The header's bytes, whole sectors, with the name of the layer below at `name_at`, or behind
    /// the extensions if these go on there; and which bytes are used. Fails with what is too long.
    pub(super) fn layout(
        &self,
        name_at: usize,
    ) -> std::result::Result<(Vec<u8>, Used), &'static str> {
        // Names of features are a courtesy: they go where they would not fit into the sector that
        // is written as a whole.
        match self.serialize(true, name_at) {
            Ok((bytes, used)) if bytes.len() <= SECTOR => Ok((bytes, used)),
            _ => self.serialize(false, name_at),
        }
    }

    fn serialize(
        &self,
        feature_names: bool,
        name_at: usize,
    ) -> std::result::Result<(Vec<u8>, Used), &'static str> {
        let mut out = match self.version {
            ..3 => vec![0; LENGTH_V2],
            _ => vec![0; LENGTH_V3],
        };
        if self.version >= 3 {
            out[72..80].copy_from_slice(&self.incompatible.to_be_bytes());
            out[80..88].copy_from_slice(&self.compatible.to_be_bytes());
            out[88..96].copy_from_slice(&self.autoclear.to_be_bytes());
            out[96..100].copy_from_slice(&self.geometry.refcount_order.to_be_bytes());
            out[100..104].copy_from_slice(&(LENGTH_V3 as u32).to_be_bytes());
            out[104] = u8::from(self.compression == Compression::Zstd);
        }
        self.put_extensions(&mut out, feature_names);
        let extensions = out.len();
        // What is longer is not read when the image is opened.
        let most = self.geometry.cluster().min(MAX_HEADER) as usize;
        let mut name = (0, 0);
        if let Some(text) = &self.backing {
            let at = name_at.max(extensions);
            if text.len() > MAX_NAME || at + text.len() > most {
                return Err("the backing file's name is too long for the header");
            }
            name = (at, text.len());
            out.resize(at + text.len(), 0);
            out[at..].copy_from_slice(text.as_bytes());
            out[8..16].copy_from_slice(&(at as u64).to_be_bytes());
            out[16..20].copy_from_slice(&(text.len() as u32).to_be_bytes());
        }
        if out.len() > most {
            return Err("the header's extensions do not fit into a cluster");
        }
        out[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.version.to_be_bytes());
        out[20..24].copy_from_slice(&self.geometry.cluster_bits.to_be_bytes());
        out[24..32].copy_from_slice(&self.size.to_be_bytes());
        out[36..40].copy_from_slice(&self.l1_entries.to_be_bytes());
        out[40..48].copy_from_slice(&self.l1_offset.to_be_bytes());
        out[48..56].copy_from_slice(&self.reftable_offset.to_be_bytes());
        out[56..60].copy_from_slice(&self.reftable_clusters.to_be_bytes());
        out[60..64].copy_from_slice(&self.snapshots.to_be_bytes());
        out[64..72].copy_from_slice(&self.snapshots_offset.to_be_bytes());
        out.resize(out.len().next_multiple_of(SECTOR), 0);
        Ok((out, Used { extensions, name }))
    }

    fn put_extensions(&self, out: &mut Vec<u8>, feature_names: bool) {
        let mut put = |kind: u32, data: &[u8]| {
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&(data.len() as u32).to_be_bytes());
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            put(extension::BACKING_FORMAT, format.as_bytes());
        }
        if let Some(bitmaps) = &self.bitmaps {
            let mut data = [0; 24];
            data[0..4].copy_from_slice(&bitmaps.count.to_be_bytes());
            data[8..16].copy_from_slice(&bitmaps.directory_size.to_be_bytes());
            data[16..24].copy_from_slice(&bitmaps.directory_offset.to_be_bytes());
            put(extension::BITMAPS, &data);
        }
        for (kind, data) in &self.unknown {
            put(*kind, data);
        }
        if let Some(name) = &self.data_file {
            put(extension::DATA_FILE, name.as_bytes());
        }
        if feature_names && self.version >= 3 {
            put(extension::FEATURE_NAMES, &feature_table());
        }
        put(extension::END, &[]);
    }

    /// Which bytes of the file it refers to.
    fn used(&self) -> Used {
        let len = self.backing.as_ref().map_or(0, String::len);
        Used {
            extensions: self.extensions_end as usize,
            name: (self.backing_at as usize, len),
        }
    }

    /// The bytes of `self` to replace `old`, which is at the start of `now`. None if `old` would be
    /// in danger meanwhile. With `room`, the name is put behind so many bytes.
    fn replacing(
        &self,
        old: &Header,
        now: &[u8],
        room: usize,
        path: &Path,
    ) -> Option<(Vec<u8>, Used)> {
        let stays = self.backing == old.backing && old.backing_at as usize >= room;
        let stay = stays.then_some(old.backing_at as usize);
        let behind = old.used().end().max(room);
        for at in [Some(room), stay, Some(behind)].into_iter().flatten() {
            let Ok((mut bytes, used)) = self.layout(at) else {
                continue;
            };
            if bytes.len() <= SECTOR {
                return Some((bytes, used));
            }
            // What neither refers to stays as it is.
            let mut mixed = now.to_vec();
            mixed.resize(now.len().max(bytes.len()), 0);
            for range in used.behind() {
                mixed[range.clone()].copy_from_slice(&bytes[range]);
            }
            if stays_itself(now, &mixed, path) {
                let len = bytes.len();
                bytes[SECTOR..].copy_from_slice(&mixed[SECTOR..len]);
                return Some((bytes, used));
            }
        }
        None
    }
}

/// Whether the header in `now` stays what it is, whichever sectors become those of `then`, except for
/// the first.
fn stays_itself(now: &[u8], then: &[u8], path: &Path) -> bool {
    let read = |bytes: &[u8]| {
        let header = Header::parse(bytes, path).ok()?;
        Some(Header {
            extensions_end: 0,
            ..header
        })
    };
    let mut before = now.to_vec();
    before.resize(then.len(), 0);
    let sectors = before.chunks(SECTOR).zip(then.chunks(SECTOR)).enumerate();
    let changed: Vec<usize> = sectors
        .skip(1)
        .filter(|(_, (now, then))| now != then)
        .map(|(i, _)| i * SECTOR)
        .collect();
    if changed.len() > MOST_SECTORS {
        return false;
    }
    let old = read(&before);
    (1..1 << changed.len()).all(|set: u32| {
        let mut mixed = before.clone();
        for (_, at) in changed
            .iter()
            .enumerate()
            .filter(|(i, _)| set >> i & 1 != 0)
        {
            let end = (at + SECTOR).min(mixed.len());
            mixed[*at..end].copy_from_slice(&then[*at..end]);
        }
        read(&mixed) == old
    })
}

impl Image {
    /// Changes the header in the file, and then here. Until that is known to have worked, nothing
    /// else is written: see [`commit`](Self::commit). The caller holds [`Space::Header`] or is alone.
    pub(super) async fn change_header(
        &self,
        port: &Port,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        if self.state().header_unsure {
            self.put_header(port, self.header()).await?;
        }
        let mut header = self.header();
        change(&mut header);
        self.put_header(port, header).await
    }

    /// After a header that could not be written, or not to the end: makes the file's the one that is
    /// in force here.
    pub(super) async fn settle_header(&self, port: &Port) -> Result<()> {
        if !self.state().header_unsure {
            return Ok(());
        }
        let _lock = self.hold(Space::Header, 0, 0, true).await;
        self.put_header(port, self.header()).await
    }

    /// Replaces the header, durably.
    async fn put_header(&self, port: &Port, header: Header) -> Result<()> {
        let old = self.header();
        let short = |h: &Header| h.layout(0).is_ok_and(|(bytes, _)| bytes.len() <= SECTOR);
        let now = if short(&header) {
            Vec::new()
        } else {
            let len = MAX_HEADER.min(self.geometry().cluster());
            let buffer = Buffer::new(len.min(self.file().end()) as usize);
            port.read(self.file(), 0, buffer.span()).await?;
            buffer.bytes().to_vec()
        };
        let (_, wanted) = header.layout(0).map_err(|what| self.invalid(what))?;
        let found = header.replacing(&old, &now, 0, self.path());
        let Some((bytes, used)) = found else {
            // Longer extensions need the place of the name, which first goes elsewhere.
            let room = wanted.extensions.max(old.used().end());
            if old.backing.is_some()
                && (old.backing_at as usize) < wanted.extensions
                && let Some((bytes, used)) = old.replacing(&old, &now, room, self.path())
            {
                self.write_bytes(port, old, &bytes, used).await?;
                return Box::pin(self.put_header(port, header)).await;
            }
            return Err(self.invalid(
                "its header has no room for a change beside what is in force, so a power cut could destroy it",
            ));
        };
        self.write_bytes(port, header, &bytes, used).await
    }

    /// Writes the first sector last and durably before and after. The header is in force then.
    async fn write_bytes(
        &self,
        port: &Port,
        mut header: Header,
        bytes: &[u8],
        used: Used,
    ) -> Result<()> {
        let buffer = Buffer::from_slice(bytes);
        self.state().header_unsure = true;
        if bytes.len() > SECTOR {
            let rest = buffer.part(SECTOR, bytes.len() - SECTOR);
            port.write(self.file(), SECTOR as u64, rest).await?;
        }
        port.flush(self.file()).await?;
        port.write(self.file(), 0, buffer.part(0, SECTOR)).await?;
        port.flush(self.file()).await?;
        header.backing_at = used.name.0 as u64;
        header.extensions_end = used.extensions as u64;
        let mut state = self.state();
        state.header = header;
        state.header_unsure = false;
        Ok(())
    }
}

/// Names for readers that do not know a feature.
fn feature_table() -> Vec<u8> {
    let names: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut table = Vec::with_capacity(names.len() * 48);
    for (kind, bit, name) in names {
        let mut entry = [0; 48];
        entry[0] = kind;
        entry[1] = bit;
        entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
        table.extend_from_slice(&entry);
    }
    table
}
