//! Chunks on their way into the store. They are in no pack until all of them are durable.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::chunk::Packer;
use super::error::system;
use super::index::{self, Index, Place, holes};
use super::list::{self, CHUNKS, Content, Entry, LISTS};
use super::medium::Output;
use super::packs::{PACKS, Packs, data_path, index_path};
use super::{Hash, STRETCH, Store, StoreError};

/// Bytes after which what was written is made durable, while other threads go on: at the end little is left to wait for.
const STEP: u64 = 64 << 20;

/// What an import adds to the store.
pub struct Batch<'a> {
    store: &'a Store,
    packs: Packs<'a>,
    /// Chunks that are written or being written.
    known: Mutex<HashSet<Hash>>,
    /// The store had some of them.
    found: AtomicBool,
    /// Where they go one behind another, packed; there is none as long as nothing has to go there.
    pack: Mutex<Option<Arc<Writer<'a>>>>,
    /// A disk's own pack, in which each chunk is where the disk has it.
    disk: Option<Writer<'a>>,
}

/// How much an import added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    /// Chunks that were not there.
    pub chunks: u64,
    /// Bytes that they take.
    pub bytes: u64,
}

impl<'a> Batch<'a> {
    pub fn new(store: &'a Store) -> Result<Batch<'a>, StoreError> {
        Ok(Batch {
            store,
            packs: store.packs()?,
            known: Mutex::default(),
            found: AtomicBool::new(false),
            pack: Mutex::default(),
            disk: None,
        })
    }

    /// What the store has already.
    pub fn packs(&self) -> &Packs<'a> {
        &self.packs
    }

    /// From now on a disk of `size` bytes has a pack of its own. `parts` are where it has data, as far as is known, by
    /// start and length.
    pub fn keep_whole(
        &mut self,
        size: u64,
        parts: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<(), StoreError> {
        let mut disk = Writer::new(self.store)?;
        let failed = || system("write", disk.path.as_str());
        disk.output.stretch(size).map_err(failed())?;
        let mut reserved = 0;
        for (at, len) in parts {
            disk.output.reserve(at, len).map_err(failed())?;
            reserved += len;
        }
        disk.reserved = Some((reserved, size));
        self.disk = Some(disk);
        Ok(())
    }

    /// Whether it has.
    pub fn is_whole(&self) -> bool {
        self.disk.is_some()
    }

    /// Adds a chunk, unless the store has it.
    pub fn put(&self, packer: &mut Packer, content: &[u8]) -> Result<Hash, StoreError> {
        let hash = Hash::of(content);
        if !self.known.lock().insert(hash) {
            return Ok(hash);
        }
        if self.packs.has(hash) {
            self.found.store(true, Ordering::Relaxed);
            return Ok(hash);
        }
        let writer = {
            let mut pack = self.pack.lock();
            match &*pack {
                Some(writer) => writer.clone(),
                None => pack.insert(Arc::new(Writer::new(self.store)?)).clone(),
            }
        };
        let packed = packer.pack(content);
        let bytes = packed.as_deref().unwrap_or(content);
        let at = writer.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        writer.write(bytes, at)?;
        let place = Place {
            at,
            len: bytes.len() as u32,
            packed: packed.is_some(),
        };
        writer.chunks.lock().push((hash, place));
        Ok(hash)
    }

    /// Adds a part of a disk that has a pack of its own: chunks one behind another, of which only the disk's last may be
    /// short.
    pub fn put_part(&self, bytes: &[u8], at: u64) -> Result<Vec<Hash>, StoreError> {
        let Some(disk) = &self.disk else {
            return Ok(Vec::new());
        };
        let pieces = bytes.chunks(STRETCH as usize);
        let hashes: Vec<Hash> = pieces.clone().map(Hash::of).collect();
        disk.write(bytes, at)?;
        let places = pieces.scan(at, |at, piece| {
            let place = Place {
                at: *at,
                len: piece.len() as u32,
                packed: false,
            };
            *at += piece.len() as u64;
            Some(place)
        });
        let mut chunks = disk.chunks.lock();
        chunks.extend(hashes.iter().copied().zip(places));
        Ok(hashes)
    }

    /// Makes a content of its chunks.
    pub fn content(&self, packer: &mut Packer, lists: &mut Lists) -> Result<Content, StoreError> {
        lists.close(self, packer)?;
        Ok(Content {
            size: lists.size,
            lists: std::mem::take(&mut lists.done),
        })
    }

    /// Makes all of it durable, and part of the store. `digest` is that of the disk that has a pack of its own.
    pub fn finish(mut self, digest: Hash) -> Result<Added, StoreError> {
        let mut added = Added::default();
        let disk = self.disk.take();
        let pack = self.pack.get_mut().take().and_then(Arc::into_inner);
        for (whole, writer) in [(Some(digest), disk), (None, pack)] {
            if let Some(writer) = writer {
                let more = writer.close(whole)?;
                added.chunks += more.chunks;
                added.bytes += more.bytes;
            }
        }
        // Whoever put there what was found may not have made that durable yet.
        if added.chunks > 0 || *self.found.get_mut() {
            self.store.sync_folders(&[PACKS.to_owned()])?;
        }
        Ok(added)
    }
}

/// A pack that is being written, under a temporary name. It goes if it is not closed.
struct Writer<'a> {
    store: &'a Store,
    path: String,
    output: Box<dyn Output>,
    /// Of a disk's own pack: bytes that space was asked for, and all.
    reserved: Option<(u64, u64)>,
    /// Where the next chunk goes.
    end: AtomicU64,
    /// Bytes that are written, and how many of them somebody has begun to make durable.
    written: AtomicU64,
    durable: Mutex<u64>,
    chunks: Mutex<Vec<(Hash, Place)>>,
}

impl<'a> Writer<'a> {
    fn new(store: &'a Store) -> Result<Writer<'a>, StoreError> {
        let path = store.temporary();
        let output = store.medium.create(&path);
        let output = output.map_err(system("make", path.as_str()))?;
        Ok(Writer {
            store,
            path,
            output,
            reserved: None,
            end: AtomicU64::new(0),
            written: AtomicU64::new(0),
            durable: Mutex::new(0),
            chunks: Mutex::default(),
        })
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), StoreError> {
        let written = self.output.write(bytes, at);
        written.map_err(system("write", self.path.as_str()))?;
        let len = bytes.len() as u64;
        let all = self.written.fetch_add(len, Ordering::Relaxed) + len;
        // One thread at a time waits for the disk; the others have something to do. A disk's own pack goes there
        // at once.
        if self.reserved.is_none()
            && let Some(mut durable) = self.durable.try_lock()
            && all - *durable >= STEP
        {
            *durable = all;
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let synced = self.output.sync();
        synced.map_err(system("write out", self.path.as_str()))
    }

    /// Makes it durable, and gives its files their names: that of the data comes first, though either may come alone
    /// after a power cut.
    fn close(mut self, whole: Option<Hash>) -> Result<Added, StoreError> {
        let written = *self.written.get_mut();
        let chunks = std::mem::take(self.chunks.get_mut());
        if let Some((reserved, size)) = self.reserved
            && reserved > written
        {
            // What was no data after all, only zeroes.
            let punched = self.store.medium.punch(&self.path, &holes(&chunks, size));
            punched.map_err(system("make holes in", self.path.as_str()))?;
        }
        let index = Index::new(whole, chunks);
        let (size, limit) = (index.bytes().len() as u64, index::LONGEST);
        if size > limit {
            let what = "the image's index";
            return Err(StoreError::TooMuch { what, size, limit });
        }
        self.sync()?;
        let temporary = self.store.temporary();
        let name = self.store.unique();
        let named = self
            .store
            .write_durable(&temporary, index.bytes())
            .and_then(|()| self.store.rename(&self.path, &data_path(&name)))
            .and_then(|()| self.store.rename(&temporary, &index_path(&name)));
        if named.is_err() {
            // Without an index it is garbage. That it is there is what was told already.
            let _ = self.store.medium.remove(&temporary);
            let _ = self.store.medium.remove(&data_path(&name));
        }
        named.map(|()| Added {
            chunks: index.count() as u64,
            bytes: written,
        })
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // What was given up takes no space. One that was closed has this name no more.
        let _ = self.store.medium.remove(&self.path);
    }
}

/// The chunks of a content, in order, as they come.
#[derive(Default)]
pub struct Lists {
    size: u64,
    open: Vec<Entry>,
    done: Vec<Hash>,
}

impl Lists {
    /// One more chunk.
    pub fn push(
        &mut self,
        batch: &Batch<'_>,
        packer: &mut Packer,
        entry: Entry,
    ) -> Result<(), StoreError> {
        self.size += u64::from(entry.len);
        self.open.push(entry);
        match self.open.len() >= CHUNKS {
            true => self.close(batch, packer),
            false => Ok(()),
        }
    }

    fn close(&mut self, batch: &Batch<'_>, packer: &mut Packer) -> Result<(), StoreError> {
        if self.open.is_empty() {
            return Ok(());
        }
        if self.done.len() >= LISTS {
            return Err(StoreError::TooMuch {
                what: "what is imported",
                size: self.size,
                limit: (LISTS * CHUNKS * STRETCH as usize) as u64,
            });
        }
        let bytes = list::encode(&std::mem::take(&mut self.open));
        self.done.push(batch.put(packer, &bytes)?);
        Ok(())
    }
}
