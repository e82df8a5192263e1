//! A chunk: how it is packed, and compared with its name.

use super::{Hash, StoreError};

/// Bytes of the largest chunk.
pub const LARGEST: usize = 1 << 20;
/// How hard zstd tries: a level that keeps up with disks.
const LEVEL: i32 = 1;

/// What packs and unpacks chunks, one thread's.
pub struct Packer {
    packs: zstd::bulk::Compressor<'static>,
    unpacks: zstd::bulk::Decompressor<'static>,
}

impl Packer {
    /// A new one.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new() -> Result<Packer, StoreError> {
        let made = zstd::bulk::Compressor::new(LEVEL)
            .and_then(|packs| Ok((packs, zstd::bulk::Decompressor::new()?)));
        let (packs, unpacks) = made.map_err(StoreError::Source)?;
        Ok(Packer { packs, unpacks })
    }

    /// A chunk packed, or none if that makes it hardly smaller: it is quicker to read as it is then.
    pub fn pack(&mut self, content: &[u8]) -> Option<Vec<u8>> {
        let most = content.len() - content.len() / 16;
        let packed = self.packs.compress(content).ok()?;
        (packed.len() <= most).then_some(packed)
    }

    /// A chunk's content from what is kept of it, compared with its name.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn unpack(
        &mut self,
        hash: Hash,
        kept: Vec<u8>,
        packed: bool,
    ) -> Result<Vec<u8>, StoreError> {
        let damaged = |why: String| StoreError::Damaged {
            what: "chunk",
            hash,
            why,
        };
        let content = match packed {
            false => kept,
            true => {
                let unpacked = self.unpacks.decompress(&kept, LARGEST);
                unpacked.map_err(|e| damaged(format!("it cannot be unpacked ({e})")))?
            }
        };
        match Hash::of(&content) == hash {
            true => Ok(content),
            false => Err(damaged("it holds something else".into())),
        }
    }
}
