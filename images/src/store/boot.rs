//! What a disk image of the store starts from: copies of its kernel and initramfs, beside the image in one piece.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::base::{BASES, base_path};
use super::error::system;
use super::{Hash, Store, StoreError};
use crate::boot::{Found, find};
use crate::chain::live::Progress;

/// What a VM of an image starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initramfs, if it has one.
    pub initramfs: Option<PathBuf>,
    /// The number of the partition with its root file system; none if the disk is that.
    pub partition: Option<u32>,
}

/// What is kept of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    initramfs: bool,
    partition: Option<u32>,
}

impl Store {
    /// What a disk image starts from, if it was looked for before: see [`find_boot`](Self::find_boot).
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn boot(&self, digest: Hash) -> Result<Option<Boot>, StoreError> {
        let record: Option<Record> = self.record(&path(digest, "boot.json"))?;
        let Some(record) = record else {
            return Ok(None);
        };
        let (kernel, initramfs) = (path(digest, "kernel"), path(digest, "initramfs"));
        let initramfs = record.initramfs.then_some(initramfs);
        // A power cut in a garbage collection may have left the record alone.
        for file in [Some(&kernel), initramfs.as_ref()].into_iter().flatten() {
            if self.length(file)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(Boot {
            kernel: self.root.join(kernel),
            initramfs: initramfs.map(|file| self.root.join(file)),
            partition: record.partition,
        }))
    }

    /// Finds what a disk image starts from, and keeps it beside its file. Whoever uses it holds a lease of the image. Of a
    /// hostile image the process may die, so it is one that has nothing else to do.
    ///
    /// # Errors
    /// If the image has no kernel that is found, or it cannot be written.
    pub fn find_boot(&self, digest: Hash, progress: &Progress) -> Result<Boot, StoreError> {
        let _use = self.share()?;
        if let Some(boot) = self.boot(digest)? {
            return Ok(boot);
        }
        let base = self.base(digest, progress)?;
        let file = File::open(&base).map_err(system("open", base_path(digest)))?;
        let found = find(file)?;
        self.copy(digest, "kernel", |file| Ok(found.copy_kernel(file)?))?;
        if found.has_initramfs() {
            self.copy(digest, "initramfs", |file| Ok(found.copy_initramfs(file)?))?;
        }
        let Found { partition, .. } = found;
        let record = Record {
            initramfs: found.has_initramfs(),
            partition,
        };
        // It is whole when this is there.
        self.write_record(&path(digest, "boot.json"), &record)?;
        let boot = self.boot(digest)?;
        boot.ok_or_else(|| {
            system("read", path(digest, "boot.json"))(std::io::ErrorKind::NotFound.into())
        })
    }

    /// Writes a file beside the image's that is there as a whole or not at all.
    fn copy(
        &self,
        digest: Hash,
        what: &str,
        write: impl FnOnce(&File) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let temporary = self.temporary();
        let partial = self.root.join(&temporary);
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&partial);
        let file = file.map_err(system("make", temporary.as_str()))?;
        let written = write(&file).and_then(|()| {
            let synced = file.sync_all();
            synced.map_err(system("write out", temporary.as_str()))?;
            self.rename(&temporary, &path(digest, what))
        });
        if written.is_err() {
            // On a full disk every byte counts.
            let _ = fs::remove_file(&partial);
        }
        written
    }
}

fn path(digest: Hash, what: &str) -> String {
    format!("{BASES}/{digest}.{what}")
}
