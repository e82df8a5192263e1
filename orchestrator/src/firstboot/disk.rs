//! A VM's disk that cloud-init reads: a FAT file system with the label CIDATA (cloud-init's NoCloud source).

use std::fs::File;
use std::io::{self, Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use super::{Seed, SeedError};

/// What cloud-init looks for: 11 letters, as FAT has them.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// Bytes that a file system needs beside its files, with more than enough clusters for them.
const ROOM: u64 = 256 << 10;

/// Writes a disk, which has its name only when it is whole. It is made anew at each start, as addresses may change.
///
/// # Errors
/// If it cannot be written.
pub fn write_disk(path: &Path, seed: &Seed) -> Result<(), SeedError> {
    let write = || {
        let image = image(seed)?;
        let new = path.with_extension("new");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new)?;
        file.write_all(&image)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|source| SeedError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The disk's bytes.
fn image(seed: &Seed) -> io::Result<Vec<u8>> {
    let files = seed.files();
    let content: usize = files.iter().map(|(_, text)| text.len()).sum();
    let size = (content as u64 * 2 + ROOM).next_multiple_of(512);
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    let mut disk = Cursor::new(&mut bytes);
    let options = FormatVolumeOptions::new().volume_label(LABEL);
    fatfs::format_volume(&mut disk, options)?;
    let system = FileSystem::new(&mut disk, FsOptions::new())?;
    {
        let root = system.root_dir();
        for (name, text) in &files {
            let mut file = root.create_file(name)?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
    }
    system.unmount()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_written_is_read_again_from_a_disk_with_the_label() {
        let seed = Seed {
            hostname: "web".to_owned(),
            user_data: format!("#!/bin/sh\n#{}\n", "x".repeat(64 << 10)),
            ..Seed::default()
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("seed.img");
        write_disk(&path, &seed).expect("written");
        let file = File::options().read(true).write(true).open(&path);
        let system = FileSystem::new(file.expect("a file"), FsOptions::new()).expect("FAT");
        assert_eq!(system.volume_label_as_bytes(), b"CIDATA");
        // By these names, and not by short ones of eight letters.
        let names = system.root_dir().iter();
        let names: Vec<String> = names
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["meta-data", "user-data"]);
        for (name, text) in seed.files() {
            let mut read = String::new();
            let mut file = system.root_dir().open_file(name).expect(name);
            file.read_to_string(&mut read).expect(name);
            assert_eq!(read, text, "{name}");
        }
    }
}
