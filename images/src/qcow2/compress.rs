//! Compressed clusters: packing and unpacking.

use flate2::{Compress, Compression as Level, Decompress, FlushCompress, FlushDecompress, Status};

use super::Image;
use super::header::Compression;
use crate::Result;
use crate::io::{Buffer, Port};

/// The cluster that was unpacked last: readers come for its parts one after the other.
#[derive(Default)]
pub(super) struct Unpacked {
    place: Option<(u64, u64)>,
    bytes: std::sync::Arc<Vec<u8>>,
}

/// What zlib readers expect: a window of 4 KiB.
const WINDOW_BITS: u8 = 12;

/// Compresses a cluster. None if it does not become smaller.
pub fn pack(kind: Compression, cluster: &[u8]) -> Option<Vec<u8>> {
    let mut packed = vec![0; cluster.len() - 1];
    let len = match kind {
        Compression::Zlib => {
            let mut stream = Compress::new_with_window_bits(Level::default(), false, WINDOW_BITS);
            match stream.compress(cluster, &mut packed, FlushCompress::Finish) {
                Ok(Status::StreamEnd) => stream.total_out() as usize,
                _ => return None,
            }
        }
        Compression::Zstd => zstd::bulk::compress_to_buffer(cluster, &mut packed, 0).ok()?,
    };
    packed.truncate(len);
    Some(packed)
}

/// Unpacks a cluster: fills all of `cluster`, or fails. What follows the data is ignored, since the
/// length is only known in sectors.
pub fn unpack(kind: Compression, packed: &[u8], cluster: &mut [u8]) -> bool {
    match kind {
        Compression::Zlib => {
            let mut stream = Decompress::new(false);
            // Packers that are cut off at the cluster's end do not end the stream.
            let result = stream.decompress(packed, cluster, FlushDecompress::Finish);
            result.is_ok() && stream.total_out() == cluster.len() as u64
        }
        Compression::Zstd => {
            use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
            let Ok(mut decoder) = Decoder::new() else {
                return false;
            };
            let len = cluster.len();
            let mut input = InBuffer::around(packed);
            let mut output = OutBuffer::around(cluster);
            while output.pos() < len {
                let before = (input.pos(), output.pos());
                match decoder.run(&mut input, &mut output) {
                    Ok(_) if (input.pos(), output.pos()) != before => {}
                    _ => return false,
                }
            }
            true
        }
    }
}

impl Image {
    /// The unpacked content of the compressed cluster at `offset`.
    pub(crate) async fn unpacked(
        &self,
        port: &Port,
        offset: u64,
        len: u64,
    ) -> Result<std::sync::Arc<Vec<u8>>> {
        {
            let unpacked = self.unpacked.lock();
            if unpacked.place == Some((offset, len)) {
                return Ok(unpacked.bytes.clone());
            }
        }
        let packed = Buffer::new(len as usize);
        port.read(self.file(), offset, packed.span()).await?;
        let mut bytes = vec![0; self.geometry().cluster() as usize];
        let kind = self.state().header.compression;
        if !unpack(kind, packed.bytes(), &mut bytes) {
            return Err(self.corrupt(format!(
                "the compressed data at {offset:#x} does not unpack to a cluster"
            )));
        }
        let bytes = std::sync::Arc::new(bytes);
        *self.unpacked.lock() = Unpacked {
            place: Some((offset, len)),
            bytes: bytes.clone(),
        };
        Ok(bytes)
    }

    /// What was unpacked is out of date: its place is written anew.
    pub(super) fn forget_unpacked(&self) {
        *self.unpacked.lock() = Unpacked::default();
    }
}
