//! Making new images.

use std::path::Path;
use std::sync::Arc;

use super::geometry::{CLUSTER_BITS, Geometry, set_refcount};
use super::header::{Compression, Header, MAX_L1, autoclear, compatible, incompatible};
use super::image::{Image, OpenOptions};
use crate::io::{Buffer, ImageFile, Port};
use crate::{Error, Result};

/// Space that is taken when an image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// None: clusters are allocated when written.
    #[default]
    Off,
    /// The tables; the data's place is a hole.
    Metadata,
    /// The tables, and blocks of the file system for the data.
    Falloc,
    /// The tables, and zeroes written for the data.
    Full,
}

/// What a new image is to be.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Guest disk size in bytes.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bits of a refcount: a power of two from 1 to 64.
    pub refcount_bits: u32,
    /// 32 subclusters a cluster, so that small first writes copy little.
    pub extended_l2: bool,
    /// Write refcounts late.
    pub lazy_refcounts: bool,
    /// For compressed clusters.
    pub compression: Compression,
    /// The name and format of the layer below, for `info` and other tools. Never opened.
    pub backing: Option<(String, String)>,
    /// The name of the external data file that the caller gives beside the image.
    pub data_file: Option<String>,
    /// That file is to be readable as a raw image.
    pub data_file_raw: bool,
    /// Space to take now.
    pub preallocation: Preallocation,
}

impl CreateOptions {
    /// An image of `size` bytes with what nearly everybody wants: version 3, clusters of 64 KiB.
    pub fn new(size: u64) -> CreateOptions {
        CreateOptions {
            size,
            version: 3,
            cluster_size: 64 << 10,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            compression: Compression::Zlib,
            backing: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
        }
    }

    /// An overlay on `backing` (a name and a format): clusters of 128 KiB with subclusters of 4 KiB,
    /// so that a first write of a page copies nothing.
    pub fn overlay(size: u64, backing: (String, String)) -> CreateOptions {
        CreateOptions {
            cluster_size: 128 << 10,
            extended_l2: true,
            backing: Some(backing),
            ..CreateOptions::new(size)
        }
    }

    /// The header of the image, without its tables; or what contradicts itself.
    fn header(&self) -> std::result::Result<Header, String> {
        let bits = self.cluster_size.checked_ilog2().unwrap_or(0);
        if !self.cluster_size.is_power_of_two() || !CLUSTER_BITS.contains(&bits) {
            return Err(format!(
                "the cluster size {} is not a power of two from 512 to 2097152",
                self.cluster_size
            ));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return Err(format!(
                "the refcount width {} is not a power of two from 1 to 64",
                self.refcount_bits
            ));
        }
        let geometry = Geometry {
            cluster_bits: bits,
            refcount_order: self.refcount_bits.ilog2(),
            extended: self.extended_l2,
        };
        if !(2..=3).contains(&self.version) {
            return Err(format!("the version {} is neither 2 nor 3", self.version));
        }
        let modern = [
            (self.refcount_bits != 16, "refcounts of other than 16 bits"),
            (self.extended_l2, "extended L2 entries"),
            (self.lazy_refcounts, "lazy refcounts"),
            (self.compression != Compression::Zlib, "zstd compression"),
            (self.data_file.is_some(), "an external data file"),
        ];
        if self.version < 3
            && let Some((_, what)) = modern.iter().find(|(wanted, _)| *wanted)
        {
            return Err(format!("{what} needs version 3 (compat=1.1)"));
        }
        if self.extended_l2 && bits < 14 {
            return Err("extended L2 entries need clusters of 16 KiB or more".into());
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err("data_file_raw needs data_file".into());
        }
        if self.data_file_raw && self.backing.is_some() {
            return Err("a raw external data file cannot have a layer below it".into());
        }
        if geometry.l1_entries(self.size) * 8 > MAX_L1 {
            let most = MAX_L1 / 8 * geometry.l2_coverage();
            return Err(format!(
                "{} bytes are too much for clusters of {}: at most {most}, or take larger clusters",
                self.size, self.cluster_size
            ));
        }
        if !self.size.is_multiple_of(512) {
            return Err(format!("the size {} is not a multiple of 512", self.size));
        }
        let bit = |wanted: bool, bit: u64| if wanted { bit } else { 0 };
        let zstd = self.compression == Compression::Zstd;
        Ok(Header {
            version: self.version,
            geometry,
            size: self.size,
            l1_entries: geometry.l1_entries(self.size) as u32,
            l1_offset: 0,
            reftable_offset: 0,
            reftable_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: bit(self.data_file.is_some(), incompatible::DATA_FILE)
                | bit(zstd, incompatible::COMPRESSION)
                | bit(self.extended_l2, incompatible::EXTENDED_L2),
            compatible: bit(self.lazy_refcounts, compatible::LAZY_REFCOUNTS),
            autoclear: bit(self.data_file_raw, autoclear::RAW_DATA),
            compression: self.compression,
            backing: self.backing.as_ref().map(|b| b.0.clone()),
            backing_format: self.backing.as_ref().map(|b| b.1.clone()),
            data_file: self.data_file.clone(),
            bitmaps: None,
            unknown: Vec::new(),
            backing_at: 0,
            extensions_end: 0,
        })
    }

    /// Whether the options fit together. `path` is for the error.
    pub fn check(&self, path: &Path) -> Result<()> {
        self.header().map(drop).map_err(|what| Error::Invalid {
            path: path.to_owned(),
            what,
        })
    }
}

/// Writes a new image into an empty `file`; `data` is its external data file. The header comes last,
/// so nothing takes the file for an image before it is one. Not durable before a flush.
pub async fn create(
    port: &Port,
    file: &Arc<ImageFile>,
    data: Option<&Arc<ImageFile>>,
    options: &CreateOptions,
) -> Result<()> {
    let invalid = |what: String| Error::Invalid {
        path: file.path().to_owned(),
        what,
    };
    let mut header = options.header().map_err(invalid)?;
    let g = header.geometry;
    // Header, refcount table, refblocks, L1 table.
    let l1 = g.clusters(u64::from(header.l1_entries) * 8);
    let (mut table, mut blocks) = (1, 1);
    let total = loop {
        let total = 1 + table + blocks + l1;
        let (b, t) = (total.div_ceil(g.refblock_entries()), g.clusters(blocks * 8));
        if b <= blocks && t <= table {
            break total;
        }
        (blocks, table) = (b.max(blocks), t.max(table));
    };
    header.reftable_offset = g.cluster();
    header.reftable_clusters = table as u32;
    header.l1_offset = match l1 {
        0 => 0,
        _ => (1 + table + blocks) << g.cluster_bits,
    };
    let mut tables = Buffer::new(((table + blocks) << g.cluster_bits) as usize);
    let bytes = tables.bytes_mut();
    for i in 0..blocks {
        let at = (1 + table + i) << g.cluster_bits;
        bytes[i as usize * 8..][..8].copy_from_slice(&at.to_be_bytes());
    }
    let refblocks = &mut bytes[(table << g.cluster_bits) as usize..];
    for i in 0..total {
        let block = ((i / g.refblock_entries()) << g.cluster_bits) as usize;
        set_refcount(
            &mut refblocks[block..],
            g.refcount_order,
            i % g.refblock_entries(),
            1,
        );
    }
    // Where nothing is written, the file reads as zeroes: an empty L1 table.
    if file.block_device() && l1 > 0 {
        let l1 = Buffer::new((l1 << g.cluster_bits) as usize);
        port.write(file, header.l1_offset, l1.span()).await?;
    } else if !file.block_device() {
        port.set_len(file, total << g.cluster_bits).await?;
    }
    port.write(file, g.cluster(), tables.span()).await?;
    let (head, _) = header.layout(0).map_err(|what| invalid(what.into()))?;
    port.write(file, 0, Buffer::from_slice(&head).span())
        .await?;
    if let Some(data) = data
        && !data.block_device()
    {
        port.set_len(data, options.size).await?;
    }
    if options.preallocation != Preallocation::Off {
        let open = OpenOptions::default();
        let image = Image::open(port, file.clone(), data.cloned(), &open).await?;
        image.preallocate(port, options.preallocation).await?;
        image.close(port).await?;
    }
    Ok(())
}

impl Image {
    /// Allocates every cluster of a new image.
    async fn preallocate(&self, port: &Port, how: Preallocation) -> Result<()> {
        let g = self.geometry();
        if self.header().backing.is_some() {
            return Err(
                self.invalid("an overlay cannot be preallocated: it would hide what is below")
            );
        }
        let size = self.size();
        let mut at = 0;
        let mut end = self.data_file().end();
        while at < size {
            self.own_table(port, (at / g.l2_coverage()) as usize)
                .await?;
            let len = (size - at).min(g.slice_coverage() - at % g.slice_coverage());
            // Whole clusters: nothing is copied, and what was never written reads as zeroes.
            let whole = len.next_multiple_of(g.cluster());
            let Some(mut plan) = self.with(port, |s| s.plan(at, whole, false)).await? else {
                return Ok(());
            };
            plan.whole = true;
            let len = plan.len;
            match how {
                Preallocation::Full => {
                    let mut done = 0;
                    let zeroes = Buffer::new(len.min(1 << 20) as usize);
                    while done < len {
                        let part = zeroes.part(0, (len - done).min(1 << 20) as usize);
                        let n = part.len();
                        port.write(self.data_file(), plan.host + done, part).await?;
                        done += n;
                    }
                }
                Preallocation::Falloc => port.zero(self.data_file(), plan.host, len).await?,
                _ => {}
            }
            end = end.max(plan.host + len);
            self.with(port, |s| s.carry_out(at, &plan)).await?;
            at += len;
        }
        if !self.external() && !self.file().block_device() {
            port.set_len(self.file(), end.max(self.file().end()))
                .await?;
        }
        Ok(())
    }
}
