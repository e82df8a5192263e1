//! The state directory: what a host keeps, and where.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::{UpError, system};

/// How long is waited for somebody who holds it.
const PATIENCE: Duration = Duration::from_millis(500);

/// A state directory, held by this process alone.
pub struct State {
    path: PathBuf,
    _held: File,
}

impl State {
    /// Makes it if need be, and holds it.
    ///
    /// # Errors
    /// If another process holds it, or it cannot be made.
    pub fn open(path: &Path) -> Result<State, UpError> {
        let shown = path.display();
        let path = std::path::absolute(path).map_err(system("find", shown))?;
        // Monitors' flags have it in them.
        let named = path
            .to_str()
            .is_some_and(|text| !text.contains([',', '[', ']', '"']));
        if !named {
            let what = "its path has a comma, bracket or quote, or is no UTF-8: give another one";
            return Err(system("use", path.display())(std::io::Error::other(what)));
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for part in [
            "",
            "pki",
            "vms",
            "warm",
            "containers",
            "volumes",
            "volume-snapshots",
        ] {
            let part = path.join(part);
            builder
                .create(&part)
                .map_err(system("make", part.display()))?;
        }
        let lock = path.join("lock");
        let held = File::create(&lock).map_err(system("open", lock.display()))?;
        let begun = Instant::now();
        let taken = loop {
            match rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive) {
                // A process that a killed one was just starting still has what that one had, for a moment.
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(PATIENCE / 100);
                }
                other => break other,
            }
        };
        taken.map_err(|e| {
            let e = match e {
                rustix::io::Errno::WOULDBLOCK => {
                    std::io::Error::other("another `skerry up` holds it: stop it, or give --state")
                }
                e => e.into(),
            };
            system("hold", path.display())(e)
        })?;
        Ok(State { path, _held: held })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store's file.
    pub fn store(&self) -> PathBuf {
        self.path.join("store.redb")
    }

    /// The local user's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.path.join("pki")
    }

    /// What `kubectl` needs to know.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    /// Where VMs' own folders are.
    pub fn vms(&self) -> PathBuf {
        self.path.join("vms")
    }

    /// Where folders of monitors are that wait for a VM.
    pub fn warm(&self) -> PathBuf {
        self.path.join("warm")
    }

    /// Where containers' network namespaces are named.
    pub fn namespaces(&self) -> PathBuf {
        self.path.join("netns")
    }

    /// Where images are.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Where it is written down for containers who resolves names.
    pub fn resolvers(&self) -> PathBuf {
        self.path.join("resolv")
    }

    /// Where containers' own folders are.
    pub fn containers(&self) -> PathBuf {
        self.path.join("containers")
    }
}
