//! Reading what is in the store.

use std::io::{self, Read};

use super::chunk::Packer;
use super::list::{Content, Entry};
use super::packs::Packs;
use super::{Hash, Kind, Store, StoreError};

impl Store {
    /// Reads a content from its beginning.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn reader<'a>(&'a self, content: &'a Content) -> Result<Reader<'a>, StoreError> {
        Ok(Reader {
            packs: self.packs()?,
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
    packs: Packs<'a>,
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
                    hash => self.packs.chunk(&mut self.packer, hash)?,
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
                    self.entries = self.packs.entries(&mut self.packer, *list)?.into_iter();
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
    let (packs, mut packer) = (store.packs()?, Packer::new()?);
    let mut seen = std::collections::HashSet::new();
    let taken = |hash| packs.find(hash).next().map_or(0, |(_, place)| place.len);
    let mut bytes = 0;
    for list in kind.contents().flat_map(|content| &content.lists) {
        if !seen.insert(*list) {
            continue;
        }
        bytes += u64::from(taken(*list));
        for entry in packs.entries(&mut packer, *list)? {
            if entry.hash != Hash::ZEROES && seen.insert(entry.hash) {
                bytes += u64::from(taken(entry.hash));
            }
        }
    }
    Ok(bytes)
}
