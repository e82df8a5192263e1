//! A VM's folder: all that there is of it on this host.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Bytes of a log that are looked at for its last words.
const TAIL: u64 = 4096;

/// A folder.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// That of a VM.
    pub fn new(root: &Path, uid: &str) -> Home {
        Home(root.join(uid))
    }

    /// It itself.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Makes it.
    pub fn make(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.0) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// The monitor's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("api.sock")
    }

    /// What is locked as long as a monitor has it.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Takes the lock for a monitor that is to be started; none if there is one already.
    pub fn take(&self) -> io::Result<Option<File>> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(self.lock())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a monitor has this folder: also one that does not listen yet.
    pub fn is_taken(&self) -> bool {
        self.lock().exists() && self.take().is_ok_and(|lock| lock.is_none())
    }

    /// What the guest says on its serial port.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// Where that can be heard as it is said, and typed to.
    pub fn console_socket(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    /// What the monitor says.
    pub fn log(&self) -> PathBuf {
        self.0.join("monitor.log")
    }

    /// The socket of its vsock.
    pub fn vsock(&self) -> PathBuf {
        self.0.join("vsock")
    }

    /// The socket of one of its shares. Paths of sockets are short, so that is by number.
    pub fn share_socket(&self, n: usize) -> PathBuf {
        self.0.join(format!("share-{n}.sock"))
    }

    /// What is locked as long as that one's server lives.
    pub fn share_lock(&self, n: usize) -> PathBuf {
        self.0.join(format!("share-{n}.lock"))
    }

    /// What that one's server says.
    pub fn share_log(&self, n: usize) -> PathBuf {
        self.0.join(format!("share-{n}.log"))
    }

    /// A disk's own layer.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.0.join(format!("disk-{name}.qcow2"))
    }

    /// The disk that tells it what it is.
    pub fn seed(&self) -> PathBuf {
        self.0.join("seed.img")
    }

    /// A folder for the layers of a clone.
    pub fn layers(&self) -> PathBuf {
        self.0.join("layers")
    }

    /// Makes it, with nothing in it: a clone begins as its snapshot each time, and so do its disks.
    pub fn fresh_layers(&self) -> io::Result<()> {
        gone(std::fs::remove_dir_all(self.layers()))?;
        DirBuilder::new().mode(0o700).create(self.layers())
    }

    /// It was started, and nobody noted its end.
    pub fn ran(&self) -> bool {
        self.socket().exists()
    }

    /// Its run is over and known to be.
    pub fn forget_run(&self) -> io::Result<()> {
        gone(std::fs::remove_file(self.socket()))
    }

    /// Removes all of it.
    pub fn remove(&self) -> io::Result<()> {
        gone(std::fs::remove_dir_all(&self.0))
    }

    /// What the monitor said last.
    pub fn last_words(&self) -> String {
        let line = last_words(&self.log());
        match line.strip_prefix("skerry-vmm: ") {
            Some(rest) => rest.to_owned(),
            None => line,
        }
    }
}

/// The last line of a log.
pub fn last_words(log: &Path) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").to_owned()
}

/// The names of all folders.
pub fn all(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Well if it was gone before.
pub fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
