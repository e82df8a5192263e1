//! A file that is being made, and is removed if that fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skerry_images::Error;
use skerry_images::io::{FileOptions, ImageFile, Port};

use super::Failure;

/// New files; those that are not kept are removed.
#[derive(Default)]
pub struct Scratch {
    made: Vec<PathBuf>,
}

impl Scratch {
    /// No files yet.
    pub fn new() -> Scratch {
        Scratch::default()
    }

    /// Makes an empty file. With `force`, one that is there is emptied.
    pub async fn file(
        &mut self,
        port: &Port,
        path: &Path,
        force: bool,
    ) -> Result<Arc<ImageFile>, Failure> {
        let file = match ImageFile::create(path) {
            Err(Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists && force =>
            {
                // Whoever has it open keeps it: the lock says so.
                let file = ImageFile::open(path, &FileOptions::default())?;
                if !file.block_device() {
                    port.set_len(&file, 0).await?;
                }
                file
            }
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Failure::Asked(format!(
                    "{} exists: choose another name, or replace it with --force",
                    path.display()
                )));
            }
            other => other?,
        };
        if !file.block_device() {
            self.made.push(path.to_owned());
        }
        Ok(file)
    }

    /// The files are whole now.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for path in &self.made {
            // It failed already; that is what is reported.
            let _ = std::fs::remove_file(path);
        }
    }
}
