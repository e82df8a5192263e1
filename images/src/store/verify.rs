//! Reading everything, to know that it is what it was.

use std::collections::{BTreeMap, HashSet};

use super::base::{BASES, base_path};
use super::chunk::Packer;
use super::index::Index;
use super::list::Content;
use super::packs::{Packs, data_path, index_path, missing};
use super::read::wrong_size;
use super::{Hash, Lease, Named, PATIENCE, Store, StoreError, manifest_path};
use crate::chain::live::Progress;

/// What was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Images by name or lease.
    pub images: u64,
    /// Chunks that were read.
    pub chunks: u64,
    /// What is wrong.
    pub damages: Vec<Damage>,
}

/// Something that is wrong.
#[derive(Debug)]
pub struct Damage {
    /// Who is affected: a name, or a lease's holder.
    pub image: String,
    /// What is wrong.
    pub error: StoreError,
    /// What is not what it should be, if that is known.
    pub part: Option<Part>,
}

/// A part of the store that an import can bring anew when it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A file, below the store's directory.
    File(String),
    /// A chunk of a pack.
    Chunk {
        /// The pack's name.
        pack: String,
        /// The chunk's.
        hash: Hash,
    },
}

impl Store {
    /// Reads all that names and leases lead to, each chunk once, and says what is damaged.
    ///
    /// # Errors
    /// If the store cannot be read at all.
    pub fn verify(&self, progress: &Progress) -> Result<Verified, StoreError> {
        let _use = self.share()?;
        let mut found = Verified::default();
        let mut judged = HashSet::new();
        let mut all: Vec<(String, Hash)> = Vec::new();
        for file in self.list("names")? {
            let path = format!("names/{file}");
            match self.record::<Named>(&path) {
                Ok(named) => all.extend(named.map(|named| (file, named.digest))),
                Err(error) => found.damages.push(Damage {
                    image: file,
                    error,
                    part: Some(Part::File(path)),
                }),
            }
        }
        for file in self.list("leases")? {
            let path = format!("leases/{file}");
            match self.record::<Lease>(&path) {
                Ok(lease) => {
                    let images = lease
                        .into_iter()
                        .flat_map(|lease| lease.images.into_values());
                    all.extend(images.map(|digest| (format!("lease {file}"), digest)));
                }
                Err(error) => found.damages.push(Damage {
                    image: format!("lease {file}"),
                    error,
                    part: Some(Part::File(path)),
                }),
            }
        }
        let sizes = all
            .iter()
            .filter_map(|(_, digest)| self.manifest(*digest).ok());
        progress.expect(sizes.map(|manifest| manifest.kind.size()).sum());
        let (packs, mut packer) = (self.packs()?, Packer::new()?);
        for (name, error) in &packs.broken {
            let (path, why) = match error {
                StoreError::Pack { path, why } => (path.clone(), *why),
                _ => (index_path(name), "it cannot be read"),
            };
            found.damages.push(Damage {
                image: format!("pack {name}"),
                part: Some(Part::File(path.clone())),
                error: StoreError::Pack { path, why },
            });
        }
        for (name, digest) in all {
            found.images += 1;
            let image = name
                .strip_suffix(".json")
                .unwrap_or(&name)
                .replace("%2F", "/");
            let manifest = match self.manifest(digest) {
                Ok(manifest) => manifest,
                Err(error) => {
                    found.damages.push(Damage {
                        image,
                        error,
                        part: Some(Part::File(manifest_path(digest))),
                    });
                    continue;
                }
            };
            for content in manifest.kind.contents() {
                verify_content(
                    &packs,
                    &image,
                    content,
                    &mut packer,
                    &mut judged,
                    &mut found,
                );
                if progress.step(content.size).is_err() {
                    return Err(StoreError::Cancelled);
                }
            }
        }
        Ok(found)
    }

    /// Removes what was found damaged, so that an import brings it anew; how much. Of a disk in one piece that was
    /// damaged, too, only its name goes: who has it open keeps it.
    ///
    /// # Errors
    /// If others use the store for too long, or something cannot be removed.
    pub fn drop_damaged(&self, found: &Verified) -> Result<u64, StoreError> {
        let _alone = self.lock("lock", true, PATIENCE)?;
        let (mut dropped, mut packs) = (0, BTreeMap::<&str, HashSet<Hash>>::new());
        for part in found.damages.iter().filter_map(|d| d.part.as_ref()) {
            match part {
                Part::File(path) if self.length(path)?.is_some() => {
                    self.remove_file(path)?;
                    dropped += 1;
                }
                Part::File(_) => {}
                Part::Chunk { pack, hash } => {
                    packs.entry(pack).or_default().insert(*hash);
                }
            }
        }
        for pack in self.packs()?.all() {
            let Some(damaged) = packs.get(pack.name.as_str()) else {
                continue;
            };
            if let Some(digest) = pack.index.whole() {
                let base = base_path(digest);
                let same =
                    |path: &str| Ok::<_, StoreError>(self.facts(path)?.map(|facts| facts.id));
                if self.length(&base)?.is_some() && same(&base)? == same(&data_path(&pack.name))? {
                    self.remove_file(&base)?;
                    self.sync_folders(&[BASES.to_owned()])?;
                }
            }
            let sound = pack.index.chunks();
            let sound = sound.filter(|(hash, _)| !damaged.contains(hash)).collect();
            let index = Index::new(None, sound);
            dropped += (pack.index.count() - index.count()) as u64;
            self.write_whole(&index_path(&pack.name), index.bytes())?;
        }
        Ok(dropped)
    }
}

fn verify_content(
    packs: &Packs<'_>,
    image: &str,
    content: &Content,
    packer: &mut Packer,
    judged: &mut HashSet<Hash>,
    found: &mut Verified,
) {
    let mut size = 0;
    for list in &content.lists {
        if judged.insert(*list) {
            verify_chunk(packs, image, *list, None, packer, found);
        }
        // One that cannot be read was told.
        let Ok(entries) = packs.entries(packer, *list) else {
            return;
        };
        for entry in entries {
            size += u64::from(entry.len);
            if entry.hash != Hash::ZEROES && judged.insert(entry.hash) {
                found.chunks += 1;
                verify_chunk(packs, image, entry.hash, Some(entry.len), packer, found);
            }
        }
    }
    if size != content.size {
        found.damages.push(Damage {
            image: image.to_owned(),
            error: wrong_size(Hash::ZEROES),
            part: None,
        });
    }
}

/// Looks at a chunk wherever it is.
fn verify_chunk(
    packs: &Packs<'_>,
    image: &str,
    hash: Hash,
    len: Option<u32>,
    packer: &mut Packer,
    found: &mut Verified,
) {
    let mut damage = |error, part| {
        found.damages.push(Damage {
            image: image.to_owned(),
            error,
            part,
        });
    };
    let mut there = false;
    for (pack, place) in packs.find(hash) {
        there = true;
        let error = match packs.read(packer, hash, pack, place) {
            Ok(bytes) if len.is_none_or(|len| bytes.len() == len as usize) => continue,
            Ok(_) => wrong_size(hash),
            Err(error) => error,
        };
        let pack = pack.name.clone();
        damage(error, Some(Part::Chunk { pack, hash }));
    }
    if !there {
        damage(missing(hash), None);
    }
}
