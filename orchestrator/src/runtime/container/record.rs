//! Small files of state: JSON, read with a bound and written so that a crash leaves the old or the new.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a record may be, in bytes.
const LONGEST: u64 = 8 << 20;

/// Writes a record durably: complete or not at all, and on disk when this returns.
pub fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let (folder, new) = names(path)?;
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(folder)
}

/// The same with one wait for the disk, for a reader to whom a broken record is none: a power cut before
/// this returns may leave one.
pub fn keep(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let (_, new) = names(path)?;
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)?;
    fs::rename(&new, path)?;
    // What a file is called is on disk with it, in the file systems' journals.
    file.sync_all()
}

/// Writes a record that need not outlast the machine's crash: complete or not at all.
pub fn note(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let (_, new) = names(path)?;
    fs::write(&new, serde_json::to_vec_pretty(record)?)?;
    fs::rename(&new, path)
}

/// The directory of a record, and what it is called until it is complete.
fn names(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    Ok((
        folder,
        folder.join(format!(".{}.new", name.to_string_lossy())),
    ))
}

/// Reads a record, if it is there.
pub fn read<R: DeserializeOwned>(path: &Path) -> io::Result<Option<R>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("the record is too long"));
    }
    Ok(Some(serde_json::from_slice(&text)?))
}

/// Writes out what names a directory has.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
