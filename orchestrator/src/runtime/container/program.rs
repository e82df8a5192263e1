//! This very program, for containers' sake not to be written.
//!
//! While a container's process is being made, it is this program, and the container may get hold of it
//! (`#!/proc/self/exe`) to write the host's file later. So shims run it through a mount of its own that
//! nobody can write through, and that is in no mount namespace.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

/// The program that runs, whatever has taken its name meanwhile, behind a read-only mount.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Opens it.
    pub fn open() -> io::Result<Program> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, "/proc/self/exe", flags)?;
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_RDONLY,
            attr_clr: 0,
            propagation: 0,
            userns_fd: 0,
        };
        // SAFETY: the descriptor is open, the path is empty and ends with a NUL, and the attributes are
        // as long as is said.
        let set = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        match set {
            0 => Ok(Program(tree)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A path to it in this process and its children until they run something.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}
