//! Disks that go with their guest: the files of their layers, of which all but the topmost are frozen and go
//! while the guest runs.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{DiskConfig, LayerConfig};

use super::wire::{Kind, Link, MAX_PAGES};
use super::{MigrationError, link};

/// One layer of a disk, as it is announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerFile {
    /// The disk.
    pub disk: String,
    /// Which of its layers, counted from the top.
    pub layer: usize,
    /// Bytes.
    pub size: u64,
}

/// The layers of a disk, the topmost first.
fn layers(disk: &DiskConfig) -> Result<Vec<PathBuf>, MigrationError> {
    let mut paths = vec![disk.path.clone()];
    let mut data = disk.data_file.is_some();
    for layer in &disk.backing {
        let full = layer.full();
        data |= full.data_file.is_some();
        paths.push(full.path);
    }
    match data {
        true => Err(MigrationError::DataFile(
            disk.id.clone().unwrap_or_default(),
        )),
        false => Ok(paths),
    }
}

/// Sends the layers that are written (`top`), or those that are not.
pub fn send(
    to: &mut Link,
    config: &VmConfig,
    top: bool,
    check: &dyn Fn() -> Result<(), MigrationError>,
) -> Result<(), MigrationError> {
    for disk in &config.disks {
        for (layer, path) in layers(disk)?.iter().enumerate().rev() {
            let written = layer == 0 && !disk.readonly;
            if written == top {
                let id = disk.id.clone().unwrap_or_default();
                send_file(to, id, layer, path, check)?;
            }
        }
    }
    Ok(())
}

/// Bytes of the layers that are written, about.
pub fn written(config: &VmConfig) -> u64 {
    let disks = config.disks.iter().filter(|disk| !disk.readonly);
    let found = disks.filter_map(|disk| disk.path.metadata().ok());
    found.map(|found| found.blocks() * 512).sum()
}

fn send_file(
    to: &mut Link,
    disk: String,
    layer: usize,
    path: &Path,
    check: &dyn Fn() -> Result<(), MigrationError>,
) -> Result<(), MigrationError> {
    let failed = link("read a disk that goes with its guest");
    let file = File::open(path).map_err(&failed)?;
    let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
    let announced = serde_json::to_vec(&LayerFile { disk, layer, size }).unwrap_or_default();
    to.send(Kind::File, &announced)?;
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(failed(e.into())),
        };
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data)).map_err(|e| failed(e.into()))?;
        at = data;
        while at < hole.min(size) {
            check()?;
            let len = (hole.min(size) - at).min(MAX_PAGES);
            buffer.resize(len as usize, 0);
            file.read_exact_at(&mut buffer, at).map_err(&failed)?;
            to.send_data(at, &buffer)?;
            at += len;
        }
    }
    Ok(())
}

/// The files that come, in a folder. They are removed when this is dropped before [`keep`](Self::keep).
pub struct Incoming {
    folder: PathBuf,
    made: Vec<(LayerFile, PathBuf)>,
    current: Option<(File, u64)>,
}

impl Incoming {
    /// Into `folder`, which is there.
    pub fn new(folder: PathBuf) -> Incoming {
        Incoming {
            folder,
            made: Vec::new(),
            current: None,
        }
    }

    /// A file is announced.
    pub fn begin(&mut self, announced: &[u8]) -> Result<(), MigrationError> {
        self.end_file()?;
        let layer: LayerFile = serde_json::from_slice(announced)
            .map_err(|_| MigrationError::Protocol("a file that cannot be read"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if layer.disk.is_empty() || layer.disk.starts_with('.') || !layer.disk.chars().all(plain) {
            return Err(MigrationError::Protocol("a disk whose name is no file's"));
        }
        let path = self.folder.join(format!("{}.{}", layer.disk, layer.layer));
        let failed = link("make a file for a disk that comes with its guest");
        let file = File::create_new(&path).map_err(&failed)?;
        // From here on it is ours to remove.
        let size = layer.size;
        self.made.push((layer, path));
        file.set_len(size).map_err(failed)?;
        self.current = Some((file, size));
        Ok(())
    }

    /// Makes the file before durable: nobody will flush the frozen ones again.
    fn end_file(&mut self) -> Result<(), MigrationError> {
        match self.current.take() {
            Some((file, _)) => file
                .sync_all()
                .map_err(link("write a disk that comes with its guest")),
            None => Ok(()),
        }
    }

    /// Bytes of the file that was announced last.
    pub fn data(&mut self, at: u64, bytes: &[u8]) -> Result<(), MigrationError> {
        let Some((file, size)) = &self.current else {
            return Err(MigrationError::Protocol("bytes of no file"));
        };
        if at
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > *size)
        {
            return Err(MigrationError::Protocol(
                "bytes beyond the end of their file",
            ));
        }
        file.write_all_at(bytes, at)
            .map_err(link("write a disk that comes with its guest"))
    }

    /// All files are there: makes them durable, and says in the configuration where the disks are here.
    pub fn settle(&mut self, disks: &mut [DiskConfig]) -> Result<(), MigrationError> {
        self.end_file()?;
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(link("write the folder of disks that come with their guest"))?;
        for disk in disks {
            let id = disk.id.clone().unwrap_or_default();
            let at = |layer: usize| {
                let is_it = |(f, _): &&(LayerFile, PathBuf)| f.disk == id && f.layer == layer;
                let found = self.made.iter().find(is_it);
                found
                    .map(|(_, path)| path.clone())
                    .ok_or(MigrationError::Protocol("a disk without all of its layers"))
            };
            disk.path = at(0)?;
            for (index, layer) in disk.backing.iter_mut().enumerate() {
                let mut full = layer.full();
                full.path = at(index + 1)?;
                *layer = LayerConfig::Full(full);
            }
        }
        Ok(())
    }

    /// They are the guest's now.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        for (_, path) in &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}
