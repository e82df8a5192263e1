//! Images that were booted once: `prepared/NAME` has a snapshot, and is whole when `ready` is in it. A lease keeps the
//! image that its disk lies on.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::error::system;
use super::{Store, StoreError};

/// Where they are, below the store's directory.
const FOLDER: &str = "prepared";
/// The file that says that one is whole.
const MARK: &str = "ready";
/// What the names of their leases begin with.
const LEASE: &str = "prepared.";

impl Store {
    /// The folder of what is prepared as `name`, which may not be there. A name is one as objects have.
    pub fn prepared(&self, name: &str) -> PathBuf {
        self.root.join(FOLDER).join(name)
    }

    /// Its snapshot, if it is whole.
    pub fn prepared_snapshot(&self, name: &str) -> Option<PathBuf> {
        let folder = self.prepared(name);
        let whole = folder.join(MARK).exists();
        whole.then(|| folder.join("snapshot"))
    }

    /// All that belongs to it is in its folder: it is made durable, and whole from now on.
    ///
    /// # Errors
    /// If it cannot be made durable; it is not whole then.
    pub fn keep_prepared(&self, name: &str) -> Result<(), StoreError> {
        let folder = self.prepared(name);
        let failed = |e| system("write out", format!("{FOLDER}/{name}"))(e);
        // No power cut may leave the mark without what it stands for.
        settle(&folder).map_err(failed)?;
        let mark = File::create(folder.join(MARK)).map_err(failed)?;
        mark.sync_all().map_err(failed)?;
        for folder in [&folder, &self.root.join(FOLDER), &self.root] {
            sync_folder(folder).map_err(failed)?;
        }
        Ok(())
    }

    /// The holder of its lease.
    pub fn prepared_lease(name: &str) -> String {
        format!("{LEASE}{name}")
    }

    /// Removes it, and its lease. Whoever calls this keeps the garbage collection away; false if there was none.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_prepared(&self, name: &str) -> Result<bool, StoreError> {
        let folder = self.prepared(name);
        let failed = |e| system("remove", format!("{FOLDER}/{name}"))(e);
        // Without this file it is nothing that a clone may be made of.
        match fs::remove_file(folder.join(MARK)) {
            // Also not after a power cut that the rest did not survive.
            Ok(()) => sync_folder(&folder).map_err(failed)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let there = match fs::remove_dir_all(&folder) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => return Err(failed(e)),
        };
        self.release(&Store::prepared_lease(name))?;
        Ok(there)
    }

    /// Removes what was never finished, and leases of what is gone. Whoever calls this has the store alone.
    pub(super) fn sweep_prepared(&self) -> Result<(), StoreError> {
        let mut names = match fs::read_dir(self.root.join(FOLDER)) {
            Ok(entries) => entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(system("list", FOLDER)(e)),
        };
        let holders = self.holders()?;
        let leased = holders.iter().filter_map(|name| name.strip_prefix(LEASE));
        names.extend(leased.map(str::to_owned));
        for name in names {
            if self.prepared_snapshot(&name).is_none() {
                self.remove_prepared(&name)?;
            }
        }
        Ok(())
    }
}

/// Makes all that is in a folder durable, and its names.
fn settle(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            settle(&path)?;
        } else if kind.is_file() {
            File::open(&path)?.sync_all()?;
        }
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
