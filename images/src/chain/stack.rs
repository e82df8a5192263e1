//! A disk made of layers: reads look from the top down, writes go to the top.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Layer, MAX_LAYERS, Raw};
use crate::io::{FileOptions, ImageFile, Port, Span};
use crate::qcow2::{Image, OpenOptions, Tracker};
use crate::{Error, Result};

/// An image format. Always given, never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The guest's disk byte by byte.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// Its name in options and headers.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }

    /// The format of this name.
    pub fn from_name(name: &str) -> Option<Format> {
        match name {
            "raw" => Some(Format::Raw),
            "qcow2" => Some(Format::Qcow2),
            _ => None,
        }
    }
}

/// One layer, as the caller gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpec {
    /// Its format.
    pub format: Format,
    /// Its file.
    pub path: PathBuf,
    /// Its external data file, for qcow2.
    pub data_file: Option<PathBuf>,
}

impl LayerSpec {
    /// A layer without an external data file.
    pub fn new(format: Format, path: impl Into<PathBuf>) -> LayerSpec {
        LayerSpec {
            format,
            path: path.into(),
            data_file: None,
        }
    }

    /// From `raw:PATH`, `qcow2:PATH`, or a bare path, which is qcow2.
    pub fn parse(text: &str) -> LayerSpec {
        let named = text
            .split_once(':')
            .and_then(|(name, path)| Some((Format::from_name(name)?, path)));
        let (format, path) = named.unwrap_or((Format::Qcow2, text));
        LayerSpec::new(format, path)
    }

    /// Opens the layer.
    pub async fn open(&self, port: &Port, file: &FileOptions, cache: u64) -> Result<Layer> {
        self.open_with(
            port,
            file,
            &OpenOptions {
                readonly: file.readonly,
                cache,
                for_check: false,
            },
        )
        .await
    }

    /// Opens the layer with all of its options.
    pub async fn open_with(
        &self,
        port: &Port,
        file: &FileOptions,
        options: &OpenOptions,
    ) -> Result<Layer> {
        let opened = ImageFile::open(&self.path, file)?;
        match self.format {
            Format::Raw if self.data_file.is_some() => Err(Error::Invalid {
                path: self.path.clone(),
                what: "a raw image has no external data file".into(),
            }),
            Format::Raw => Ok(Layer::Raw(Arc::new(Raw::new(opened)))),
            Format::Qcow2 => {
                let data = match &self.data_file {
                    Some(path) => Some(ImageFile::open(path, file)?),
                    None => None,
                };
                Image::open(port, opened, data, options)
                    .await
                    .map(Layer::Qcow2)
            }
        }
    }
}

/// A stack of layers, the first on top. Only the top is written.
#[derive(Clone)]
pub struct Stack {
    layers: Arc<[Layer]>,
}

impl Stack {
    /// A stack of open layers, the top first.
    pub fn new(layers: Vec<Layer>) -> Stack {
        Stack {
            layers: layers.into(),
        }
    }

    /// Opens layers, the top first. Those below it are opened for reading.
    pub async fn open(
        port: &Port,
        specs: &[LayerSpec],
        top: &FileOptions,
        cache: u64,
    ) -> Result<Stack> {
        let path = specs
            .first()
            .map_or(Path::new("").into(), |s| s.path.clone());
        if specs.is_empty() || specs.len() > MAX_LAYERS {
            return Err(Error::Invalid {
                path,
                what: format!(
                    "a disk has 1 to {MAX_LAYERS} layers, and {} are given",
                    specs.len()
                ),
            });
        }
        let mut layers = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            let options = FileOptions {
                readonly: i > 0 || top.readonly,
                ..top.clone()
            };
            layers.push(spec.open(port, &options, cache).await?);
        }
        Stack::check(&layers)?;
        Ok(Stack::new(layers))
    }

    /// Refuses layers that cannot lie on each other.
    fn check(layers: &[Layer]) -> Result<()> {
        for (i, layer) in layers.iter().enumerate() {
            let invalid = |what: String| Error::Invalid {
                path: layer.file().path().to_owned(),
                what,
            };
            let last = i + 1 == layers.len();
            match layer {
                Layer::Raw(_) if !last => {
                    return Err(invalid(
                        "a raw image hides all layers below it: give it last".into(),
                    ));
                }
                Layer::Qcow2(image) if last => {
                    if let Some(name) = image.header().backing {
                        return Err(invalid(format!(
                            "it lies on another image, which it calls \u{201c}{}\u{201d}: give that as its backing layer, with its format",
                            name.escape_debug()
                        )));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The layers, the top first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The same without one of its layers.
    pub fn without(&self, index: usize) -> Stack {
        let mut layers = self.layers.to_vec();
        layers.remove(index);
        Stack::new(layers)
    }

    /// Divides `bytes` of memory for tables among the layers. The top, which is written, has half.
    pub fn share_cache(&self, bytes: u64) {
        let below = self.layers.len() as u64 - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            if let Layer::Qcow2(image) = layer {
                image.set_cache(match (i, below) {
                    (_, 0) => bytes,
                    (0, _) => bytes / 2,
                    _ => bytes / 2 / below,
                });
            }
        }
    }

    /// The top layer.
    pub fn top(&self) -> &Layer {
        &self.layers[0]
    }

    /// The disk's size in bytes: the top's.
    pub fn size(&self) -> u64 {
        self.top().size()
    }

    /// Reads; true if anything came from data, so might not be zero.
    pub async fn read(&self, port: &Port, offset: u64, span: &Span) -> Result<bool> {
        super::read(port, &self.layers, offset, span).await
    }

    /// Writes to the top.
    pub async fn write(&self, port: &Port, offset: u64, span: &Span) -> Result<()> {
        match self.top() {
            Layer::Qcow2(image) => image.write(port, offset, span, &self.layers).await,
            Layer::Raw(raw) => port.write(raw.file(), offset, span.clone()).await,
        }
    }

    /// Makes a range read as zeroes; with `unmap` its space is given back.
    pub async fn zero(&self, port: &Port, offset: u64, len: u64, unmap: bool) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        match self.top() {
            Layer::Qcow2(image) => image.zero(port, offset, len, unmap, &self.layers).await,
            Layer::Raw(raw) if unmap => {
                // A file system that cannot make holes can still write.
                port.zero(raw.file(), offset, len).await?;
                port.punch(raw.file(), offset, len).await
            }
            Layer::Raw(raw) => port.zero(raw.file(), offset, len).await,
        }
    }

    /// Gives a range's space back.
    pub async fn discard(&self, port: &Port, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        match self.top() {
            Layer::Qcow2(image) => image.discard(port, offset, len, &self.layers).await,
            Layer::Raw(raw) => port.punch(raw.file(), offset, len).await,
        }
    }

    /// Makes what was written durable.
    pub async fn flush(&self, port: &Port) -> Result<()> {
        match self.top() {
            _ if self.top().file().readonly() => Ok(()),
            Layer::Qcow2(image) => image.flush(port).await,
            Layer::Raw(raw) => port.flush(raw.file()).await,
        }
    }

    /// Changes the disk's size.
    pub async fn resize(&self, port: &Port, size: u64) -> Result<()> {
        match self.top() {
            Layer::Qcow2(image) => image.resize(port, size, &self.layers).await,
            Layer::Raw(raw) if raw.file().block_device() => Err(Error::Invalid {
                path: raw.file().path().to_owned(),
                what: "a block device has the size that it has".into(),
            }),
            Layer::Raw(raw) => {
                port.set_len(raw.file(), size).await?;
                port.flush(raw.file()).await
            }
        }
    }

    /// Takes the top's persistent bitmaps: see [`Image::load_bitmaps`]. A raw image has none.
    pub async fn load_bitmaps(&self, port: &Port) -> Result<Vec<Tracker>> {
        match self.top() {
            Layer::Qcow2(image) if !image.file().readonly() => image.load_bitmaps(port).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Gives them back: see [`Image::store_bitmaps`].
    pub async fn store_bitmaps(&self, port: &Port, trackers: &[Tracker]) -> Result<()> {
        match self.top() {
            Layer::Qcow2(image) => image.store_bitmaps(port, trackers).await,
            Layer::Raw(_) => Ok(()),
        }
    }

    /// Writes everything back and leaves the images clean.
    pub async fn close(&self, port: &Port) -> Result<()> {
        for layer in self.layers.iter() {
            match layer {
                Layer::Qcow2(image) => image.close(port).await?,
                Layer::Raw(raw) if !raw.file().readonly() => port.flush(raw.file()).await?,
                Layer::Raw(_) => {}
            }
        }
        Ok(())
    }
}
