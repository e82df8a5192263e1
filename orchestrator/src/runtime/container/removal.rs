//! Removing trees that somebody hostile may have made: as deep and as wide as they like.
//!
//! A container can nest directories deeper than a path is long, or than a process has descriptors.
//! What is too deep is moved up beside the tree's own entries, and then is not deep any more.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How many directories are open at a time.
const DEPTH: usize = 64;

/// Removes a file or a directory with all that is in it. It is no error if there is none.
pub fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match fs::openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    match remove_tree(parent.as_fd(), name) {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Removes a name of a directory, and if it is a directory, all that is in it. Links are not followed.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let top = open(parent, name)?;
    let mut lifted = Lifted { top, count: 0 };
    // Each round empties the tree down to `DEPTH`, and what was below has come up meanwhile.
    while lifted.empty_top()? {}
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// The tree that is removed, and how many directories were moved up to its top.
struct Lifted {
    top: OwnedFd,
    count: u64,
}

impl Lifted {
    /// Removes what is in the top. Whether something may have come up meanwhile.
    fn empty_top(&mut self) -> rustix::io::Result<bool> {
        let before = self.count;
        let top = self.top.try_clone().map_err(|_| Errno::MFILE)?;
        self.empty(top.as_fd(), 0)?;
        Ok(self.count != before)
    }

    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            match fs::unlinkat(directory, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => self.remove_directory(directory, name, depth)?,
                // Somebody was faster, or the listing was old.
                Err(Errno::NOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn remove_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        depth: usize,
    ) -> rustix::io::Result<()> {
        if depth >= DEPTH {
            self.count += 1;
            let place = OsString::from(format!(".lifted-{}-{}", std::process::id(), self.count));
            return fs::renameat(parent, name, &self.top, &place);
        }
        let directory = open(parent, name)?;
        self.empty(directory.as_fd(), depth + 1)?;
        fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
    }
}

fn open(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // What is mounted in a tree is not a part of it.
    fs::openat2(parent, name, flags, Mode::empty(), ResolveFlags::NO_XDEV)
}

#[cfg(test)]
#[path = "removal_test.rs"]
mod tests;
