//! Chunks on their way into the store. They get their names some at a time, when they are durable.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::chunk::Packer;
use super::error::system;
use super::list::{self, CHUNKS, Content, Entry, LISTS};
use super::{Hash, Store, StoreError, chunk_path};

/// Chunks that are not named yet, at most.
const WAITING: usize = CHUNKS;

/// What an import adds to the store.
pub struct Batch<'a> {
    store: &'a Store,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Written under temporary names.
    waiting: Vec<(String, Hash)>,
    /// Written, or being written.
    known: BTreeSet<Hash>,
    /// Folders whose names are not durable yet.
    folders: BTreeSet<String>,
    added: Added,
}

/// How much an import added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    /// Chunks that were not there.
    pub chunks: u64,
    /// Bytes that their files take.
    pub bytes: u64,
}

impl<'a> Batch<'a> {
    pub fn new(store: &'a Store) -> Batch<'a> {
        Batch {
            store,
            state: Mutex::default(),
        }
    }

    /// Adds a chunk, unless the store has it.
    pub fn put(&self, packer: &mut Packer, content: &[u8]) -> Result<Hash, StoreError> {
        let hash = Hash::of(content);
        if self.state.lock().known.contains(&hash) {
            return Ok(hash);
        }
        let path = chunk_path(hash);
        if self.store.length(&path)?.is_some() {
            // Whoever put it there may not have made that durable yet.
            let folder = folder_of(&path).to_owned();
            let folders = &mut self.state.lock().folders;
            folders.insert(folder);
            folders.insert("chunks".to_owned());
            return Ok(hash);
        }
        if !self.state.lock().known.insert(hash) {
            return Ok(hash);
        }
        let (temporary, file) = (self.store.temporary(), packer.pack(content));
        let written = self.store.medium.write(&temporary, &file);
        written.map_err(system("write", temporary.as_str()))?;
        let mut state = self.state.lock();
        state.added.chunks += 1;
        state.added.bytes += file.len() as u64;
        state.waiting.push((temporary, hash));
        match state.waiting.len() >= WAITING {
            true => self.settle(&mut state).map(|()| hash),
            false => Ok(hash),
        }
    }

    /// Makes a content of its chunks.
    pub fn content(&self, packer: &mut Packer, lists: &mut Lists) -> Result<Content, StoreError> {
        lists.close(self, packer)?;
        Ok(Content {
            size: lists.size,
            lists: std::mem::take(&mut lists.done),
        })
    }

    /// Makes all of it durable.
    pub fn finish(self) -> Result<Added, StoreError> {
        let mut state = self.state.lock();
        self.settle(&mut state)?;
        let folders: Vec<String> = std::mem::take(&mut state.folders).into_iter().collect();
        if !folders.is_empty() {
            self.store.sync_folders(&folders)?;
        }
        Ok(state.added)
    }

    /// Makes what waits durable, and names it.
    fn settle(&self, state: &mut State) -> Result<(), StoreError> {
        if state.waiting.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut state.waiting);
        let files: Vec<String> = waiting.iter().map(|(file, _)| file.clone()).collect();
        let synced = self.store.medium.sync(&files);
        synced.map_err(system("write out", "tmp"))?;
        for (temporary, hash) in waiting {
            let path = chunk_path(hash);
            let folder = folder_of(&path);
            if !state.folders.contains(folder) {
                self.store.make_folder(folder)?;
                state.folders.insert(folder.to_owned());
                state.folders.insert("chunks".to_owned());
            }
            self.store.rename(&temporary, &path)?;
            // From now on its file says that it is known.
            state.known.remove(&hash);
        }
        Ok(())
    }
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("chunks", |(folder, _)| folder)
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // What was given up takes no space.
        for (temporary, _) in &self.state.get_mut().waiting {
            let _ = self.store.medium.remove(temporary);
        }
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
                limit: (LISTS * CHUNKS * super::STRETCH as usize) as u64,
            });
        }
        let bytes = list::encode(&std::mem::take(&mut self.open));
        self.done.push(batch.put(packer, &bytes)?);
        Ok(())
    }
}
