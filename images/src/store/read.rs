//! Reading what is in the store.

use std::io::{self, Read};

use super::chunk::{self, Packer};
use super::error::system;
use super::list::{self, Content, Entry};
use super::{Hash, Kind, Store, StoreError, chunk_path};

impl Store {
    /// A chunk's content, compared with its name.
    pub(super) fn chunk(&self, packer: &mut Packer, hash: Hash) -> Result<Vec<u8>, StoreError> {
        let path = chunk_path(hash);
        let file = self.medium.read(&path, chunk::LONGEST);
        let file = file.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => StoreError::Damaged {
                what: "chunk",
                hash,
                why: "it is not there".into(),
            },
            _ => system("read", path.as_str())(e),
        })?;
        packer.unpack(hash, &file)
    }

    /// A list of chunks.
    pub(super) fn entries(
        &self,
        packer: &mut Packer,
        hash: Hash,
    ) -> Result<Vec<Entry>, StoreError> {
        list::decode(hash, &self.chunk(packer, hash)?)
    }

    /// Reads a content from its beginning.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn reader<'a>(&'a self, content: &'a Content) -> Result<Reader<'a>, StoreError> {
        Ok(Reader {
            store: self,
            packer: Packer::new()?,
            left: content.size,
            lists: content.lists.iter(),
            entries: Vec::new().into_iter(),
            bytes: Vec::new(),
            at: 0,
        })
    }
}

/// A content, read from its beginning. Each chunk is compared with its name before any of it is given.
pub struct Reader<'a> {
    store: &'a Store,
    packer: Packer,
    left: u64,
    lists: std::slice::Iter<'a, Hash>,
    entries: std::vec::IntoIter<Entry>,
    bytes: Vec<u8>,
    at: usize,
}

impl Reader<'_> {
    /// Loads the next chunk; false at the end.
    fn next(&mut self) -> Result<bool, StoreError> {
        loop {
            if let Some(entry) = self.entries.next() {
                let len = entry.len as usize;
                self.at = 0;
                self.bytes = match entry.hash {
                    Hash::ZEROES => vec![0; len],
                    hash => self.store.chunk(&mut self.packer, hash)?,
                };
                let fits = self.bytes.len() == len && len as u64 <= self.left;
                self.left = self.left.saturating_sub(len as u64);
                return match fits {
                    true => Ok(true),
                    false => Err(wrong_size(entry.hash)),
                };
            }
            match self.lists.next() {
                Some(list) => {
                    self.entries = self.store.entries(&mut self.packer, *list)?.into_iter();
                }
                None if self.left == 0 => return Ok(false),
                None => return Err(wrong_size(Hash::ZEROES)),
            }
        }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.bytes.len() {
            if !self.next().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let n = into.len().min(self.bytes.len() - self.at);
        into[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

pub(super) fn wrong_size(hash: Hash) -> StoreError {
    StoreError::Damaged {
        what: "chunk",
        hash,
        why: "its length is not what its list says".into(),
    }
}

/// Bytes that an image's chunks take in the store, each counted once.
///
/// # Errors
/// If a list cannot be read.
pub fn usage(store: &Store, kind: &Kind) -> Result<u64, StoreError> {
    let mut packer = Packer::new()?;
    let mut seen = std::collections::BTreeSet::new();
    let mut bytes = 0;
    for list in kind.contents().flat_map(|content| &content.lists) {
        if !seen.insert(*list) {
            continue;
        }
        bytes += store.length(&chunk_path(*list))?.unwrap_or(0);
        for entry in store.entries(&mut packer, *list)? {
            if entry.hash != Hash::ZEROES && seen.insert(entry.hash) {
                bytes += store.length(&chunk_path(entry.hash))?.unwrap_or(0);
            }
        }
    }
    Ok(bytes)
}
