//! Bringing images into the store.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chunk::{LARGEST, Packer};
use super::list::{CHUNKS, Content, Entry, LISTS};
use super::manifest::{BLOBS, Kind, Named, VERSION};
use super::put::{Batch, Lists};
use super::{Hash, Name, Store, StoreError, now};
use crate::chain::Stack;
use crate::chain::live::Progress;
use crate::io::{Buffer, Port, block_on};
use crate::ops::{extent, is_zero};

/// Bytes of a disk's chunk, as its guest sees it.
pub const STRETCH: u64 = 512 << 10;
/// Bytes of other contents' chunks: at least, as a rule, at most.
const CUT: (usize, usize, usize) = (64 << 10, 256 << 10, LARGEST);
/// Threads that read, hash and pack.
const MOST_THREADS: usize = 8;

/// What an import came to.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The image's digest.
    pub digest: Hash,
    /// Its bytes.
    pub size: u64,
    /// Bytes that the store grew by.
    pub added: u64,
    /// Chunks that were not there before.
    pub chunks: u64,
}

/// Where an image came from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// In words: a path, an address.
    pub source: String,
    /// What it was compared with, by algorithm.
    pub checksums: BTreeMap<String, String>,
}

impl Store {
    /// Brings a disk into the store, as its guest sees it, and names it.
    ///
    /// # Errors
    /// If it cannot be read or written; nothing has its name then.
    pub fn import_disk(
        &self,
        name: &Name,
        disk: &Stack,
        origin: Origin,
        progress: &Progress,
    ) -> Result<Imported, StoreError> {
        let _use = self.share()?;
        let batch = Batch::new(self);
        let size = disk.size();
        let limit = LISTS as u64 * CHUNKS as u64 * STRETCH;
        if size > limit {
            let what = "the disk";
            return Err(StoreError::TooMuch { what, size, limit });
        }
        progress.expect(size);
        let mut packer = Packer::new()?;
        let (mut lists, mut start) = (Lists::default(), 0);
        while start < size {
            let end = size.min(start + CHUNKS as u64 * STRETCH);
            for entry in stretches(&batch, disk, start, end, progress)? {
                lists.push(&batch, &mut packer, entry)?;
            }
            start = end;
        }
        let disk = batch.content(&mut packer, &mut lists)?;
        self.conclude(name, Kind::Disk { disk }, origin, batch)
    }

    /// Brings an OCI image into the store, and names it. `blobs` gives each of the manifest's blobs, by its digest.
    /// Whoever gives them compares them with their digests: a wrong one ends the import with an error of its own.
    ///
    /// # Errors
    /// If they cannot be read or written; nothing has the image's name then.
    pub fn import_oci<'r>(
        &self,
        name: &Name,
        manifest: &str,
        blobs: impl IntoIterator<Item = (String, Box<dyn Read + 'r>)>,
        origin: Origin,
        progress: &Progress,
    ) -> Result<Imported, StoreError> {
        let _use = self.share()?;
        let batch = Batch::new(self);
        let mut packer = Packer::new()?;
        let mut kept = BTreeMap::new();
        for (digest, from) in blobs {
            let content = blob(&batch, &mut packer, from, progress)?;
            kept.insert(digest, content);
            if kept.len() > BLOBS {
                return Err(StoreError::TooMuch {
                    what: "the image's list of blobs",
                    size: kept.len() as u64,
                    limit: BLOBS as u64,
                });
            }
        }
        let kind = Kind::Oci {
            manifest: manifest.to_owned(),
            blobs: kept,
        };
        self.conclude(name, kind, origin, batch)
    }

    /// Chunks, then the manifest, then the name: each durable before the next.
    fn conclude(
        &self,
        name: &Name,
        kind: Kind,
        origin: Origin,
        batch: Batch<'_>,
    ) -> Result<Imported, StoreError> {
        let size = kind.size();
        let added = batch.finish()?;
        let digest = self.keep(kind)?;
        self.give_name(
            name,
            &Named {
                version: VERSION,
                digest,
                source: origin.source,
                checksums: origin.checksums,
                created: now(),
            },
        )?;
        Ok(Imported {
            digest,
            size,
            added: added.bytes,
            chunks: added.chunks,
        })
    }
}

/// A stream as chunks, cut by what is in it.
fn blob(
    batch: &Batch<'_>,
    packer: &mut Packer,
    from: impl Read,
    progress: &Progress,
) -> Result<Content, StoreError> {
    let (least, rule, most) = CUT;
    let mut lists = Lists::default();
    for cut in fastcdc::v2020::StreamCDC::new(from, least, rule, most) {
        let data = cut.map_err(|e| StoreError::Source(e.into()))?.data;
        let hash = match is_zero(&data) {
            true => Hash::ZEROES,
            false => batch.put(packer, &data)?,
        };
        let len = data.len() as u32;
        lists.push(batch, packer, Entry { len, hash })?;
        progress.step(len.into()).map_err(ended)?;
    }
    batch.content(packer, &mut lists)
}

/// The chunks of a disk from `start` to `end`, which are those of one list, by several threads.
fn stretches(
    batch: &Batch<'_>,
    disk: &Stack,
    start: u64,
    end: u64,
    progress: &Progress,
) -> Result<Vec<Entry>, StoreError> {
    let next = AtomicU64::new(start);
    let work = || -> Result<Vec<(u64, Entry)>, StoreError> {
        let (port, mut packer) = (Port::new(), Packer::new()?);
        let buffer = Buffer::new(STRETCH as usize);
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(STRETCH, Ordering::Relaxed);
            if at >= end {
                return Ok(done);
            }
            let len = STRETCH.min(end - at);
            let entry = stretch(batch, &mut packer, disk, &port, &buffer, at, len);
            match entry.and_then(|entry| progress.step(len).map_err(ended).map(|()| entry)) {
                Ok(entry) => done.push((at, entry)),
                Err(e) => {
                    // The other threads have nothing more to do.
                    next.store(end, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cpus
        .min(MOST_THREADS)
        .min((end - start).div_ceil(STRETCH) as usize);
    let mut all = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            let ended = other.join().unwrap_or(Err(StoreError::Cancelled));
            all = all.and_then(|mut all| {
                all.extend(ended?);
                Ok(all)
            });
        }
        all
    })?;
    all.sort_unstable_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, entry)| entry).collect())
}

fn stretch(
    batch: &Batch<'_>,
    packer: &mut Packer,
    disk: &Stack,
    port: &Port,
    buffer: &Buffer,
    at: u64,
    len: u64,
) -> Result<Entry, StoreError> {
    let hole = Entry {
        len: len as u32,
        hash: Hash::ZEROES,
    };
    // What the image says is zeroes is not read.
    let found = block_on(port, extent(port, disk.layers(), at, len))?;
    if found.zero && found.len >= len {
        return Ok(hole);
    }
    block_on(port, disk.read(port, at, &buffer.part(0, len as usize)))?;
    let bytes = &buffer.bytes()[..len as usize];
    if is_zero(bytes) {
        return Ok(hole);
    }
    let hash = batch.put(packer, bytes)?;
    Ok(Entry { hash, ..hole })
}

fn ended(_: crate::Error) -> StoreError {
    StoreError::Cancelled
}
