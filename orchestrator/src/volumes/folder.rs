//! A folder with the layers of a volume or a snapshot, and a file that says which they are.
//!
//! Layers that are written no more are shared between a volume, its snapshots and the volumes made of those: each
//! folder has a name (a hard link) of its own for them, so that any of the folders can go without asking the others.
//! A folder gets its name when it is whole.
//!
//! A new layer on top is noted before it is made. One that is noted and there is empty or in use, so what is below it
//! is as it was either way: whoever comes after a crash has it on top.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::{FileOptions, ImageFile, Port, block_on};
use skerry_images::qcow2::{CreateOptions, DEFAULT_CACHE, create, read_header};

use super::error::{VolumeError, system};
use crate::model::DiskFormat;

/// The file that says which layers there are.
const MANIFEST: &str = "layers.json";
/// Disks are made of sectors.
const SECTOR: u64 = 512;
/// More layers than this make a disk slow, and the monitor takes 64.
pub const MOST_LAYERS: usize = 32;
/// A manifest is shorter.
const MOST_BYTES: u64 = 64 << 10;

/// A folder of layers.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// Which layers there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    /// Names of files in the folder, the top first.
    pub own: Vec<String>,
    /// The image below them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// A layer that is being put on top.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// So many layers were made until now: no name is given twice.
    pub made: u32,
}

/// An image of the host's, which is only read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Where it is.
    pub path: PathBuf,
    /// How it is written.
    pub format: DiskFormat,
}

impl Layers {
    /// A name for a new layer.
    pub fn name(&mut self) -> String {
        self.made += 1;
        format!("{}.qcow2", self.made)
    }

    /// The layer that was being put on top is there.
    fn settle(&mut self) {
        if let Some(next) = self.next.take() {
            self.own.insert(0, next);
        }
    }
}

fn format_of(format: DiskFormat) -> Format {
    match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    }
}

/// What is read while others may write it.
const LOOKING: FileOptions = FileOptions {
    readonly: true,
    direct: false,
    unlocked: true,
};

impl Folder {
    /// That at a path.
    pub fn new(path: PathBuf) -> Folder {
        Folder(path)
    }

    /// Whether it is there, and so whole.
    pub fn exists(&self) -> bool {
        self.0.join(MANIFEST).is_file()
    }

    /// The path of a layer.
    pub fn path(&self, layer: &str) -> PathBuf {
        self.0.join(layer)
    }

    /// Its layers.
    pub fn read(&self) -> Result<Layers, VolumeError> {
        let path = self.0.join(MANIFEST);
        let length = fs::metadata(&path).map_err(system("read", &path))?.len();
        if length > MOST_BYTES {
            let source = std::io::Error::other("it is too long");
            return Err(system("read", &path)(source));
        }
        let bytes = fs::read(&path).map_err(system("read", &path))?;
        let read = serde_json::from_slice(&bytes);
        read.map_err(|source| VolumeError::Manifest { path, source })
    }

    /// Says durably which its layers are.
    pub fn write(&self, layers: &Layers) -> Result<(), VolumeError> {
        let (path, new) = (self.0.join(MANIFEST), self.0.join("layers.json.new"));
        let write = || {
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(&serde_json::to_vec(layers)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(system("write", &path))
    }

    /// Its layers when nobody uses it, with the one on top that somebody who died was putting there.
    pub fn settled(&self) -> Result<Layers, VolumeError> {
        let mut layers = self.read()?;
        let Some(next) = &layers.next else {
            return Ok(layers);
        };
        match self.path(next).exists() {
            true => layers.settle(),
            false => layers.next = None,
        }
        self.write(&layers)?;
        Ok(layers)
    }

    /// All layers with their formats, the top first.
    pub fn specs(&self, layers: &Layers) -> Vec<LayerSpec> {
        let own = layers.own.iter();
        let own = own.map(|name| LayerSpec::new(Format::Qcow2, self.path(name)));
        let base = layers.base.iter();
        own.chain(base.map(|base| LayerSpec::new(format_of(base.format), &base.path)))
            .collect()
    }

    /// Bytes of the disk.
    pub fn size(&self, layers: &Layers) -> Result<u64, VolumeError> {
        let specs = self.specs(layers);
        specs.first().map_or(Ok(0), size_of)
    }

    /// What the folder takes on the host's disk.
    pub fn used(&self) -> Result<u64, VolumeError> {
        let mut used = 0;
        for entry in fs::read_dir(&self.0).map_err(system("read", &self.0))? {
            let entry = entry.map_err(system("read", &self.0))?;
            let found = entry.metadata();
            used += found.map_or(0, |found| found.blocks() * SECTOR);
        }
        Ok(used)
    }

    /// Makes one for a volume of `size` bytes on `base`, or on the layers of a snapshot; as large as that is if no
    /// size is given.
    pub fn make(
        &self,
        size: Option<u64>,
        base: Option<Base>,
        snapshot: Option<&Folder>,
    ) -> Result<(), VolumeError> {
        let mut layers = Layers {
            base,
            ..Layers::default()
        };
        if let Some(snapshot) = snapshot {
            layers = snapshot.read()?;
        }
        let below = self.specs(&layers).into_iter().next();
        let has = match (snapshot, &below) {
            (Some(snapshot), _) => snapshot.size(&layers)?,
            (None, Some(below)) => size_of(below)?,
            (None, None) => 0,
        };
        let size = size.unwrap_or(has).next_multiple_of(SECTOR);
        if size < has {
            return Err(VolumeError::Waits(format!(
                "its size is {size} bytes, and what it begins as has {has}: give it at least as many"
            )));
        }
        self.build(|partial| {
            if let Some(snapshot) = snapshot {
                partial.link(snapshot, &layers)?;
            }
            let name = layers.name();
            partial.overlay(&layers, &name, size)?;
            layers.own.insert(0, name);
            partial.write(&layers)
        })
    }

    /// Makes one for a snapshot: the layers of a volume that are written no more.
    pub fn keep(&self, volume: &Folder, layers: &Layers) -> Result<(), VolumeError> {
        let kept = Layers {
            next: None,
            ..layers.clone()
        };
        self.build(|partial| {
            partial.link(volume, &kept)?;
            partial.write(&kept)
        })
    }

    /// Makes it under another name and names it when it is whole.
    fn build(
        &self,
        fill: impl FnOnce(&Folder) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let partial = Folder(self.0.with_extension("partial"));
        partial.remove()?;
        let made = DirBuilder::new().mode(0o700).create(&partial.0);
        made.map_err(system("make", &partial.0))?;
        let filled = fill(&partial).and_then(|()| {
            fs::rename(&partial.0, &self.0).map_err(system("name", &self.0))?;
            sync_parent(&self.0)
        });
        if filled.is_err() {
            // On a full disk every byte counts.
            let _ = partial.remove();
        }
        filled
    }

    /// Names another folder's layers here, too.
    fn link(&self, from: &Folder, layers: &Layers) -> Result<(), VolumeError> {
        for name in &layers.own {
            let path = self.path(name);
            fs::hard_link(from.path(name), &path).map_err(system("link", &path))?;
        }
        Ok(())
    }

    /// Makes an empty layer, durably. It has its name only when it is whole.
    fn overlay(&self, layers: &Layers, name: &str, size: u64) -> Result<(), VolumeError> {
        let below = match (layers.own.first(), &layers.base) {
            (Some(own), _) => Some((own.clone(), Format::Qcow2)),
            (None, Some(base)) => Some((base.path.display().to_string(), format_of(base.format))),
            (None, None) => None,
        };
        let options = match below {
            Some((name, format)) => CreateOptions::overlay(size, (name, format.name().to_owned())),
            None => CreateOptions::new(size),
        };
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        gone(fs::remove_file(&new)).map_err(system("remove", &new))?;
        let file = ImageFile::create(&new)?;
        let port = Port::new();
        block_on(&port, async {
            create(&port, &file, None, &options).await?;
            port.flush(&file).await
        })?;
        fs::rename(&new, &path).map_err(system("name", &path))?;
        sync_parent(&path)
    }

    /// Puts a layer on top of a volume that nobody uses: `layers.next`, which is noted already.
    pub fn put_on_top(&self, layers: &Layers) -> Result<(), VolumeError> {
        let Some(next) = &layers.next else {
            return Ok(());
        };
        match self.path(next).exists() {
            true => Ok(()),
            false => self.overlay(layers, next, self.size(layers)?),
        }
    }

    /// The layer that was noted is on top from now on.
    pub fn note_top(&self, layers: &mut Layers) -> Result<(), VolumeError> {
        layers.settle();
        self.write(layers)
    }

    /// Makes the disk larger while nobody uses it.
    pub fn grow(&self, size: u64) -> Result<(), VolumeError> {
        let layers = self.settled()?;
        let port = Port::new();
        block_on(&port, async {
            let specs = self.specs(&layers);
            let options = FileOptions::default();
            let stack = Stack::open(&port, &specs, &options, DEFAULT_CACHE).await?;
            if stack.size() < size {
                stack.resize(&port, size).await?;
            }
            stack.close(&port).await
        })?;
        Ok(())
    }

    /// Removes it; first its name, so that nobody takes what is left for whole.
    pub fn remove(&self) -> Result<(), VolumeError> {
        let manifest = self.0.join(MANIFEST);
        gone(fs::remove_file(&manifest)).map_err(system("remove", &manifest))?;
        gone(fs::remove_dir_all(&self.0)).map_err(system("remove", &self.0))
    }
}

/// Bytes of a layer's disk.
fn size_of(layer: &LayerSpec) -> Result<u64, VolumeError> {
    let file = ImageFile::open(&layer.path, &LOOKING)?;
    match layer.format {
        Format::Raw => Ok(file.end().next_multiple_of(SECTOR)),
        Format::Qcow2 => {
            let port = Port::new();
            Ok(block_on(&port, read_header(&port, &file))?.size)
        }
    }
}

fn sync_parent(path: &Path) -> Result<(), VolumeError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(parent).and_then(|folder| folder.sync_all());
    synced.map_err(system("sync", parent))
}

fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "folder_test.rs"]
mod tests;
