//! Where a disk's content is: in which layer, at which offset, or nowhere.

use crate::Result;
use crate::chain::Layer;
use crate::io::Port;
use crate::qcow2::{Place, Status};

/// A stretch of a disk that is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The layer that it was found in, or the last that was asked: 0 is the top.
    pub depth: usize,
    /// A layer has it, be it as zeroes.
    pub present: bool,
    /// It reads as zeroes.
    pub zero: bool,
    /// It is data, as far as the layer knows.
    pub data: bool,
    /// It is compressed.
    pub compressed: bool,
    /// Where it is in the layer's data file, or where its place is.
    pub offset: Option<u64>,
}

impl Extent {
    /// Makes this extent longer by `next`, if that is of the same kind and follows it.
    pub fn join(&mut self, next: &Extent) -> bool {
        let kind = |e: &Extent| (e.depth, e.present, e.zero, e.data, e.compressed);
        let follows =
            self.start + self.len == next.start && self.offset.map(|o| o + self.len) == next.offset;
        let same = follows && kind(self) == kind(next);
        if same {
            self.len += next.len;
        }
        same
    }
}

/// What is at `offset`, and for how many of `len` bytes that goes on.
pub async fn extent(port: &Port, layers: &[Layer], offset: u64, len: u64) -> Result<Extent> {
    let mut len = len;
    let mut found = Extent {
        start: offset,
        len,
        depth: 0,
        present: false,
        zero: true,
        data: false,
        compressed: false,
        offset: None,
    };
    for (depth, layer) in layers.iter().enumerate() {
        let size = layer.size();
        // Behind a layer's end is nothing, and the layer above it is who says so.
        if offset >= size {
            break;
        }
        len = len.min(size - offset);
        let status = match layer {
            Layer::Qcow2(image) => {
                let _guard = image.guard();
                image.status(port, offset, len).await?
            }
            Layer::Raw(_) => Status {
                place: Place::Data(offset),
                host: Some(offset),
                len,
            },
        };
        len = status.len;
        found = Extent {
            start: offset,
            len,
            depth,
            present: status.place != Place::Hole,
            zero: matches!(status.place, Place::Zero | Place::Hole),
            data: matches!(status.place, Place::Data(_) | Place::Compressed(..)),
            compressed: matches!(status.place, Place::Compressed(..)),
            offset: status.host,
        };
        if let Place::Data(host) = status.place {
            holes(layer, host, &mut found);
        }
        if found.present {
            return Ok(found);
        }
    }
    Ok(found)
}

/// What the file system calls a hole reads as zeroes.
fn holes(layer: &Layer, host: u64, found: &mut Extent) {
    let raw = match layer {
        Layer::Raw(_) => true,
        Layer::Qcow2(image) if image.sparse() => false,
        Layer::Qcow2(_) => return,
    };
    let (data, len) = layer.data_file().extent(host, found.len);
    found.len = len;
    found.zero = !data;
    found.data = data || !raw;
}
