//! A file that is being made, and is removed if that fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skerry_images::Error;
use skerry_images::io::{FileOptions, ImageFile};

use super::Failure;

/// New files; those that are not kept are removed.
#[derive(Default)]
pub struct Scratch {
    made: Vec<Made>,
}

struct Made {
    path: PathBuf,
    /// The file that it takes the place of when it is kept, locked until then.
    replaces: Option<(PathBuf, Arc<ImageFile>)>,
}

impl Scratch {
    /// No files yet.
    pub fn new() -> Scratch {
        Scratch::default()
    }

    /// Makes an empty file. With `force`, it takes the place of one that is there, when it is kept.
    pub fn file(&mut self, path: &Path, force: bool) -> Result<Arc<ImageFile>, Failure> {
        let (path, replaces, file) = match ImageFile::create(path) {
            Err(Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists && force =>
            {
                // Whoever has it open keeps it: the lock says so.
                let old = ImageFile::open(path, &FileOptions::default())?;
                if old.block_device() {
                    return Ok(old);
                }
                let mut name = path.as_os_str().to_owned();
                name.push(format!(".{}.new", std::process::id()));
                let new = PathBuf::from(name);
                let file = ImageFile::create(&new)?;
                (new, Some((path.to_owned(), old)), file)
            }
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Failure::Asked(format!(
                    "{} exists: choose another name, or replace it with --force",
                    path.display()
                )));
            }
            other => (path.to_owned(), None, other?),
        };
        self.made.push(Made { path, replaces });
        Ok(file)
    }

    /// The files are whole now: they take the places of old ones.
    pub fn keep(mut self) -> Result<(), Failure> {
        while let Some(made) = self.made.pop() {
            let Some((old, _lock)) = &made.replaces else {
                continue;
            };
            if let Err(e) = std::fs::rename(&made.path, old) {
                let what = format!("cannot replace {}: {e}", old.display());
                self.made.push(made);
                return Err(Failure::Asked(what));
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for made in &self.made {
            // It failed already; that is what is reported.
            let _ = std::fs::remove_file(&made.path);
        }
    }
}
