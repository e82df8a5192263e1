//! A directory that is being filled from a hostile archive: every path is resolved inside of it.
//!
//! The kernel does the resolving (`openat2` with `RESOLVE_IN_ROOT`): symbolic links, absolute ones and
//! `..` among them, end at this root as they would in a container, however they are planted.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
};

use crate::runtime::container::removal::remove_tree;

/// How deep a path of an archive may be.
const DEPTH: usize = 200;

/// What an entry of the archive belongs to and may do.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Permissions, with set-uid, set-gid and sticky.
    pub mode: u32,
}

/// A directory and what is beneath it.
#[derive(Debug)]
pub struct Rooted {
    root: OwnedFd,
}

/// A place in the tree: a directory that exists, and a name in it.
#[derive(Debug)]
pub struct Place {
    parent: OwnedFd,
    name: OsString,
}

/// The plain names of a path in an archive. `None` if it has `..` or a NUL in it, or too many names.
pub fn names(path: &[u8]) -> Option<PathBuf> {
    if path.len() > libc::PATH_MAX as usize || path.contains(&0) {
        return None;
    }
    let mut plain = PathBuf::new();
    let mut depth = 0;
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) if name.len() <= 255 && depth < DEPTH => {
                plain.push(name);
                depth += 1;
            }
            Component::Normal(_) | Component::ParentDir | Component::Prefix(_) => return None,
            // An archive's root is the layer's.
            Component::RootDir | Component::CurDir => {}
        }
    }
    Some(plain)
}

impl Rooted {
    /// Opens a directory.
    pub fn open(path: &Path) -> io::Result<Rooted> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Rooted { root })
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // The kernel asks to be asked again when something was renamed meanwhile.
        let mut tries = 0;
        loop {
            match fs::openat2(
                &self.root,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                Err(rustix::io::Errno::AGAIN) if tries < 32 => tries += 1,
                other => return Ok(other?),
            }
        }
    }

    /// A regular file, for reading; symbolic links are followed inside the root.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        // Opening a FIFO must not wait.
        let file = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let kind = FileType::from_raw_mode(fs::fstat(&file)?.st_mode);
        match kind {
            FileType::RegularFile => Ok(file.into()),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }

    /// A directory that is there.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Where an entry goes. Directories on the way that are not there are made, with `inherit`'s
    /// attributes for each.
    pub fn place(
        &self,
        path: &Path,
        inherit: &mut dyn FnMut(&Path) -> Option<Attributes>,
    ) -> io::Result<Place> {
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let name = name.to_os_string();
        if let Ok(parent) = self.directory(parent) {
            return Ok(Place { parent, name });
        }
        let mut way = PathBuf::new();
        let mut at = self.directory(&way)?;
        for step in parent.components() {
            way.push(step);
            at = match self.directory(&way) {
                Ok(next) => next,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let place = Place {
                        parent: at,
                        name: step.as_os_str().to_os_string(),
                    };
                    let attributes = inherit(&way).unwrap_or(Attributes {
                        uid: 0,
                        gid: 0,
                        mode: 0o755,
                    });
                    place.make_directory(attributes)?
                }
                Err(e) => return Err(e),
            };
        }
        Ok(Place { parent: at, name })
    }

    /// Makes a directory and those on the way to it, as far as they are not there.
    pub fn make_way(&self, path: &Path) -> io::Result<()> {
        let plain = names(path.as_os_str().as_bytes());
        let plain = plain.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if self.directory(&plain).is_ok() {
            return Ok(());
        }
        // The place of a name in it has it made.
        self.place(&plain.join("name"), &mut |_| None).map(drop)
    }

    /// Where an entry is that must be there, its last link not followed.
    pub fn existing(&self, path: &Path) -> io::Result<Place> {
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let place = Place {
            parent: self.directory(parent)?,
            name: name.to_os_string(),
        };
        fs::statat(&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(place)
    }

    /// The attributes of a directory that is there.
    pub fn attributes(&self, path: &Path) -> Option<Attributes> {
        let stat = fs::fstat(self.directory(path).ok()?).ok()?;
        Some(Attributes {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
        })
    }

    /// Sets the attributes of the root itself.
    pub fn set_root(&self, attributes: Attributes) -> io::Result<()> {
        own(self.root.as_fd(), attributes)
    }

    /// Sets when a directory was changed last.
    pub fn set_directory_time(&self, path: &Path, mtime: u64) -> io::Result<()> {
        let directory = self.directory(path)?;
        Ok(fs::futimens(&directory, &times(mtime))?)
    }
}

impl Place {
    fn kind(&self) -> io::Result<Option<FileType>> {
        match fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a directory is here.
    pub fn is_directory(&self) -> io::Result<bool> {
        Ok(self.kind()? == Some(FileType::Directory))
    }

    /// Whether anything is here.
    pub fn is_taken(&self) -> io::Result<bool> {
        Ok(self.kind()?.is_some())
    }

    /// Whether an overlay's mark is here. Nothing else makes devices in this tree.
    pub fn is_whiteout(&self) -> io::Result<bool> {
        Ok(self.kind()? == Some(FileType::CharacterDevice))
    }

    /// Makes room for something new: what is there goes.
    pub fn clear(&self) -> io::Result<()> {
        match self.kind()? {
            None => Ok(()),
            Some(FileType::Directory) => Ok(remove_tree(self.parent.as_fd(), &self.name)?),
            Some(_) => Ok(fs::unlinkat(&self.parent, &self.name, AtFlags::empty())?),
        }
    }

    fn make_directory(&self, attributes: Attributes) -> io::Result<OwnedFd> {
        fs::mkdirat(&self.parent, &self.name, Mode::from_raw_mode(0o700))?;
        let made = self.open_directory()?;
        own(made.as_fd(), attributes)?;
        Ok(made)
    }

    fn open_directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(&self.parent, &self.name, flags, Mode::empty())?)
    }

    /// A directory: one that is there keeps what is in it.
    pub fn directory(&self, attributes: Attributes) -> io::Result<OwnedFd> {
        if self.kind()? == Some(FileType::Directory) {
            let directory = self.open_directory()?;
            own(directory.as_fd(), attributes)?;
            return Ok(directory);
        }
        self.clear()?;
        self.make_directory(attributes)
    }

    /// A new, empty file, open for writing. Its attributes are set when it is filled: writing would
    /// take set-uid away.
    pub fn file(&self) -> io::Result<File> {
        self.clear()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        Ok(fs::openat(&self.parent, &self.name, flags, mode)?.into())
    }

    /// A symbolic link. Where it leads is data: nothing follows it out of the root.
    pub fn symlink(&self, target: &OsStr, attributes: Attributes) -> io::Result<()> {
        self.clear()?;
        fs::symlinkat(target, &self.parent, &self.name)?;
        let (uid, gid) = ids(attributes);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(fs::chownat(
            &self.parent,
            &self.name,
            Some(uid),
            Some(gid),
            flags,
        )?)
    }

    /// Another name for a file of this tree.
    pub fn link(&self, target: &Place) -> io::Result<()> {
        if target.kind()? == Some(FileType::Directory) {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        let same = fs::fstat(&target.parent)?.st_ino == fs::fstat(&self.parent)?.st_ino
            && target.name == self.name;
        if same {
            return Ok(());
        }
        self.clear()?;
        Ok(fs::linkat(
            &target.parent,
            &target.name,
            &self.parent,
            &self.name,
            AtFlags::empty(),
        )?)
    }

    /// A FIFO.
    pub fn fifo(&self, attributes: Attributes) -> io::Result<()> {
        self.clear()?;
        let mode = Mode::from_raw_mode(0o600);
        fs::mknodat(&self.parent, &self.name, FileType::Fifo, mode, 0)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = fs::openat(&self.parent, &self.name, flags, Mode::empty())?;
        let (uid, gid) = ids(attributes);
        fs::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        Ok(fs::chmodat(
            &self.parent,
            &self.name,
            Mode::from_raw_mode(attributes.mode & 0o7777),
            AtFlags::empty(),
        )?)
    }

    /// An overlay's mark that what the layers below have here is gone.
    pub fn whiteout(&self) -> io::Result<()> {
        self.clear()?;
        let mode = Mode::empty();
        Ok(fs::mknodat(
            &self.parent,
            &self.name,
            FileType::CharacterDevice,
            mode,
            0,
        )?)
    }
}

fn ids(attributes: Attributes) -> (Uid, Gid) {
    (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid))
}

/// Gives an open file to its owner. The mode comes last, since a change of owner takes set-uid away.
pub fn own(file: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    let (uid, gid) = ids(attributes);
    fs::fchown(file, Some(uid), Some(gid))?;
    Ok(fs::fchmod(
        file,
        Mode::from_raw_mode(attributes.mode & 0o7777),
    )?)
}

/// The times of a file that was changed last at `mtime`, in seconds since 1970.
pub fn times(mtime: u64) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(mtime).unwrap_or(i64::MAX / 4).min(1 << 40),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
