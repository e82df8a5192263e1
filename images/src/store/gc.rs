//! Garbage collection: what no name and no lease leads to goes.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::time::Duration;

use super::chunk::Packer;
use super::error::system;
use super::{Hash, Lease, Named, Store, StoreError, chunk_path, manifest_path};

/// Where downloads are, below the store's directory. Who downloads shares the store.
pub const FETCHED: &str = "fetched";

/// What a collection came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests that went.
    pub images: u64,
    /// Chunks that went.
    pub chunks: u64,
    /// Flat copies of disks that went.
    pub bases: u64,
    /// Bytes that all of them took.
    pub bytes: u64,
}

impl Store {
    /// Removes what nothing leads to: manifests without a name or a lease, chunks without a manifest, flat disks without
    /// a lease, and what was never finished. Waits for those who use the store, and keeps others out.
    ///
    /// # Errors
    /// If others use the store for longer than `patience`, or something of it is damaged: nothing goes then that may
    /// still be meant.
    pub fn collect(&self, patience: Duration) -> Result<Collected, StoreError> {
        let _alone = self.lock(true, patience)?;
        let mut done = Collected::default();
        self.sweep_prepared()?;
        let leased = self.leased()?;
        let mut wanted = leased.clone();
        for file in self.list("names")? {
            let named: Option<Named> = self.record(&format!("names/{file}"))?;
            wanted.extend(named.map(|named| named.digest));
        }
        let chunks = self.reached(&wanted)?;
        // Nothing may name what is gone: manifests first, then what they name.
        for file in self.list("manifests")? {
            let digest = file
                .strip_suffix(".json")
                .and_then(|name| name.parse().ok());
            if digest.is_none_or(|digest: Hash| !wanted.contains(&digest)) {
                done.bytes += self.discard(&format!("manifests/{file}"))?;
                done.images += 1;
            }
        }
        self.sync_folders(&["manifests".to_owned()])?;
        for folder in self.list("chunks")? {
            for file in self.list(&format!("chunks/{folder}"))? {
                let known = file.parse().is_ok_and(|hash: Hash| chunks.contains(&hash));
                if !known {
                    done.bytes += self.discard(&format!("chunks/{folder}/{file}"))?;
                    done.chunks += 1;
                }
            }
        }
        for file in self.list("bases")? {
            let (name, what) = file.split_once('.').unwrap_or((&file, ""));
            let digest = name.parse().ok();
            if digest.is_none_or(|digest: Hash| !leased.contains(&digest)) {
                done.bytes += self.discard(&format!("bases/{file}"))?;
                done.bases += u64::from(what == "raw");
            }
        }
        for file in self.list("tmp")? {
            done.bytes += self.discard(&format!("tmp/{file}"))?;
        }
        match std::fs::remove_dir_all(self.root.join(FETCHED)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(system("remove", FETCHED)(e))?,
            _ => {}
        }
        Ok(done)
    }

    /// The images that somebody uses.
    fn leased(&self) -> Result<HashSet<Hash>, StoreError> {
        let mut leased = HashSet::new();
        for file in self.list("leases")? {
            let lease: Option<Lease> = self.record(&format!("leases/{file}"))?;
            leased.extend(
                lease
                    .into_iter()
                    .flat_map(|lease| lease.images.into_values()),
            );
        }
        Ok(leased)
    }

    /// All chunks of some images, lists among them.
    fn reached(&self, images: &HashSet<Hash>) -> Result<HashSet<Hash>, StoreError> {
        let mut packer = Packer::new()?;
        let mut reached = HashSet::new();
        for digest in images {
            let manifest = match self.length(&manifest_path(*digest))? {
                Some(_) => self.manifest(*digest)?,
                // Who verifies says so. Its chunks cannot be known any more.
                None => continue,
            };
            for list in manifest.kind.contents().flat_map(|content| &content.lists) {
                if !reached.insert(*list) || self.length(&chunk_path(*list))?.is_none() {
                    continue;
                }
                let entries = self.entries(&mut packer, *list)?;
                reached.extend(entries.into_iter().map(|entry| entry.hash));
            }
        }
        Ok(reached)
    }

    /// Removes a file; its length.
    fn discard(&self, path: &str) -> Result<u64, StoreError> {
        let length = self.length(path)?.unwrap_or(0);
        self.remove_file(path)?;
        Ok(length)
    }
}
