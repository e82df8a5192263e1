//! Garbage collection: what no name and no lease leads to goes.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::time::Duration;

use super::base::BASES;
use super::chunk::Packer;
use super::error::system;
use super::index::{Index, Place, holes};
use super::packs::{PACKS, Pack, Packs, data_path, index_path, of_data, of_index};
use super::{Hash, Lease, Named, Store, StoreError, manifest_path};

/// Where downloads are, below the store's directory. Who downloads shares the store.
pub const FETCHED: &str = "fetched";

/// Bytes that a pack may take beside its chunks and an eighth of them.
const SLACK: u64 = 1 << 20;

/// What a collection came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests that went.
    pub images: u64,
    /// Chunks that went out of packs.
    pub chunks: u64,
    /// Flat copies of disks that went.
    pub bases: u64,
    /// Bytes that came free.
    pub bytes: u64,
}

impl Store {
    /// Removes what nothing leads to: manifests without a name or a lease, chunks without a manifest, disks in one piece
    /// without a lease, and what was never finished. Waits for those who use the store, and keeps others out.
    ///
    /// # Errors
    /// If others use the store for longer than `patience`, or something of it is damaged: nothing goes then that may
    /// still be meant.
    pub fn collect(&self, patience: Duration) -> Result<Collected, StoreError> {
        let _alone = self.lock("lock", true, patience)?;
        let mut done = Collected::default();
        self.sweep_prepared()?;
        let leased = self.leased()?;
        let mut wanted = leased.clone();
        for file in self.list("names")? {
            let named: Option<Named> = self.record(&format!("names/{file}"))?;
            wanted.extend(named.map(|named| named.digest));
        }
        let packs = self.packs()?;
        if let Some((name, _)) = packs.broken.first() {
            // Its chunks cannot be told from garbage.
            return Err(StoreError::Pack {
                path: index_path(name),
                why: "what is in its pack is not known",
            });
        }
        let chunks = self.reached(&packs, &wanted)?;
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
        for file in self.list(BASES)? {
            let (name, what) = file.split_once('.').unwrap_or((&file, ""));
            let digest = name.parse().ok();
            if digest.is_none_or(|digest: Hash| !leased.contains(&digest)) {
                done.bytes += self.discard(&format!("{BASES}/{file}"))?;
                done.bases += u64::from(what == "raw");
            }
        }
        self.sync_folders(&["manifests".to_owned(), BASES.to_owned()])?;
        for pack in packs.all() {
            self.collect_pack(pack, &wanted, &chunks, &mut done)?;
        }
        self.collect_halves(&mut done)?;
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

    /// Takes out of a pack what is garbage. A pack that is a disk in one piece stays as it is while somebody may want
    /// that.
    fn collect_pack(
        &self,
        pack: &Pack,
        wanted: &HashSet<Hash>,
        chunks: &HashSet<Hash>,
        done: &mut Collected,
    ) -> Result<(), StoreError> {
        let (data, index) = (data_path(&pack.name), index_path(&pack.name));
        let Some(facts) = self.facts(&data)? else {
            return Ok(());
        };
        let whole = pack.index.whole();
        if facts.names > 1 || whole.is_some_and(|digest| wanted.contains(&digest)) {
            return Ok(());
        }
        let stay: Vec<(Hash, Place)> = pack
            .index
            .chunks()
            .filter(|(hash, _)| chunks.contains(hash))
            .collect();
        let gone = pack.index.count() - stay.len();
        done.chunks += gone as u64;
        if stay.is_empty() {
            self.remove_file(&index)?;
            // Nobody may find a chunk whose data went.
            self.sync_folders(&[PACKS.to_owned()])?;
            done.bytes += self.discard(&data)?;
            return Ok(());
        }
        let holes = holes(&stay, facts.len);
        let kept = facts.len - holes.iter().map(|(_, len)| len).sum::<u64>();
        // What a collection did not come to is done by the next.
        if gone == 0 && facts.taken <= kept + kept / 8 + SLACK {
            return Ok(());
        }
        if gone > 0 || whole.is_some() {
            self.write_whole(&index, Index::new(None, stay).bytes())?;
        }
        let punched = self.medium.punch(&data, &holes);
        punched.map_err(system("make holes in", data.as_str()))?;
        let now = self.facts(&data)?.map_or(0, |facts| facts.taken);
        done.bytes += facts.taken.saturating_sub(now);
        Ok(())
    }

    /// Removes what was a part of a pack: the other part never came, or went.
    fn collect_halves(&self, done: &mut Collected) -> Result<(), StoreError> {
        let files = self.list(PACKS)?;
        let there: HashSet<&str> = files.iter().map(String::as_str).collect();
        for file in &files {
            let other = match (of_index(file), of_data(file)) {
                (Some(name), _) => data_path(name),
                (_, Some(name)) => index_path(name),
                _ => String::new(),
            };
            let other = other.rsplit_once('/').map_or("", |(_, file)| file);
            if !there.contains(other) {
                done.bytes += self.discard(&format!("{PACKS}/{file}"))?;
            }
        }
        Ok(())
    }

    /// All chunks of some images, lists among them.
    fn reached(
        &self,
        packs: &Packs<'_>,
        images: &HashSet<Hash>,
    ) -> Result<HashSet<Hash>, StoreError> {
        let mut packer = Packer::new()?;
        let mut reached = HashSet::new();
        for digest in images {
            let manifest = match self.length(&manifest_path(*digest))? {
                Some(_) => self.manifest(*digest)?,
                // Who verifies says so. Its chunks cannot be known any more.
                None => continue,
            };
            for list in manifest.kind.contents().flat_map(|content| &content.lists) {
                if !reached.insert(*list) || !packs.has(*list) {
                    continue;
                }
                let entries = packs.entries(&mut packer, *list)?;
                reached.extend(entries.into_iter().map(|entry| entry.hash));
            }
        }
        Ok(reached)
    }

    /// Removes a file; the bytes that came free.
    fn discard(&self, path: &str) -> Result<u64, StoreError> {
        let facts = self.facts(path)?;
        self.remove_file(path)?;
        Ok(facts.map_or(0, |facts| match facts.names {
            0 | 1 => facts.taken,
            _ => 0,
        }))
    }
}
