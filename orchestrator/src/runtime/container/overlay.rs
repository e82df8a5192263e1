//! A container's root file system: its image's layers, and one of its own that takes what it writes.
//!
//! It is mounted in the shim's own mount namespace. When the shim and the container are gone, however
//! they went, the kernel takes it down with the namespace.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::error::ContainerError;
use super::image::Rooted;
use super::removal::remove_path;

/// Gives this process a mount namespace of its own. What is mounted or unmounted on the host still
/// happens in it; what happens in it stays there.
pub fn separate() -> Result<(), ContainerError> {
    let cannot =
        |e: rustix::io::Errno| ContainerError::system("make a mount namespace for", "/")(e.into());
    // SAFETY: the namespace is the whole process', which has one thread here; no descriptor table is
    // unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(cannot)?;
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).map_err(cannot)
}

/// Mounts `layers`, the lowest first, at `home`/bundle/rootfs, with what is written in `home`/upper.
/// Changes the working directory to `home`/lower.
pub fn assemble(home: &Path, layers: &[PathBuf]) -> Result<PathBuf, ContainerError> {
    let root = home.join("bundle").join(super::bundle::ROOT);
    let lower = home.join("lower");
    let upper = home.join("upper");
    let fresh = !upper.exists();
    for directory in [&root, &upper, &home.join("work")] {
        fs::create_dir_all(directory).map_err(ContainerError::system("make", directory))?;
    }
    if fresh && let Some(top) = layers.last() {
        // What a container sees of its root is what its own layer says.
        let attributes = Rooted::open(top)
            .ok()
            .and_then(|top| top.attributes(Path::new("")));
        if let Some(attributes) = attributes {
            let upper_root = Rooted::open(&upper).and_then(|upper| upper.set_root(attributes));
            upper_root.map_err(ContainerError::system("change", &upper))?;
        }
    }
    remove_path(&lower).map_err(ContainerError::system("remove", &lower))?;
    fs::create_dir(&lower).map_err(ContainerError::system("make", &lower))?;
    // Short names: all options of a mount have to fit in one page.
    let mut names = Vec::new();
    for (index, layer) in layers.iter().rev().enumerate() {
        if !layer.is_dir() {
            let gone = io::Error::from(io::ErrorKind::NotFound);
            return Err(ContainerError::system(
                "find the image's layer (prepare it again)",
                layer,
            )(gone));
        }
        let link = lower.join(index.to_string());
        symlink(layer, &link).map_err(ContainerError::system("make", &link))?;
        names.push(index.to_string());
    }
    std::env::set_current_dir(&lower).map_err(ContainerError::system("enter", &lower))?;
    let options = format!(
        "lowerdir={},upperdir=../upper,workdir=../work",
        names.join(":")
    );
    let options = std::ffi::CString::new(options)
        .map_err(|e| ContainerError::system("mount", &root)(io::Error::other(e)))?;
    mount(
        "overlay",
        &root,
        "overlay",
        MountFlags::NODEV,
        options.as_c_str(),
    )
    .map_err(|e| ContainerError::system("mount an overlay at", &root)(e.into()))?;
    Ok(root)
}

/// Takes the root file system down, where it is seen to be mounted.
pub fn take_down(home: &Path) -> Result<(), ContainerError> {
    let root = home.join("bundle").join(super::bundle::ROOT);
    match unmount(&root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // It is not mounted, or not there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(ContainerError::system("unmount", root)(e.into())),
    }
}
