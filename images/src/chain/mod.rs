//! Layers of a disk, given one by one by the caller. A path that an image names is never opened.

pub mod live;
mod stack;
mod volume;

use std::sync::Arc;

use crate::Result;
use crate::io::{ImageFile, OpFuture, Port, Span, join};
use crate::qcow2::{Guard, Image, Place, Run};

pub use stack::{Format, LayerSpec, Stack};
pub use volume::{Drained, Hold, Target, View, Volume};

/// The most layers of one disk.
pub const MAX_LAYERS: usize = 64;

/// A raw image: the guest's disk byte by byte.
pub struct Raw {
    file: Arc<ImageFile>,
}

impl Raw {
    /// A raw layer in `file`.
    pub fn new(file: Arc<ImageFile>) -> Raw {
        Raw { file }
    }

    /// Its file.
    pub fn file(&self) -> &Arc<ImageFile> {
        &self.file
    }
}

/// One layer.
#[derive(Clone)]
pub enum Layer {
    /// A qcow2 image.
    Qcow2(Arc<Image>),
    /// A raw one.
    Raw(Arc<Raw>),
}

impl Layer {
    /// A layer that has nothing, in the place of one that is not open: what is on top of it must say
    /// even that it is zeroes.
    pub fn nothing() -> Layer {
        Layer::Raw(Arc::new(Raw::new(ImageFile::simulated(-1, 0, true))))
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match self {
            Layer::Qcow2(_) => Format::Qcow2,
            Layer::Raw(_) => Format::Raw,
        }
    }

    /// Begins a request: what it looks up is not reused until the guard is dropped.
    pub fn guard(&self) -> Option<Guard<'_>> {
        match self {
            Layer::Qcow2(image) => Some(image.guard()),
            Layer::Raw(_) => None,
        }
    }

    /// The guest disk's size in bytes, as this layer sees it.
    pub fn size(&self) -> u64 {
        match self {
            Layer::Qcow2(image) => image.size(),
            Layer::Raw(raw) => raw.file.end(),
        }
    }

    /// The file with the guest's data.
    pub fn data_file(&self) -> &Arc<ImageFile> {
        match self {
            Layer::Qcow2(image) => image.data_file(),
            Layer::Raw(raw) => &raw.file,
        }
    }

    /// The file that names the layer.
    pub fn file(&self) -> &Arc<ImageFile> {
        match self {
            Layer::Qcow2(image) => image.file(),
            Layer::Raw(raw) => &raw.file,
        }
    }

    /// Where the bytes from `offset` are. The caller has begun a request.
    pub async fn map(&self, port: &Port, offset: u64, len: u64) -> Result<Run> {
        match self {
            Layer::Qcow2(image) => image.map(port, offset, len).await,
            Layer::Raw(_) => Ok(Run {
                place: Place::Data(offset),
                len,
            }),
        }
    }
}

/// Reads from a stack of layers, the first on top. What no layer has is zeroes. True if anything
/// came from a layer's data, so might not be zero.
pub async fn read(port: &Port, layers: &[Layer], offset: u64, span: &Span) -> Result<bool> {
    let _guards: Vec<_> = layers.iter().map(Layer::guard).collect();
    let mut reads: Vec<OpFuture> = Vec::new();
    let mut some = false;
    let mut done = 0;
    let result = async {
        while done < span.len() {
            let (at, run) = find(port, layers, offset + done, span.len() - done).await?;
            let part = span.slice(done, run.len);
            match run.place {
                Place::Data(host) => {
                    some = true;
                    reads.push(port.read(layers[at].data_file(), host, part));
                }
                Place::Compressed(host, len) => {
                    some = true;
                    if let Layer::Qcow2(image) = &layers[at] {
                        let bytes = image.unpacked(port, host, len).await?;
                        let from = (offset + done) % image.geometry().cluster();
                        part.fill(&bytes[from as usize..]);
                    }
                }
                Place::Zero | Place::Hole => part.zero(0),
            }
            done += run.len;
            if reads.len() >= 64 {
                join(reads.drain(..)).await?;
            }
        }
        Ok(())
    };
    let result = result.await;
    let joined = join(reads).await;
    result.and(joined)?;
    Ok(some)
}

/// The layer that has the bytes from `offset`, and where. A hole if none has.
pub async fn find(port: &Port, layers: &[Layer], offset: u64, len: u64) -> Result<(usize, Run)> {
    let mut len = len;
    for (i, layer) in layers.iter().enumerate() {
        let size = layer.size();
        if offset >= size {
            // A layer may be shorter than those above; behind its end is nothing, and what is below
            // it does not show.
            return Ok((
                i,
                Run {
                    place: Place::Hole,
                    len,
                },
            ));
        }
        let run = layer.map(port, offset, len.min(size - offset)).await?;
        if run.place != Place::Hole {
            return Ok((i, run));
        }
        len = run.len;
    }
    Ok((
        layers.len(),
        Run {
            place: Place::Hole,
            len,
        },
    ))
}
