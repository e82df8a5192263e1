//! The image store: images as chunks that are named by their content, so what two images have alike is kept once.
//!
//! ```text
//! STORE/store.json          the version
//!       lock                shared by all who use the store, alone for who collects garbage
//!       packs/ID.data       chunks, some of them packed by zstd
//!       packs/ID.index      which they are, by the BLAKE3 hashes of their contents, and where
//!       manifests/HASH.json what an image consists of, named by its own hash
//!       names/NAME.json     a name: which image, where it came from
//!       leases/HOLDER.json  somebody uses images, whatever becomes of their names
//!       bases/HASH.raw      a disk image in one piece, for VMs' layers to lie on
//!       bases/HASH.kernel   what it starts from, with HASH.initramfs and HASH.boot.json
//!       prepared/NAME/      an image that was booted: a snapshot, and the layer of its disk
//!       tmp/, fetched/      what is not whole yet
//! ```
//!
//! A disk's chunks are stretches of 64 KiB of what its guest sees, other contents are cut by what is in them (FastCDC).
//! A chunk of zeroes is not kept. A disk of which the store knows hardly anything has a pack of its own, with each chunk
//! where the disk has it and nothing packed: its data is the disk in one piece, too, by a second name of the file. What
//! is new of any other image is in one pack.
//!
//! Nothing names what is not durable: packs come before the manifest that lists their chunks, and that before its name;
//! garbage goes the other way round. So a power cut leaves garbage at worst.
//!
//! All of it blocks. Every chunk is compared with its name when it is read.

mod base;
mod boot;
mod chunk;
mod error;
mod gc;
mod hash;
mod import;
mod index;
mod list;
mod manifest;
mod medium;
mod name;
mod packs;
mod prepared;
mod put;
mod read;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use boot::Boot;
pub use error::StoreError;
pub use gc::{Collected, FETCHED};
pub use hash::Hash;
pub use import::{Imported, Origin, STRETCH};
pub use list::Content;
pub use manifest::{Image, Kind, Lease, Manifest, Named};
pub use name::Name;
pub use read::{Reader, usage};
pub use verify::{Damage, Part, Verified};

use self::base::BASES;
use self::error::system;
use self::manifest::VERSION;
use self::medium::{Disk, Facts, Held, Medium};
use self::packs::PACKS;

/// How long is waited for others who have the store alone.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of the longest name's or lease's file.
const RECORD: u64 = 1 << 20;

/// An image store. Clones are the same.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    medium: Arc<dyn Medium>,
}

/// The store's use by somebody: nothing is collected as garbage meanwhile.
pub struct Use(#[expect(dead_code, reason = "held until it is dropped")] Held);

#[derive(serde::Serialize, serde::Deserialize)]
struct Header {
    version: u32,
}

impl Store {
    /// That in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// If the directory cannot be used, or has another version.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        let disk = Disk::new(root).map_err(system("make", root.display().to_string()))?;
        Store::on(root, Arc::new(disk))
    }

    fn on(root: &Path, medium: Arc<dyn Medium>) -> Result<Store, StoreError> {
        let store = Store {
            root: root.to_owned(),
            medium,
        };
        let header: Option<Header> = store.record("store.json")?;
        match header {
            Some(header) if header.version == VERSION => Ok(store),
            Some(header) => Err(StoreError::Version {
                path: store.root,
                found: header.version,
                known: VERSION,
            }),
            None => {
                for folder in [PACKS, "manifests", "names", "leases", BASES, "tmp"] {
                    store.make_folder(folder)?;
                }
                store.sync_folders(&[".".to_owned()])?;
                store.write_record("store.json", &Header { version: VERSION })?;
                Ok(store)
            }
        }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Keeps the garbage collection away.
    ///
    /// # Errors
    /// If that goes on for ten minutes.
    pub fn share(&self) -> Result<Use, StoreError> {
        self.lock("lock", false, PATIENCE)
    }

    fn lock(&self, name: &str, alone: bool, patience: Duration) -> Result<Use, StoreError> {
        let held = self.medium.lock(name, alone, patience);
        let held = held.map_err(system("lock", name))?;
        let busy = || StoreError::Busy {
            path: self.root.clone(),
        };
        held.map(Use).ok_or_else(busy)
    }

    /// All names, in order.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn names(&self) -> Result<Vec<Name>, StoreError> {
        let files = self.list("names")?;
        let mut names: Vec<Name> = files
            .iter()
            .filter_map(|file| Name::of_file(file))
            .collect();
        names.sort();
        Ok(names)
    }

    /// An image by its name.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn image(&self, name: &Name) -> Result<Image, StoreError> {
        let named: Option<Named> = self.record(&format!("names/{}", name.file()))?;
        let named = named.ok_or_else(|| StoreError::NoImage {
            name: name.to_string(),
        })?;
        Ok(Image {
            name: name.clone(),
            manifest: self.manifest(named.digest)?,
            named,
        })
    }

    /// What an image consists of, by its digest.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn manifest(&self, digest: Hash) -> Result<Manifest, StoreError> {
        let damaged = |why: String| StoreError::Damaged {
            what: "manifest",
            hash: digest,
            why,
        };
        let path = manifest_path(digest);
        let bytes = self.medium.read(&path, manifest::LONGEST);
        let bytes = bytes.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => damaged("it is not there".into()),
            _ => system("read", path.as_str())(e),
        })?;
        if Hash::of(&bytes) != digest {
            return Err(damaged("it holds something else".into()));
        }
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        match manifest.version == VERSION {
            true => Ok(manifest),
            false => Err(damaged(format!("it has version {}", manifest.version))),
        }
    }

    /// Takes a name away. The image goes with the next garbage collection, if nothing else has it.
    ///
    /// # Errors
    /// If there is no such name.
    pub fn remove(&self, name: &Name) -> Result<(), StoreError> {
        let _use = self.share()?;
        let path = format!("names/{}", name.file());
        if self.length(&path)?.is_none() {
            return Err(StoreError::NoImage {
                name: name.to_string(),
            });
        }
        self.remove_file(&path)?;
        self.sync_folders(&["names".to_owned()])
    }

    /// Who has leases.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn holders(&self) -> Result<Vec<String>, StoreError> {
        let files = self.list("leases")?;
        let holders = files.iter().filter_map(|file| file.strip_suffix(".json"));
        Ok(holders.map(str::to_owned).collect())
    }

    /// Somebody's lease, if there is one. A holder is named as a file can be.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn lease(&self, holder: &str) -> Result<Option<Lease>, StoreError> {
        self.record(&lease_path(holder))
    }

    /// Puts one more image into somebody's lease, as `what`. Whoever looked the image up before must have held
    /// [`share`](Self::share) since then.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn hold(&self, holder: &str, what: &str, digest: Hash) -> Result<(), StoreError> {
        let found = self.lease(holder)?;
        let mut lease = found.unwrap_or_else(|| Lease {
            version: VERSION,
            images: Default::default(),
        });
        lease.images.insert(what.to_owned(), digest);
        self.write_record(&lease_path(holder), &lease)
    }

    /// Ends somebody's lease, if there is one.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn release(&self, holder: &str) -> Result<(), StoreError> {
        let path = lease_path(holder);
        if self.length(&path)?.is_some() {
            self.remove_file(&path)?;
            self.sync_folders(&["leases".to_owned()])?;
        }
        Ok(())
    }

    /// Gives an image its name, in the place of what had it.
    fn give_name(&self, name: &Name, named: &Named) -> Result<(), StoreError> {
        self.write_record(&format!("names/{}", name.file()), named)
    }

    fn record<R: DeserializeOwned>(&self, path: &str) -> Result<Option<R>, StoreError> {
        let bytes = match self.medium.read(path, RECORD) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(system("read", path)(e)),
        };
        let record = serde_json::from_slice(&bytes);
        record.map(Some).map_err(|source| StoreError::Record {
            path: path.into(),
            source,
        })
    }

    fn write_record(&self, path: &str, record: &impl Serialize) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(record).map_err(|source| StoreError::Record {
            path: path.into(),
            source,
        })?;
        self.write_whole(path, &bytes)
    }

    /// Writes a file that is there as a whole or not at all, and durable when this returns.
    fn write_whole(&self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.temporary();
        self.write_durable(&temporary, bytes)?;
        self.rename(&temporary, path)?;
        let folder = path.rsplit_once('/').map_or(".", |(folder, _)| folder);
        self.sync_folders(&[folder.to_owned()])
    }

    /// Writes a file whose content is durable when this returns, under whatever name it will have.
    fn write_durable(&self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.medium.write(path, bytes);
        written.map_err(system("write", path))?;
        let files = [path.to_owned()];
        self.medium.sync(&files).map_err(system("write out", path))
    }

    /// A name for what is not whole yet, which nobody else has: also not who was killed, and had this process's id.
    fn temporary(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.unwrap_or_default().as_nanos();
        format!("tmp/{}-{now:x}-{n}", std::process::id())
    }

    /// A name that no other pack has.
    fn unique(&self) -> String {
        Hash::of(self.temporary().as_bytes())
            .to_string()
            .split_off(32)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        self.medium.rename(from, to).map_err(system("name", to))
    }

    fn length(&self, path: &str) -> Result<Option<u64>, StoreError> {
        let facts = self.facts(path)?;
        Ok(facts.map(|facts| facts.len))
    }

    fn facts(&self, path: &str) -> Result<Option<Facts>, StoreError> {
        self.medium.facts(path).map_err(system("look at", path))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        self.medium.list(folder).map_err(system("list", folder))
    }

    fn remove_file(&self, path: &str) -> Result<(), StoreError> {
        self.medium.remove(path).map_err(system("remove", path))
    }

    fn make_folder(&self, folder: &str) -> Result<(), StoreError> {
        let made = self.medium.make_folder(folder);
        made.map_err(system("make", folder))
    }

    fn sync_folders(&self, folders: &[String]) -> Result<(), StoreError> {
        let synced = self.medium.sync_folders(folders);
        synced.map_err(system("write out", folders.join(", ")))
    }
}

/// A manifest's digest, and its bytes.
fn manifest_of(kind: Kind) -> Result<(Hash, Vec<u8>), StoreError> {
    let manifest = Manifest {
        version: VERSION,
        kind,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|source| StoreError::Record {
        path: "manifests".into(),
        source,
    })?;
    let (size, limit) = (bytes.len() as u64, manifest::LONGEST);
    match size > limit {
        true => Err(StoreError::TooMuch {
            what: "the image's manifest",
            size,
            limit,
        }),
        false => Ok((Hash::of(&bytes), bytes)),
    }
}

fn manifest_path(digest: Hash) -> String {
    format!("manifests/{digest}.json")
}

fn lease_path(holder: &str) -> String {
    format!("leases/{holder}.json")
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[path = "cuts_test.rs"]
mod cuts;
#[cfg(test)]
#[path = "kills_test.rs"]
mod kills;
#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
