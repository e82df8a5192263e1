//! Network namespaces with names: a file each, on which the namespace is mounted. A thread that enters one is a
//! thread made for that, and ends.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::netlink::Netlink;

/// What statfs says of namespaces (NSFS_MAGIC of <linux/magic.h>).
const NSFS: u64 = 0x6e73_6673;
/// Mounts on each other that are taken away.
const LAYERS: usize = 16;

/// A namespace, and a socket in it.
pub struct Namespace {
    /// The namespace.
    pub handle: OwnedFd,
    /// Speaks of its links.
    pub netlink: Netlink,
}

/// The namespace of a file. It is made if it is not there.
pub fn ensure(path: &Path) -> io::Result<Namespace> {
    if is_one(path)? {
        return aside(|| enter(path));
    }
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)?;
    }
    // It is there, without a namespace, after a reboot.
    let mut options = File::options();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    aside(|| {
        // SAFETY: descriptors stay shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        mount_bind("/proc/thread-self/ns/net", path)?;
        Ok(Namespace {
            handle: File::open(path)?.into(),
            netlink: Netlink::route()?,
        })
    })
}

/// Whether a namespace is mounted on the file.
fn is_one(path: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(path) {
        // The type's sign and width differ between architectures; the number fits all.
        Ok(told) => Ok(told.f_type as u64 == NSFS),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn enter(path: &Path) -> io::Result<Namespace> {
    let handle: OwnedFd = File::open(path)?.into();
    move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(Namespace {
        handle,
        netlink: Netlink::route()?,
    })
}

/// Does something on a thread of its own, whose namespace nobody else has.
pub fn aside<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, work)?;
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    })
}

/// Does something in the namespace of a file.
#[cfg(test)]
pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    aside(|| enter(path).map(|_| work()))
}

/// Removes a namespace's name, which may be gone. The namespace itself goes with the last process in it.
pub fn remove(path: &Path) -> io::Result<()> {
    for _ in 0..LAYERS {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted on it, or it is not there.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(e) => return Err(e.into()),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The names of all files of a folder, which may be missing.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let all = match fs::read_dir(folder) {
        Ok(all) => all,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let names = all.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(io::Result::transpose).collect()
}
