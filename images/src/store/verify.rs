//! Reading everything, to know that it is what it was.

use std::collections::BTreeMap;

use super::chunk::Packer;
use super::list::Content;
use super::read::wrong_size;
use super::{Hash, Lease, Named, Store, StoreError, chunk_path, manifest_path};
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
    /// The file that is not what it should be, below the store's directory.
    pub file: Option<String>,
}

impl Store {
    /// Reads all that names and leases lead to, each chunk once, and says what is damaged.
    ///
    /// # Errors
    /// If the store cannot be read at all.
    pub fn verify(&self, progress: &Progress) -> Result<Verified, StoreError> {
        let _use = self.share()?;
        let mut found = Verified::default();
        let mut judged: BTreeMap<Hash, bool> = BTreeMap::new();
        let mut all: Vec<(String, Hash)> = Vec::new();
        for file in self.list("names")? {
            let path = format!("names/{file}");
            match self.record::<Named>(&path) {
                Ok(named) => all.extend(named.map(|named| (file, named.digest))),
                Err(error) => found.damages.push(Damage {
                    image: file,
                    error,
                    file: Some(path),
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
                    file: Some(path),
                }),
            }
        }
        let sizes = all
            .iter()
            .filter_map(|(_, digest)| self.manifest(*digest).ok());
        progress.expect(sizes.map(|manifest| manifest.kind.size()).sum());
        let mut packer = Packer::new()?;
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
                        file: Some(manifest_path(digest)),
                    });
                    continue;
                }
            };
            for content in manifest.kind.contents() {
                self.verify_content(&image, content, &mut packer, &mut judged, &mut found);
                if progress.step(content.size).is_err() {
                    return Err(StoreError::Cancelled);
                }
            }
        }
        Ok(found)
    }

    fn verify_content(
        &self,
        image: &str,
        content: &Content,
        packer: &mut Packer,
        judged: &mut BTreeMap<Hash, bool>,
        found: &mut Verified,
    ) {
        let damage = |error, hash| Damage {
            image: image.to_owned(),
            error,
            file: Some(chunk_path(hash)),
        };
        let mut size = 0;
        for list in &content.lists {
            let entries = match self.entries(packer, *list) {
                Ok(entries) => entries,
                Err(error) => {
                    found.damages.push(damage(error, *list));
                    return;
                }
            };
            for entry in entries {
                size += u64::from(entry.len);
                if entry.hash == Hash::ZEROES || judged.contains_key(&entry.hash) {
                    continue;
                }
                found.chunks += 1;
                let chunk = self.chunk(packer, entry.hash);
                let good = match chunk {
                    Ok(bytes) if bytes.len() == entry.len as usize => true,
                    Ok(_) => {
                        found
                            .damages
                            .push(damage(wrong_size(entry.hash), entry.hash));
                        false
                    }
                    Err(error) => {
                        found.damages.push(damage(error, entry.hash));
                        false
                    }
                };
                judged.insert(entry.hash, good);
            }
        }
        if size != content.size {
            found.damages.push(Damage {
                image: image.to_owned(),
                error: wrong_size(Hash::ZEROES),
                file: None,
            });
        }
    }

    /// Removes the files of what was found damaged, so that an import brings them anew; how many.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn drop_damaged(&self, found: &Verified) -> Result<u64, StoreError> {
        let mut dropped = 0;
        for file in found
            .damages
            .iter()
            .filter_map(|damage| damage.file.as_ref())
        {
            if self.length(file)?.is_some() {
                self.remove_file(file)?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}
