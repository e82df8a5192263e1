//! The header (qcow2 specification, "General" and "Header extensions").

use std::path::Path;

use super::geometry::{CLUSTER_BITS, Geometry};
use crate::{Error, Result};

/// The first bytes of every qcow2 image.
pub const MAGIC: u32 = 0x5146_49fb;
/// Bytes that hold every header: the largest cluster would do, but headers of more than this are
/// refused.
pub const MAX_HEADER: u64 = 64 << 10;
/// The L1 table may have at most this many bytes, as in QEMU.
pub const MAX_L1: u64 = 32 << 20;
/// The refcount table may have at most this many bytes, as in QEMU.
pub const MAX_REFTABLE: u64 = 8 << 20;
/// The longest name of a backing file.
pub const MAX_NAME: usize = 1023;
/// Bytes of a header of version 2.
pub(super) const LENGTH_V2: usize = 72;

/// Bits that a reader must know.
pub mod incompatible {
    /// Refcounts may be wrong: they are rebuilt before anything is written.
    pub const DIRTY: u64 = 1;
    /// The image is known to be corrupt.
    pub const CORRUPT: u64 = 1 << 1;
    /// The guest's data is in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type is not zlib.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries describe subclusters.
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// All that this engine knows.
    pub const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Bits that a reader may ignore.
pub mod compatible {
    /// Refcounts may be written late.
    pub const LAZY_REFCOUNTS: u64 = 1;
}

/// Bits that a writer who does not know them clears.
pub mod autoclear {
    /// The bitmaps are consistent with the data.
    pub const BITMAPS: u64 = 1;
    /// The external data file can be read as a raw image.
    pub const RAW_DATA: u64 = 1 << 1;
}

pub(super) mod extension {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const BITMAPS: u32 = 0x2385_2875;
    pub const ENCRYPTION: u32 = 0x0537_be77;
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Raw deflate with a window of 4 KiB.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
}

impl Compression {
    /// The name in options and in `info`.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Zlib => "zlib",
            Compression::Zstd => "zstd",
        }
    }
}

/// Where the bitmap directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Bitmaps in it.
    pub count: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Its offset, aligned to a cluster.
    pub directory_offset: u64,
}

/// A parsed header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Cluster size, refcount width, kind of L2 entries.
    pub geometry: Geometry,
    /// Guest disk size in bytes.
    pub size: u64,
    /// Entries of the L1 table.
    pub l1_entries: u32,
    /// Offset of the L1 table.
    pub l1_offset: u64,
    /// Offset of the refcount table.
    pub reftable_offset: u64,
    /// Its length in clusters.
    pub reftable_clusters: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Offset of the snapshot table.
    pub snapshots_offset: u64,
    /// [`incompatible`] bits.
    pub incompatible: u64,
    /// [`compatible`] bits.
    pub compatible: u64,
    /// [`autoclear`] bits.
    pub autoclear: u64,
    /// Of compressed clusters.
    pub compression: Compression,
    /// The name of the backing file. It is shown, never opened.
    pub backing: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
    /// The name of the external data file. It is shown, never opened.
    pub data_file: Option<String>,
    /// Where the bitmaps are.
    pub bitmaps: Option<BitmapsExtension>,
    /// Extensions that this engine does not know, kept as they are.
    pub unknown: Vec<(u32, Vec<u8>)>,
    /// Where the backing file's name is in the file.
    pub backing_at: u64,
    /// Where the extensions end in the file, with the mark of their end.
    pub extensions_end: u64,
}

impl Header {
    /// Whether an incompatible bit is set.
    pub fn needs(&self, bit: u64) -> bool {
        self.incompatible & bit != 0
    }

    /// Whether refcounts are written late.
    pub fn lazy(&self) -> bool {
        self.compatible & compatible::LAZY_REFCOUNTS != 0
    }

    /// Whether the guest's data is in another file.
    pub fn external(&self) -> bool {
        self.needs(incompatible::DATA_FILE)
    }

    /// Parses the start of a file. `path` is for errors.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Header> {
        let corrupt = |what: String| Error::Corrupt {
            path: path.to_owned(),
            what,
        };
        let unsupported = |what: String| Error::Unsupported {
            path: path.to_owned(),
            what,
        };
        if bytes.len() < 4 || be32(bytes, 0) != MAGIC {
            return Err(Error::NotQcow2 {
                path: path.to_owned(),
            });
        }
        if bytes.len() < LENGTH_V2 {
            return Err(corrupt(format!(
                "the header ends after {} bytes",
                bytes.len()
            )));
        }
        let version = be32(bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(unsupported(format!(
                "it has version {version}, and only 2 and 3 are known"
            )));
        }
        let cluster_bits = be32(bytes, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(corrupt(format!(
                "cluster_bits is {cluster_bits}, which is not between 9 and 21"
            )));
        }
        match be32(bytes, 32) {
            0 => {}
            1 => {
                return Err(unsupported(
                    "it is encrypted with AES: decrypt it with `qemu-img convert` first".into(),
                ));
            }
            2 => {
                return Err(unsupported(
                    "it is encrypted with LUKS: decrypt it with `qemu-img convert` first".into(),
                ));
            }
            n => {
                return Err(unsupported(format!(
                    "it is encrypted by the unknown method {n}"
                )));
            }
        }
        let (mut incompatible, mut compatible, mut autoclear) = (0, 0, 0);
        let (mut refcount_order, mut length, mut compression) = (4, LENGTH_V2 as u32, 0);
        if version >= 3 {
            if bytes.len() < 104 {
                return Err(corrupt(format!(
                    "the header ends after {} bytes",
                    bytes.len()
                )));
            }
            incompatible = be64(bytes, 72);
            compatible = be64(bytes, 80);
            autoclear = be64(bytes, 88);
            refcount_order = be32(bytes, 96);
            length = be32(bytes, 100);
            if length < 104 || !length.is_multiple_of(8) || u64::from(length) > 1 << cluster_bits {
                return Err(corrupt(format!("the header's length is {length}")));
            }
            if length > 104 {
                compression = bytes.get(104).copied().unwrap_or(0);
            }
        }
        // The name of the layer below ends the extensions, too: version 2 may have no other mark.
        let end = match be64(bytes, 8) {
            0 => 1 << cluster_bits,
            name => name.min(1 << cluster_bits) as usize,
        };
        let extensions = Extensions::parse(bytes, length as usize, end)
            .map_err(|what| corrupt(what.to_owned()))?;
        let unknown = incompatible & !self::incompatible::KNOWN;
        if unknown != 0 {
            let names: Vec<String> = (0..64)
                .filter(|bit| unknown & 1 << bit != 0)
                .map(|bit| extensions.feature_name(bit))
                .collect();
            return Err(unsupported(format!(
                "it needs features that are not known here: {}",
                names.join(", ")
            )));
        }
        if extensions.encrypted {
            return Err(unsupported(
                "it has an encryption header: decrypt it with `qemu-img convert` first".into(),
            ));
        }
        if refcount_order > 6 {
            return Err(corrupt(format!(
                "refcount_order is {refcount_order}, above 6"
            )));
        }
        let needs_type = incompatible & self::incompatible::COMPRESSION != 0;
        let compression = match compression {
            0 if !needs_type => Compression::Zlib,
            1 if needs_type => Compression::Zstd,
            0 | 1 => {
                return Err(corrupt(
                    "the compression type and its feature bit contradict each other".into(),
                ));
            }
            n => {
                return Err(unsupported(format!(
                    "its compression type {n} is not known"
                )));
            }
        };
        let extended = incompatible & self::incompatible::EXTENDED_L2 != 0;
        if extended && cluster_bits < 14 {
            return Err(corrupt(format!(
                "extended L2 entries need clusters of 16 KiB or more, and these have {}",
                1 << cluster_bits
            )));
        }
        let geometry = Geometry {
            cluster_bits,
            refcount_order,
            extended,
        };
        let header = Header {
            version,
            geometry,
            size: be64(bytes, 24),
            l1_entries: be32(bytes, 36),
            l1_offset: be64(bytes, 40),
            reftable_offset: be64(bytes, 48),
            reftable_clusters: be32(bytes, 56),
            snapshots: be32(bytes, 60),
            snapshots_offset: be64(bytes, 64),
            incompatible,
            compatible,
            autoclear,
            compression,
            backing: None,
            backing_format: extensions.backing_format,
            data_file: extensions.data_file,
            bitmaps: extensions.bitmaps,
            unknown: extensions.unknown,
            backing_at: be64(bytes, 8),
            extensions_end: extensions.end as u64,
        };
        let backing = header
            .backing_name(bytes, be32(bytes, 16))
            .map_err(corrupt)?;
        let header = Header { backing, ..header };
        header.check_sizes().map_err(corrupt)?;
        Ok(header)
    }

    fn backing_name(&self, bytes: &[u8], len: u32) -> std::result::Result<Option<String>, String> {
        if self.backing_at == 0 || len == 0 {
            return Ok(None);
        }
        let len = len as usize;
        if len > MAX_NAME {
            return Err(format!(
                "the backing file's name has {len} bytes, above {MAX_NAME}"
            ));
        }
        let end = self.backing_at.saturating_add(len as u64);
        if end > self.geometry.cluster() {
            return Err("the backing file's name is outside of the first cluster".into());
        }
        let at = self.backing_at as usize;
        let name = bytes
            .get(at..at + len)
            .ok_or("the backing file's name is outside of the file")?;
        Ok(Some(String::from_utf8_lossy(name).into_owned()))
    }

    fn check_sizes(&self) -> std::result::Result<(), String> {
        let g = &self.geometry;
        let aligned = |name: &str, offset: u64| {
            if offset.is_multiple_of(g.cluster()) && offset < 1 << 56 {
                Ok(())
            } else {
                Err(format!(
                    "the {name} is at {offset:#x}, not at a cluster's start"
                ))
            }
        };
        aligned("L1 table", self.l1_offset)?;
        aligned("refcount table", self.reftable_offset)?;
        aligned("snapshot table", self.snapshots_offset)?;
        if self.size > i64::MAX as u64 {
            return Err(format!("the disk's size is {} bytes", self.size));
        }
        let needed = g.l1_entries(self.size);
        if u64::from(self.l1_entries) * 8 > MAX_L1 || needed * 8 > MAX_L1 {
            return Err(format!(
                "the L1 table has {} entries, above {}",
                needed.max(self.l1_entries.into()),
                MAX_L1 / 8
            ));
        }
        if needed > u64::from(self.l1_entries) {
            return Err(format!(
                "the L1 table has {} entries, and the disk's size needs {needed}",
                self.l1_entries
            ));
        }
        if self.reftable_clusters == 0 {
            return Err("there is no refcount table".into());
        }
        if u64::from(self.reftable_clusters) << g.cluster_bits > MAX_REFTABLE {
            return Err(format!(
                "the refcount table has {} clusters, above {} bytes",
                self.reftable_clusters, MAX_REFTABLE
            ));
        }
        if self.snapshots > 65536 {
            return Err(format!(
                "there are {} snapshots, above 65536",
                self.snapshots
            ));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    bitmaps: Option<BitmapsExtension>,
    encrypted: bool,
    names: Vec<(u8, u8, String)>,
    unknown: Vec<(u32, Vec<u8>)>,
    /// Where they end.
    end: usize,
}

impl Extensions {
    /// Parses what is between `start` and `end`.
    fn parse(bytes: &[u8], start: usize, end: usize) -> std::result::Result<Self, &'static str> {
        let mut found = Extensions::default();
        let end = bytes.len().min(end);
        let mut at = start;
        while at + 8 <= end {
            let (kind, len) = (be32(bytes, at), be32(bytes, at + 4) as usize);
            at += 8;
            if kind == extension::END {
                break;
            }
            let data = bytes
                .get(at..at.saturating_add(len))
                .filter(|_| at + len <= end)
                .ok_or("a header extension is longer than the header")?;
            let text = || String::from_utf8_lossy(data).into_owned();
            match kind {
                extension::BACKING_FORMAT => found.backing_format = Some(text()),
                extension::DATA_FILE => found.data_file = Some(text()),
                extension::ENCRYPTION => found.encrypted = true,
                extension::BITMAPS if data.len() == 24 => {
                    found.bitmaps = Some(BitmapsExtension {
                        count: be32(data, 0),
                        directory_size: be64(data, 8),
                        directory_offset: be64(data, 16),
                    });
                }
                extension::BITMAPS => return Err("the bitmaps extension has a wrong length"),
                extension::FEATURE_NAMES => {
                    found.names = data
                        .chunks_exact(48)
                        .map(|e| {
                            let name = String::from_utf8_lossy(&e[2..]);
                            (e[0], e[1], name.trim_end_matches('\0').to_owned())
                        })
                        .collect();
                }
                _ => found.unknown.push((kind, data.to_vec())),
            }
            at += len.next_multiple_of(8);
        }
        found.end = at;
        Ok(found)
    }

    fn feature_name(&self, bit: u8) -> String {
        self.names
            .iter()
            .find(|(kind, b, _)| *kind == 0 && *b == bit)
            .map_or_else(
                || format!("incompatible bit {bit}"),
                |(_, _, name)| {
                    format!(
                        "\u{201c}{}\u{201d} (incompatible bit {bit})",
                        name.escape_default()
                    )
                },
            )
    }
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |n, b| n << 8 | u32::from(*b))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .fold(0, |n, b| n << 8 | u64::from(*b))
}
