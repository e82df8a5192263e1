//! The files of a disk: opened, made, opened again for writing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skerry_images::chain::{Format, Layer, LayerSpec, Stack, Volume};
use skerry_images::io::{FileOptions, ImageFile, Port, block_on};
use skerry_images::qcow2::{CreateOptions, DEFAULT_CACHE, Image, OpenOptions, create};
use skerry_images::{Error, Result};
use skerry_vmm_api::config::{DiskConfig, FullLayerConfig, ImageType, LayerConfig};

use super::DiskError;

/// How a disk's files are opened.
#[derive(Debug, Clone)]
pub(super) struct Opening {
    readonly: bool,
    direct: bool,
    cache: u64,
}

pub(super) fn image_type(format: Format) -> ImageType {
    match format {
        Format::Raw => ImageType::Raw,
        Format::Qcow2 => ImageType::Qcow2,
    }
}

fn format(image_type: ImageType) -> Format {
    match image_type {
        ImageType::Raw => Format::Raw,
        ImageType::Qcow2 => Format::Qcow2,
    }
}

impl Opening {
    pub fn of(config: &DiskConfig) -> Opening {
        Opening {
            readonly: config.readonly,
            direct: config.direct,
            cache: config.cache_size.unwrap_or(DEFAULT_CACHE),
        }
    }

    /// Bytes of tables that the disk's layers together keep in memory.
    pub fn cache(&self) -> u64 {
        self.cache
    }

    fn options(&self, readonly: bool) -> FileOptions {
        FileOptions {
            readonly,
            direct: self.direct,
            unlocked: false,
        }
    }

    /// Opens the layers that the configuration gives.
    pub async fn open(&self, port: &Port, config: &DiskConfig) -> Result<Stack> {
        let top = LayerSpec {
            format: format(config.format()),
            path: config.path.clone(),
            data_file: config.data_file.clone(),
        };
        let below = config.backing.iter().map(|layer| {
            let full = layer.full();
            LayerSpec {
                format: format(full.image_type),
                path: full.path,
                data_file: full.data_file,
            }
        });
        let specs: Vec<LayerSpec> = std::iter::once(top).chain(below).collect();
        Stack::open(port, &specs, &self.options(self.readonly), self.cache).await
    }

    /// Opens a layer again, for writing.
    pub fn reopen(&self, layer: &Layer) -> Result<Layer> {
        let spec = LayerSpec {
            format: layer.format(),
            path: layer.file().path().to_owned(),
            data_file: data_file(layer),
        };
        // Our own lock would be in the way.
        for file in files(layer) {
            file.relock(None)?;
        }
        let port = Port::new();
        let opened = block_on(&port, spec.open(&port, &self.options(false), self.cache));
        if opened.is_err() {
            lock_again(layer)?;
        }
        opened
    }

    /// Makes an empty layer for the top of the volume. It has its name only when it is whole.
    pub fn create_overlay(
        &self,
        volume: &Volume,
        path: &Path,
    ) -> std::result::Result<Layer, DiskError> {
        let view = volume.view();
        let top = view.stack.top();
        let below =
            std::path::absolute(top.file().path()).unwrap_or_else(|_| top.file().path().into());
        let name = (below.display().to_string(), top.format().name().to_owned());
        let options = CreateOptions::overlay(volume.size(), name);
        make(path, path, &options)?;
        let layer = self.open_new(path, volume.block_size());
        if layer.is_err() {
            let _ = std::fs::remove_file(path);
        }
        layer
    }

    /// Makes the image that a backup is written to.
    pub fn create_backup(
        &self,
        volume: &Volume,
        path: &Path,
        backing: Option<&Path>,
    ) -> std::result::Result<Layer, DiskError> {
        if path.exists() {
            return Err(exists(path).into());
        }
        let partial = partial(path);
        remove_stale(&partial)?;
        let mut options = CreateOptions::new(volume.size());
        options.backing = backing.map(|b| {
            let b = std::path::absolute(b).unwrap_or_else(|_| b.to_owned());
            (b.display().to_string(), "qcow2".to_owned())
        });
        make(&partial, &partial, &options)?;
        let buffered = Opening {
            direct: false,
            ..self.clone()
        };
        buffered.open_new(&partial, volume.block_size())
    }

    fn open_new(&self, path: &Path, block_size: u32) -> std::result::Result<Layer, DiskError> {
        let port = Port::new();
        let file = ImageFile::open(path, &self.options(false))?;
        if file.block_size() > block_size {
            return Err(DiskError::Invalid {
                id: path.display().to_string(),
                what: format!(
                    "its file system transfers blocks of {}, and the guest was told {block_size}: put it where the disk is",
                    file.block_size()
                ),
            });
        }
        let options = OpenOptions {
            cache: self.cache,
            ..OpenOptions::default()
        };
        let image = block_on(&port, Image::open(&port, file, None, &options))?;
        Ok(Layer::Qcow2(image))
    }

    /// Says in the configuration which layers the disk has now.
    pub fn note_layers(&self, volume: &Volume, config: &mut DiskConfig) {
        let view = volume.view();
        let mut layers = view.stack.layers().iter();
        let Some(top) = layers.next() else { return };
        let same = config.path == top.file().path();
        let below: Vec<FullLayerConfig> = layers
            .map(|layer| FullLayerConfig {
                path: layer.file().path().to_owned(),
                image_type: image_type(layer.format()),
                data_file: data_file(layer),
            })
            .collect();
        let said: Vec<FullLayerConfig> = config.backing.iter().map(LayerConfig::full).collect();
        // As it was said, as long as that is true.
        if same && said == below {
            return;
        }
        config.path = top.file().path().to_owned();
        config.image_type = Some(image_type(top.format()));
        config.data_file = data_file(top);
        config.backing = below.into_iter().map(LayerConfig::Full).collect();
    }
}

/// The configuration's top layer, as one below another.
pub fn top_layer(config: &DiskConfig) -> LayerConfig {
    LayerConfig::Full(FullLayerConfig {
        path: config.path.clone(),
        image_type: config.format(),
        data_file: config.data_file.clone(),
    })
}

/// Makes an empty layer at `path` for a disk whose configuration has it on top already. It is as durable
/// as what is written to it later.
pub fn create_overlay_of(config: &DiskConfig, path: &Path) -> std::result::Result<(), DiskError> {
    let Some((below, rest)) = config.backing.split_first() else {
        return Ok(());
    };
    let full = below.full();
    let below = DiskConfig {
        path: full.path.clone(),
        image_type: Some(full.image_type),
        data_file: full.data_file,
        backing: rest.to_vec(),
        readonly: true,
        ..config.clone()
    };
    let port = Port::new();
    let stack = block_on(&port, Opening::of(&below).open(&port, &below))?;
    let name = std::path::absolute(&full.path).unwrap_or(full.path);
    let kind = format(below.format()).name().to_owned();
    let options = CreateOptions::overlay(stack.size(), (name.display().to_string(), kind));
    let file = ImageFile::create(path)?;
    let made = block_on(&port, create(&port, &file, None, &options));
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    Ok(made?)
}

fn files(layer: &Layer) -> impl Iterator<Item = &Arc<ImageFile>> {
    let external = !Arc::ptr_eq(layer.file(), layer.data_file());
    let data = external.then(|| layer.data_file());
    std::iter::once(layer.file()).chain(data)
}

/// Takes a reader's locks again, when nothing came of writing the layer.
pub(super) fn lock_again(layer: &Layer) -> Result<()> {
    lock(layer, false)
}

/// What tells whether a file was written: its size and when it was changed last.
pub(super) type Stamp = (u64, i64, i64);

/// How the layer's file is now.
pub(super) fn stamp(layer: &Layer) -> Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let path = layer.data_file().path();
    let found = std::fs::metadata(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        what: "look at",
        source,
    })?;
    Ok((found.len(), found.mtime(), found.mtime_nsec()))
}

/// Gives a layer's locks up.
pub(super) fn unlock(layer: &Layer) -> Result<()> {
    files(layer).try_for_each(|file| file.relock(None).map(drop))
}

/// Takes a layer's locks, a writer's or a reader's.
pub(super) fn lock(layer: &Layer, exclusive: bool) -> Result<()> {
    for file in files(layer) {
        if !file.relock(Some(exclusive))? {
            return Err(Error::Locked {
                path: file.path().to_owned(),
            });
        }
    }
    Ok(())
}

fn data_file(layer: &Layer) -> Option<PathBuf> {
    let external = !Arc::ptr_eq(layer.file(), layer.data_file());
    external.then(|| layer.data_file().path().to_owned())
}

fn exists(path: &Path) -> Error {
    Error::Kind {
        path: path.to_owned(),
        what: "there already: give the name of a new file".into(),
    }
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Makes an image, durably, under another name first, so that `path` is never half of one.
fn make(path: &Path, last: &Path, options: &CreateOptions) -> Result<()> {
    if last.exists() {
        return Err(exists(last));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let made = (|| {
        remove_stale(&new)?;
        let file = ImageFile::create(&new)?;
        let port = Port::new();
        block_on(&port, async {
            create(&port, &file, None, options).await?;
            port.flush(&file).await
        })?;
        rename(&new, last)
    })();
    if made.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    made
}

/// Removes what is left of an image whose maker died. Should it be under way, somebody has its lock.
fn remove_stale(path: &Path) -> Result<()> {
    if path.exists() {
        drop(ImageFile::open(path, &FileOptions::default())?);
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Renames a file, durably.
fn rename(from: &Path, to: &Path) -> Result<()> {
    let fail = |source| Error::Io {
        path: to.to_owned(),
        what: "create",
        source,
    };
    std::fs::rename(from, to).map_err(fail)?;
    folder(to)?.sync_all().map_err(fail)
}

/// What gives a backup its name when it is complete, durably. It runs on the worker, which opens no
/// files: so its folder is opened now.
pub(super) fn complete_backup(path: &Path) -> Result<impl FnOnce() -> Result<()> + Send + 'static> {
    let folder = folder(path)?;
    let path = path.to_owned();
    Ok(move || {
        let fail = |source: std::io::Error| Error::Io {
            path: path.clone(),
            what: "create",
            source,
        };
        let (cwd, partial) = (rustix::fs::CWD, partial(&path));
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(cwd, &partial, cwd, &path, flags).map_err(|e| fail(e.into()))?;
        folder.sync_all().map_err(fail)
    })
}

/// Removes what a failed backup has left.
pub(super) fn remove_partial(path: PathBuf) -> Box<dyn FnOnce(bool) -> Result<()> + Send> {
    Box::new(move |done| {
        if !done {
            let _ = std::fs::remove_file(partial(&path));
        }
        Ok(())
    })
}

/// The folder that a file is in.
fn folder(path: &Path) -> Result<std::fs::File> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new("."))).map_err(|source| Error::Io {
        path: path.to_owned(),
        what: "create",
        source,
    })
}
