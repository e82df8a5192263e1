//! The directory: made under another name, named when it is whole.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use crate::error::io;
use crate::{Header, Records, SnapshotError, State};

const STATE: &str = "state";
const MEMORY: &str = "memory";

/// A snapshot's directory.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

impl Directory {
    /// The one at `path`; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Directory {
        Directory(path.into())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The state file.
    pub fn state(&self) -> PathBuf {
        self.0.join(STATE)
    }

    /// The memory file.
    pub fn memory(&self) -> PathBuf {
        self.0.join(MEMORY)
    }

    /// Its header.
    pub fn header(&self) -> Result<Header, SnapshotError> {
        State::read_header(&self.state())
    }

    /// Its format version and its header.
    pub fn describe(&self) -> Result<(u32, Header), SnapshotError> {
        State::describe(&self.state())
    }
}

/// A directory that is being made. Dropped before [`complete`](Self::complete), it is removed.
pub struct Partial {
    directory: Directory,
    /// The directory itself, by which it is told from one that took its place.
    handle: File,
    target: PathBuf,
    kept: bool,
}

impl Partial {
    /// Makes `target.partial`; what an interrupted one left there is removed first.
    pub fn create(target: &Path) -> Result<Partial, SnapshotError> {
        if target.symlink_metadata().is_ok() {
            return Err(SnapshotError::Exists {
                path: target.to_owned(),
            });
        }
        // Without a slash behind it.
        let mut name = match target.file_name() {
            Some(name) => name.to_owned(),
            None => return Err(io("make", target)(ErrorKind::InvalidInput.into())),
        };
        let target = target.with_file_name(&name);
        name.push(".partial");
        let directory = Directory::new(target.with_file_name(name));
        let path = directory.path();
        remove_leftovers(&directory)?;
        std::fs::create_dir(path).map_err(io("make", path))?;
        let handle = File::open(path).map_err(|e| {
            let _ = std::fs::remove_dir(path);
            io("open", path)(e)
        })?;
        Ok(Partial {
            directory,
            handle,
            target,
            kept: false,
        })
    }

    /// Whether its directory is still there under its name. Another one of the same target may have
    /// taken this one for a leftover.
    fn is_ours(&self) -> bool {
        let place = |found: Metadata| (found.dev(), found.ino());
        let named = self.directory.path().symlink_metadata().map(place);
        let ours = self.handle.metadata().map(place);
        matches!((named, ours), (Ok(named), Ok(ours)) if named == ours)
    }

    fn must_be_ours(&self) -> Result<(), SnapshotError> {
        if self.is_ours() {
            return Ok(());
        }
        let place = self.directory.path().display();
        Err(SnapshotError::Unwritable {
            what: format!("{place} is another one's now"),
        })
    }

    /// Where it is meanwhile.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Makes the memory file.
    pub fn create_memory(&self, size: u64) -> Result<File, SnapshotError> {
        let path = self.directory.memory();
        let made = || {
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                // Whatever the guest knows is in it.
                .mode(0o600)
                .open(&path)?;
            file.set_len(size)?;
            Ok(file)
        };
        made().map_err(io("make", &path))
    }

    /// Writes the state, makes all of it durable, and gives it its name.
    pub fn complete(mut self, records: Records, header: Header) -> Result<(), SnapshotError> {
        self.must_be_ours()?;
        records.write(&self.directory.state(), header)?;
        let sync = |path: &Path| {
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(io("write", path))
        };
        sync(&self.directory.memory())?;
        sync(self.directory.path())?;
        self.must_be_ours()?;
        let (from, to) = (self.directory.path(), &self.target);
        rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
            .map_err(|e| io("name", to)(e.into()))?;
        self.kept = true;
        let parent = self.target.parent().filter(|p| !p.as_os_str().is_empty());
        sync(parent.unwrap_or(Path::new(".")))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept && self.is_ours() {
            let _ = std::fs::remove_file(self.directory.state());
            let _ = std::fs::remove_file(self.directory.memory());
            let _ = std::fs::remove_dir(self.directory.path());
        }
    }
}

/// Removes what an interrupted one left.
fn remove_leftovers(directory: &Directory) -> Result<(), SnapshotError> {
    let path = directory.path();
    let there = |removed: std::io::Result<()>| match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    };
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        // What a link leads to is nobody's leftover.
        Ok(found) if !found.is_dir() => {
            return Err(SnapshotError::Exists {
                path: path.to_owned(),
            });
        }
        _ => {}
    }
    for file in [directory.state(), directory.memory()] {
        there(std::fs::remove_file(&file)).map_err(io("remove", &file))?;
    }
    there(std::fs::remove_dir(path)).map_err(io("remove", path))
}
