//! What the store is kept on: files in folders. The tests have one that forgets what was not made durable.

use std::any::Any;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Bytes of a block that the disk takes without the page cache.
const BLOCK: usize = 4096;

/// Held as long as a lock is.
pub type Held = Box<dyn Any + Send + Sync>;

/// What is known of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Its bytes.
    pub len: u64,
    /// Bytes that it takes.
    pub taken: u64,
    /// Names that it has.
    pub names: u64,
    /// What tells it from other files of its file system.
    pub id: u64,
}

/// A file that is written piece by piece, by several threads.
pub trait Output: Send + Sync {
    /// Makes it so long; what is not written reads as zeroes.
    fn stretch(&self, len: u64) -> io::Result<()>;
    /// Asks for space for a part that will be written, which makes that quicker. A file system need not be able to do
    /// it.
    fn reserve(&self, at: u64, len: u64) -> io::Result<()>;
    /// Writes a piece.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes durable what was written.
    fn sync(&self) -> io::Result<()>;
}

impl Output for File {
    fn stretch(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::empty(), at, len) {
            // Better now than at the end.
            Err(Errno::NOSPC) => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A new file, and once more without the page cache, if its file system can do that: whole blocks go straight to the
/// disk. That takes less of the CPU, and nothing is left to wait for at the end.
struct Straight {
    file: File,
    direct: Option<File>,
}

impl Output for Straight {
    fn stretch(&self, len: u64) -> io::Result<()> {
        self.file.stretch(len)
    }

    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.file.reserve(at, len)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let whole = |n: usize| n.is_multiple_of(BLOCK);
        let fits = whole(bytes.as_ptr() as usize) && whole(bytes.len()) && whole(at as usize);
        match &self.direct {
            Some(direct) if fits => match direct.write_all_at(bytes, at) {
                // Its blocks are larger, or it cannot after all.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                    Output::write(&self.file, bytes, at)
                }
                other => other,
            },
            _ => Output::write(&self.file, bytes, at),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

/// Files in folders, by paths below the store's directory.
pub trait Medium: Debug + Send + Sync {
    /// A file's bytes, of which there may be `limit`.
    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>>;
    /// `len` of a file's bytes, from `at` on.
    fn read_at(&self, path: &str, at: u64, len: usize) -> io::Result<Vec<u8>>;
    /// What is known of a file; none if there is none.
    fn facts(&self, path: &str) -> io::Result<Option<Facts>>;
    /// Makes a file that is written piece by piece, and is empty until then.
    fn create(&self, path: &str) -> io::Result<Box<dyn Output>>;
    /// Gives space of a file back, which reads as zeroes then: stretches by start and length. Nothing is lost if a file
    /// system cannot do that.
    fn punch(&self, path: &str, stretches: &[(u64, u64)]) -> io::Result<()>;
    /// Gives a file one more name, which nothing has.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
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
    /// Takes a lock by its file's name, shared or alone; none if others have it for longer than `patience`.
    fn lock(&self, name: &str, alone: bool, patience: Duration) -> io::Result<Option<Held>>;
}

/// A directory of the file system.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
}

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

    fn read_at(&self, path: &str, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        File::open(self.root.join(path))?.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn facts(&self, path: &str) -> io::Result<Option<Facts>> {
        match fs::metadata(self.root.join(path)) {
            Ok(found) => Ok(Some(Facts {
                len: found.len(),
                taken: found.blocks() * 512,
                names: found.nlink(),
                id: found.ino(),
            })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn Output>> {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(self.root.join(path))?;
        let mut options = File::options();
        options.write(true).custom_flags(libc::O_DIRECT);
        let direct = options.open(self.root.join(path)).ok();
        Ok(Box::new(Straight { file, direct }))
    }

    fn punch(&self, path: &str, stretches: &[(u64, u64)]) -> io::Result<()> {
        let file = File::options().write(true).open(self.root.join(path))?;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for (at, len) in stretches {
            match rustix::fs::fallocate(&file, hole, *at, *len) {
                Err(Errno::OPNOTSUPP) => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        fs::hard_link(self.root.join(from), self.root.join(to))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.root.join(path))?.write_all(bytes)
    }

    fn sync(&self, paths: &[String]) -> io::Result<()> {
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

    fn lock(&self, name: &str, alone: bool, patience: Duration) -> io::Result<Option<Held>> {
        let taken = take(&self.root.join(name), alone, patience)?;
        Ok(taken.map(|file| Box::new(file) as Held))
    }
}

/// Takes the lock of a file, shared or alone, as long as it is open; none if others have it for longer than `patience`.
fn take(path: &Path, alone: bool, patience: Duration) -> io::Result<Option<File>> {
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
