//! Bringing images into the store.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chunk::{LARGEST, Packer};
use super::list::{CHUNKS, Content, Entry, LISTS};
use super::manifest::{BLOBS, Kind, Named, VERSION};
use super::put::{Batch, Lists};
use super::{Hash, Name, Store, StoreError, manifest_of, manifest_path, now};
use crate::chain::Stack;
use crate::chain::live::Progress;
use crate::io::{Buffer, Port, block_on};
use crate::ops::{extent, is_zero};

/// Bytes of a disk's chunk, as its guest sees it.
pub const STRETCH: u64 = 64 << 10;
/// Bytes of a disk that a thread takes at a time, and all of them before the lists go on.
const PART: u64 = 16 * STRETCH;
const ROUND: u64 = 16 * CHUNKS as u64 * STRETCH;
/// Chunks that are looked at to learn whether a disk is news, and the share of them that is known if it is not.
const SAMPLES: u64 = 128;
const KNOWN: u64 = 16;
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
        let mut batch = Batch::new(self)?;
        let size = disk.size();
        let limit = LISTS as u64 * CHUNKS as u64 * STRETCH;
        if size > limit {
            let what = "the disk";
            return Err(StoreError::TooMuch { what, size, limit });
        }
        progress.expect(size);
        if is_news(&batch, disk)? {
            batch.keep_whole(size, data(disk)?)?;
        }
        let mut packer = Packer::new()?;
        let (mut lists, mut start) = (Lists::default(), 0);
        while start < size {
            let end = size.min(start + ROUND);
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
        let batch = Batch::new(self)?;
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

    /// Chunks, then the manifest, then the name: each durable before the next. A disk that has a pack of its own is in
    /// one piece at once.
    fn conclude(
        &self,
        name: &Name,
        kind: Kind,
        origin: Origin,
        batch: Batch<'_>,
    ) -> Result<Imported, StoreError> {
        let size = kind.size();
        let (digest, manifest) = manifest_of(kind)?;
        let whole = batch.is_whole();
        let added = batch.finish(digest)?;
        // One that was damaged is whole again.
        self.write_whole(&manifest_path(digest), &manifest)?;
        if whole {
            self.link_base(digest)?;
        }
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

/// Whether the store knows hardly anything of a disk: it gets a pack of its own then, which is the disk in one piece,
/// too. Otherwise only what is new is kept, packed.
fn is_news(batch: &Batch<'_>, disk: &Stack) -> Result<bool, StoreError> {
    let chunks = disk.size().div_ceil(STRETCH);
    if batch.packs().all().is_empty() {
        return Ok(chunks > 0);
    }
    let (port, buffer) = (Port::new(), Buffer::new(STRETCH as usize));
    let (mut seen, mut known) = (0, 0);
    // Of each of so many equal parts the first chunk with data.
    let parts = SAMPLES.min(chunks);
    for part in 0..parts {
        let (mut at, end) = (
            chunks * part / parts * STRETCH,
            (chunks * (part + 1) / parts * STRETCH).min(disk.size()),
        );
        while at < end {
            let found = block_on(&port, extent(&port, disk.layers(), at, end - at))?;
            if found.zero {
                at = (at + found.len.max(1)).next_multiple_of(STRETCH);
                continue;
            }
            let len = STRETCH.min(disk.size() - at) as usize;
            block_on(&port, disk.read(&port, at, &buffer.part(0, len)))?;
            let bytes = &buffer.bytes()[..len];
            if is_zero(bytes) {
                at += STRETCH;
                continue;
            }
            seen += 1;
            known += u64::from(batch.packs().has(Hash::of(bytes)));
            break;
        }
    }
    Ok(known * KNOWN < seen)
}

/// Where a disk has data, as its files say, by start and length; small gaps count as data.
fn data(disk: &Stack) -> Result<Vec<(u64, u64)>, StoreError> {
    let (port, size) = (Port::new(), disk.size());
    let (mut parts, mut at) = (Vec::<(u64, u64)>::new(), 0);
    while at < size {
        let found = block_on(&port, extent(&port, disk.layers(), at, size - at))?;
        let end = size.min(at + found.len.max(1));
        match parts.last_mut() {
            _ if found.zero => {}
            Some((start, len)) if at - (*start + *len) <= PART => *len = end - *start,
            _ => parts.push((at, end - at)),
        }
        at = end;
    }
    Ok(parts)
}

/// The chunks of a disk from `start` to `end`, by several threads.
fn stretches(
    batch: &Batch<'_>,
    disk: &Stack,
    start: u64,
    end: u64,
    progress: &Progress,
) -> Result<Vec<Entry>, StoreError> {
    let next = AtomicU64::new(start);
    let work = || -> Result<Vec<(u64, Vec<Entry>)>, StoreError> {
        let (port, mut packer) = (Port::new(), Packer::new()?);
        let buffer = Buffer::new(PART as usize);
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(PART, Ordering::Relaxed);
            if at >= end {
                return Ok(done);
            }
            let len = PART.min(end - at);
            let entries = part(batch, &mut packer, disk, &port, &buffer, at, len);
            match entries.and_then(|all| progress.step(len).map_err(ended).map(|()| all)) {
                Ok(entries) => done.push((at, entries)),
                Err(e) => {
                    // The other threads have nothing more to do.
                    next.store(end, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
    };
    // One more than there are CPUs: one waits for the disk now and then.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cpus + 1)
        .min(MOST_THREADS)
        .min((end - start).div_ceil(PART) as usize);
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
    Ok(all.into_iter().flat_map(|(_, entries)| entries).collect())
}

/// The chunks of a part of a disk.
fn part(
    batch: &Batch<'_>,
    packer: &mut Packer,
    disk: &Stack,
    port: &Port,
    buffer: &Buffer,
    at: u64,
    len: u64,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = (0..len)
        .step_by(STRETCH as usize)
        .map(|start| Entry {
            len: STRETCH.min(len - start) as u32,
            hash: Hash::ZEROES,
        })
        .collect();
    let mut read = vec![false; entries.len()];
    let mut from = 0;
    while from < len {
        let found = block_on(port, extent(port, disk.layers(), at + from, len - from))?;
        let to = len.min(from + found.len.max(1));
        let span = buffer.part(from as usize, (to - from) as usize);
        // What the image says is zeroes is not read.
        if found.zero {
            span.zero(0);
        } else {
            block_on(port, disk.read(port, at + from, &span))?;
            let (first, end) = (from / STRETCH, to.div_ceil(STRETCH));
            read[first as usize..end as usize].fill(true);
        }
        from = to;
    }
    let bytes = &buffer.bytes()[..len as usize];
    let pieces: Vec<&[u8]> = bytes.chunks(STRETCH as usize).collect();
    for (piece, read) in pieces.iter().zip(&mut read) {
        *read = *read && !is_zero(piece);
    }
    if !batch.is_whole() {
        for ((entry, piece), _) in entries
            .iter_mut()
            .zip(pieces)
            .zip(read)
            .filter(|(_, data)| *data)
        {
            entry.hash = batch.put(packer, piece)?;
        }
        return Ok(entries);
    }
    // Neighbours are written together.
    let mut start = 0;
    for run in read.chunk_by(|one, next| one == next) {
        let end = start + run.len();
        if run.first() == Some(&true) {
            let (first, last) = (
                start * STRETCH as usize,
                (end * STRETCH as usize).min(bytes.len()),
            );
            let hashes = batch.put_part(&bytes[first..last], at + first as u64)?;
            for (entry, hash) in entries[start..end].iter_mut().zip(hashes) {
                entry.hash = hash;
            }
        }
        start = end;
    }
    Ok(entries)
}

fn ended(_: crate::Error) -> StoreError {
    StoreError::Cancelled
}
