//! What the engine's file lies on: opened anew after every failure, with some space kept for bad days.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redb::StorageBackend;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs};

use super::state::database;
use crate::store::StoreError;
use crate::store::error::engine;

/// Space that is kept, in bytes: with it objects can be deleted when there is no other.
const RESERVE: u64 = 8 << 20;

/// How long is waited for somebody who has the file.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where the engine's file is.
pub trait Medium: Send + Sync {
    /// The file. It is asked for again after a failure, when nobody uses the one before any more.
    fn file(&self) -> Box<dyn StorageBackend>;
    /// Space for the file to grow, in bytes.
    fn available(&self) -> u64;
    /// Keeps some space for bad days; nothing changes if it is kept already.
    fn reserve(&self) -> io::Result<()>;
    /// Gives it up; false if there was none.
    fn release(&self) -> bool;
    /// What it is called in messages.
    fn name(&self) -> String;
}

/// A file's bytes as redb wants them. The first error is kept: redb tells it only to whom it happened.
#[derive(Debug)]
pub struct Bytes {
    file: Box<dyn StorageBackend>,
    trouble: Trouble,
}

/// The first thing that went wrong with a file since somebody asked.
pub type Trouble = Arc<Mutex<Option<io::Error>>>;

impl Bytes {
    /// Those of a medium's file.
    pub fn of(medium: &dyn Medium, trouble: &Trouble) -> Bytes {
        Bytes {
            file: medium.file(),
            trouble: trouble.clone(),
        }
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result {
            let same = match e.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(e.kind(), e.to_string()),
            };
            self.trouble.lock().get_or_insert(same);
        }
        result
    }
}

impl StorageBackend for Bytes {
    fn len(&self) -> io::Result<u64> {
        self.note(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.note(self.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(self.file.write(offset, data))
    }
}

/// Whether there is no space.
pub fn no_space(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// A file of this host.
pub struct OnDisk {
    path: PathBuf,
    /// Locked as long as we live, so that no other process uses it between two openings either.
    file: Arc<File>,
}

impl OnDisk {
    /// The file at `path`, which is made if need be.
    pub fn open(path: &Path) -> Result<OnDisk, StoreError> {
        if !path.exists() {
            make(path)?;
        }
        let mut options = File::options();
        let file = options.read(true).write(true).open(path);
        let file = file.map_err(engine("open its file"))?;
        let begun = Instant::now();
        while let Err(e) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // A process that a killed one was just starting still has what that one had, for a moment.
            if begun.elapsed() > PATIENCE {
                return Err(engine("hold its file, which another process has")(e));
            }
            std::thread::sleep(PATIENCE / 100);
        }
        Ok(OnDisk {
            path: path.to_owned(),
            file: Arc::new(file),
        })
    }

    fn ballast(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }
}

/// Makes a file, which gets its name when it is whole: half of one could not be opened ever again.
fn make(path: &Path) -> Result<(), StoreError> {
    let new = path.with_extension("new");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.mode(0o600).open(&new);
    let file = Arc::new(file.map_err(engine("make its file"))?);
    let made = database(Shared(file.clone())).and_then(|db| {
        drop(db);
        file.sync_all().map_err(engine("make its file"))?;
        std::fs::rename(&new, path).map_err(engine("name its file"))?;
        let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")));
        folder
            .and_then(|folder| folder.sync_all())
            .map_err(engine("make its file"))
    });
    if made.is_err() {
        // The next to come tries again.
        let _ = std::fs::remove_file(&new);
    }
    made
}

impl Medium for OnDisk {
    fn file(&self) -> Box<dyn StorageBackend> {
        Box::new(Shared(self.file.clone()))
    }

    fn available(&self) -> u64 {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        // What cannot be known is not held against it.
        statvfs(folder).map_or(u64::MAX, |found| {
            found.f_bavail.saturating_mul(found.f_frsize)
        })
    }

    fn reserve(&self) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let file = options.open(self.ballast())?;
        match fallocate(&file, FallocateFlags::empty(), 0, RESERVE) {
            // Some file systems cannot keep space: they are no worse off than without it.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(e) => {
                self.release();
                Err(e.into())
            }
        }
    }

    fn release(&self) -> bool {
        std::fs::remove_file(self.ballast()).is_ok()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// A file that two openings have one after the other.
struct Shared(Arc<File>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}
