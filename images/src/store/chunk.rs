//! A chunk's file: a byte that says how it is packed, and its content.

use super::{Hash, StoreError};

/// Bytes of the largest chunk.
pub const LARGEST: usize = 1 << 20;
/// Bytes of the longest file of a chunk: one that does not become smaller is kept as it is.
pub const LONGEST: u64 = LARGEST as u64 + 1;
/// How hard zstd tries: a level that keeps up with disks.
const LEVEL: i32 = 1;

const PLAIN: u8 = b'r';
const ZSTD: u8 = b'z';

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

    /// The file of a chunk.
    pub fn pack(&mut self, content: &[u8]) -> Vec<u8> {
        // One that becomes hardly smaller is quicker to read as it is.
        let most = content.len() - content.len() / 16;
        let mut file = vec![ZSTD; 1];
        match self.packs.compress(content) {
            Ok(packed) if packed.len() <= most => file.extend_from_slice(&packed),
            _ => {
                file[0] = PLAIN;
                file.extend_from_slice(content);
            }
        }
        file
    }

    /// The content of a chunk's file, compared with its name.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn unpack(&mut self, hash: Hash, file: &[u8]) -> Result<Vec<u8>, StoreError> {
        let damaged = |why: String| StoreError::Damaged {
            what: "chunk",
            hash,
            why,
        };
        let content = match file.split_first() {
            Some((&PLAIN, rest)) => rest.to_vec(),
            Some((&ZSTD, rest)) => {
                let unpacked = self.unpacks.decompress(rest, LARGEST);
                unpacked.map_err(|e| damaged(format!("it cannot be unpacked ({e})")))?
            }
            _ => return Err(damaged("it does not begin as a chunk does".into())),
        };
        match Hash::of(&content) == hash {
            true => Ok(content),
            false => Err(damaged("it holds something else".into())),
        }
    }
}
