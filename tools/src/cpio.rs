//! Initramfs archives: the newc format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Everything belongs to root and has no time, so the same input gives the same bytes.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, kernel};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; parents come before what is in them.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds an executable file.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, EXECUTABLE, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// Adds a character device node.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Ends the archive and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len())
            .unwrap_or_else(|_| unreachable!("initramfs files are far below 4 GiB"));
        let name =
            u32::try_from(path.len() + 1).unwrap_or_else(|_| unreachable!("paths are short"));
        // inode, mode, uid, gid, links, mtime, size, device of the file (2), device node (2), name's length, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// An initramfs of busybox (as every one of its applets), kernel modules to be loaded in the order of their names, and `/init`.
///
/// # Errors
/// When busybox does not run here, or a module cannot be read.
pub fn initramfs(busybox: &Path, modules: &[PathBuf], init: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "modules", "root"] {
        archive.directory(directory);
    }
    archive.device("dev/console", 5, 1);
    let binary = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", &binary);
    for applet in command::read(Command::new(busybox).arg("--list"))?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    for (number, module) in modules.iter().enumerate() {
        let name = module
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let stem = name.split(".ko").next().unwrap_or(&name);
        archive.file(
            &format!("modules/{number:02}-{stem}.ko"),
            &kernel::read_module(module)?,
        );
    }
    archive.file("init", init.as_bytes());
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.file("d/f", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let make = || {
            let mut archive = Archive::default();
            archive.symlink("sh", "busybox");
            archive.device("console", 5, 1);
            archive.finish()
        };
        assert_eq!(make(), make());
    }
}
