//! Images that were booted once: `prepared/NAME` has a snapshot, and is whole when `ready` is in it. A lease keeps the
//! image that its disk lies on.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::error::system;
use super::{Store, StoreError};

/// Where they are, below the store's directory.
const FOLDER: &str = "prepared";
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
        let whole = folder.join("ready").exists();
        whole.then(|| folder.join("snapshot"))
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
        match fs::remove_file(folder.join("ready")) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
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
