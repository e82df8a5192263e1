//! Disk images in one piece: files that VMs' own layers lie on, and exports.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::chunk::Packer;
use super::error::system;
use super::list::{CHUNKS, Content};
use super::medium::take;
use super::read::wrong_size;
use super::{Hash, Kind, PATIENCE, Store, StoreError};
use crate::chain::live::Progress;

/// Threads that read and unpack.
const MOST_THREADS: usize = 8;

impl Store {
    /// The file with a disk image in one piece, raw and sparse, which is made if it is not there. Whoever uses it
    /// holds a lease of the image: see [`hold`](Self::hold).
    ///
    /// # Errors
    /// If the image is no disk, is damaged, or cannot be written.
    pub fn base(&self, digest: Hash, progress: &Progress) -> Result<PathBuf, StoreError> {
        let _use = self.share()?;
        let path = self.root.join(base_path(digest));
        if path.exists() {
            return Ok(path);
        }
        // Who makes one makes it for all who wait.
        let lock = take(&self.root.join("bases.lock"), true, PATIENCE);
        let lock = lock.map_err(system("lock", "bases.lock"))?;
        let _lock = lock.ok_or_else(|| StoreError::Busy {
            path: self.root.clone(),
        })?;
        if path.exists() {
            return Ok(path);
        }
        let manifest = self.manifest(digest)?;
        let Kind::Disk { disk } = &manifest.kind else {
            return Err(StoreError::Kind {
                name: digest.to_string(),
                is: "an OCI image",
                wanted: "a disk",
            });
        };
        let temporary = self.temporary();
        let partial = self.root.join(&temporary);
        let made = self.base_file(disk, &partial, progress);
        let named = made.and_then(|()| {
            self.rename(&temporary, &base_path(digest))?;
            self.sync_folders(&["bases".to_owned()])
        });
        if named.is_err() {
            // On a full disk every byte counts.
            let _ = fs::remove_file(&partial);
        }
        named.map(|()| path)
    }

    fn base_file(
        &self,
        disk: &Content,
        path: &Path,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let shown = path.display().to_string();
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path).map_err(system("make", shown.as_str()))?;
        self.write_disk(disk, &file, progress)?;
        file.sync_all().map_err(system("write out", shown))
    }

    /// Writes a disk's content to an empty file; zeroes become holes.
    ///
    /// # Errors
    /// If something of it is damaged, or cannot be written.
    pub fn write_disk(
        &self,
        disk: &Content,
        file: &File,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        progress.expect(disk.size);
        let failed = system("write", "a disk in one piece");
        file.set_len(disk.size).map_err(failed)?;
        let mut packer = Packer::new()?;
        let mut start = 0;
        for list in &disk.lists {
            let entries = self.entries(&mut packer, *list)?;
            let mut places = Vec::with_capacity(CHUNKS);
            for entry in entries {
                places.push((start, entry));
                start += u64::from(entry.len);
            }
            if start > disk.size {
                return Err(wrong_size(*list));
            }
            let next = AtomicUsize::new(0);
            let work = || -> Result<(), StoreError> {
                let mut packer = Packer::new()?;
                while let Some((at, entry)) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if entry.hash != Hash::ZEROES {
                        let bytes = self.chunk(&mut packer, entry.hash)?;
                        if bytes.len() != entry.len as usize {
                            return Err(wrong_size(entry.hash));
                        }
                        let written = file.write_all_at(&bytes, *at);
                        written.map_err(system("write", "a disk in one piece"))?;
                    }
                    let step = progress.step(entry.len.into());
                    step.map_err(|_| StoreError::Cancelled)?;
                }
                Ok(())
            };
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = cpus.min(MOST_THREADS).min(places.len());
            std::thread::scope(|scope| {
                let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
                let mut result = work();
                for other in others {
                    result = result.and(other.join().unwrap_or(Err(StoreError::Cancelled)));
                }
                result
            })?;
        }
        match start == disk.size {
            true => Ok(()),
            false => Err(wrong_size(Hash::ZEROES)),
        }
    }
}

pub(super) fn base_path(digest: Hash) -> String {
    format!("bases/{digest}.raw")
}
