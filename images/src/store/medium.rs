//! What the store is kept on: files in folders. The tests have one that forgets what was not made durable.

use std::any::Any;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Held as long as a lock is.
pub type Held = Box<dyn Any + Send + Sync>;

/// Files in folders, by paths below the store's directory.
pub trait Medium: Debug + Send + Sync {
    /// A file's bytes, of which there may be `limit`.
    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>>;
    /// A file's length; none if there is none.
    fn length(&self, path: &str) -> io::Result<Option<u64>>;
    /// Makes a file with these bytes.
    fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes files' contents durable, whatever they are called.
    fn sync(&self, paths: &[String]) -> io::Result<()>;
    /// Gives a file another name, in the place of a file that may have it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// The names in a folder.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;
    /// Makes a folder if it is not there.
    fn make_folder(&self, folder: &str) -> io::Result<()>;
    /// Makes durable what folders have in them.
    fn sync_folders(&self, folders: &[String]) -> io::Result<()>;
    /// Takes the store's lock, shared or alone; none if others have it for longer than `patience`.
    fn lock(&self, alone: bool, patience: Duration) -> io::Result<Option<Held>>;
}

/// A directory of the file system.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
}

/// From so many files on, one call for the whole file system is quicker.
const MANY: usize = 8;
/// Between two looks at a lock.
const LOOK: Duration = Duration::from_millis(20);

impl Disk {
    /// That at `root`, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(root: &Path) -> io::Result<Disk> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        Ok(Disk {
            root: root.to_owned(),
        })
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.root)?)?)
    }
}

impl Medium for Disk {
    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = File::open(self.root.join(path))?;
        let length = file.metadata()?.len().min(limit);
        let mut bytes = Vec::with_capacity(length as usize + 1);
        file.take(limit + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > limit {
            true => Err(io::Error::other(format!("it is longer than {limit} bytes"))),
            false => Ok(bytes),
        }
    }

    fn length(&self, path: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.root.join(path)) {
            Ok(found) => Ok(Some(found.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.root.join(path))?.write_all(bytes)
    }

    fn sync(&self, paths: &[String]) -> io::Result<()> {
        if paths.len() > MANY {
            return self.sync_all();
        }
        for path in paths {
            File::open(self.root.join(path))?.sync_all()?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(folder))? {
            // What is no UTF-8 is not ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn make_folder(&self, folder: &str) -> io::Result<()> {
        let made = DirBuilder::new().mode(0o700).create(self.root.join(folder));
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn sync_folders(&self, folders: &[String]) -> io::Result<()> {
        self.sync(folders)
    }

    fn lock(&self, alone: bool, patience: Duration) -> io::Result<Option<Held>> {
        let taken = take(&self.root.join("lock"), alone, patience)?;
        Ok(taken.map(|file| Box::new(file) as Held))
    }
}

/// Takes the lock of a file, shared or alone, as long as it is open; none if others have it for longer than `patience`.
pub fn take(path: &Path, alone: bool, patience: Duration) -> io::Result<Option<File>> {
    let mut options = File::options();
    options.create(true).append(true).mode(0o600);
    let file = options.open(path)?;
    let begun = Instant::now();
    loop {
        let taken = match alone {
            true => file.try_lock(),
            false => file.try_lock_shared(),
        };
        match taken {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < patience => {
                std::thread::sleep(LOOK);
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
    }
}
