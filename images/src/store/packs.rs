//! The packs of a store, as they are at one moment. Whoever looks at them shares the store.

use std::io::ErrorKind;

use super::chunk::Packer;
use super::error::system;
use super::index::{self, Index, Place};
use super::list::{self, Entry};
use super::{Hash, Store, StoreError};

/// Their folder.
pub const PACKS: &str = "packs";
const INDEX: &str = ".index";
const DATA: &str = ".data";

/// One pack.
#[derive(Debug)]
pub struct Pack {
    /// Its name, without what its two files' names end with.
    pub name: String,
    /// What it has.
    pub index: Index,
}

/// All of them.
pub struct Packs<'a> {
    store: &'a Store,
    all: Vec<Pack>,
    /// Indexes that cannot be understood, by their names, and why.
    pub broken: Vec<(String, StoreError)>,
}

/// The file with a pack's chunks.
pub fn data_path(name: &str) -> String {
    format!("{PACKS}/{name}{DATA}")
}

/// The file with a pack's index.
pub fn index_path(name: &str) -> String {
    format!("{PACKS}/{name}{INDEX}")
}

/// The pack that has an index with this file name.
pub fn of_index(file: &str) -> Option<&str> {
    file.strip_suffix(INDEX)
}

/// The pack that has data with this file name.
pub fn of_data(file: &str) -> Option<&str> {
    file.strip_suffix(DATA)
}

impl Store {
    /// What packs there are. Of an index without data nothing is left: its pack was being named or removed when the
    /// power failed.
    pub(super) fn packs(&self) -> Result<Packs<'_>, StoreError> {
        let (mut all, mut broken) = (Vec::new(), Vec::new());
        for file in self.list(PACKS)? {
            let Some(name) = of_index(&file) else {
                continue;
            };
            if self.length(&data_path(name))?.is_none() {
                continue;
            }
            let path = index_path(name);
            let bytes = match self.medium.read(&path, index::LONGEST) {
                Ok(bytes) => bytes,
                // Somebody who has found all of it damaged removed it.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(system("read", path)(e)),
            };
            match Index::read(bytes) {
                Ok(index) => all.push(Pack {
                    name: name.to_owned(),
                    index,
                }),
                Err(why) => broken.push((name.to_owned(), StoreError::Pack { path, why })),
            }
        }
        Ok(Packs {
            store: self,
            all,
            broken,
        })
    }
}

impl Packs<'_> {
    /// All that can be understood.
    pub fn all(&self) -> &[Pack] {
        &self.all
    }

    /// That whose data is this disk image.
    pub fn whole(&self, digest: Hash) -> Option<&Pack> {
        let is = |pack: &&Pack| pack.index.whole() == Some(digest);
        self.all.iter().find(is)
    }

    /// Where a chunk is, wherever it is.
    pub fn find(&self, hash: Hash) -> impl Iterator<Item = (&Pack, Place)> {
        let found = move |pack: &'_ Pack| pack.index.find(hash);
        self.all
            .iter()
            .filter_map(move |pack| Some((pack, found(pack)?)))
    }

    /// Whether it is anywhere.
    pub fn has(&self, hash: Hash) -> bool {
        self.find(hash).next().is_some()
    }

    /// A chunk's content, compared with its name. Of several, one that is sound.
    pub fn chunk(&self, packer: &mut Packer, hash: Hash) -> Result<Vec<u8>, StoreError> {
        let mut failed = None;
        for (pack, place) in self.find(hash) {
            match self.read(packer, hash, pack, place) {
                Ok(content) => return Ok(content),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        Err(failed.unwrap_or_else(|| missing(hash)))
    }

    /// The content of a chunk at one place, compared with its name.
    pub fn read(
        &self,
        packer: &mut Packer,
        hash: Hash,
        pack: &Pack,
        place: Place,
    ) -> Result<Vec<u8>, StoreError> {
        let path = data_path(&pack.name);
        let bytes = self
            .store
            .medium
            .read_at(&path, place.at, place.len as usize);
        let bytes = bytes.map_err(|e| match e.kind() {
            ErrorKind::NotFound => missing(hash),
            ErrorKind::UnexpectedEof => StoreError::Damaged {
                what: "chunk",
                hash,
                why: "its pack is too short".into(),
            },
            _ => system("read", path.as_str())(e),
        })?;
        packer.unpack(hash, bytes, place.packed)
    }

    /// A list of chunks.
    pub fn entries(&self, packer: &mut Packer, hash: Hash) -> Result<Vec<Entry>, StoreError> {
        list::decode(hash, &self.chunk(packer, hash)?)
    }
}

pub fn missing(hash: Hash) -> StoreError {
    StoreError::Damaged {
        what: "chunk",
        hash,
        why: "it is not there".into(),
    }
}
