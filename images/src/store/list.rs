//! Lists of chunks: what a long content consists of. A list is kept as a chunk itself, so equal stretches of two
//! images have one list, too.

use serde::{Deserialize, Serialize};

use super::{Hash, StoreError};

/// Chunks of a list: 512 MiB of a disk.
pub const CHUNKS: usize = 8192;
/// Lists of a content: 512 TiB of a disk is the format's bound, 64 TiB ours.
pub const LISTS: usize = 1 << 17;
/// Bytes of an entry.
const ENTRY: usize = 4 + 32;

/// A content of any length, by lists of its chunks in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Its bytes.
    pub size: u64,
    /// Its lists.
    pub lists: Vec<Hash>,
}

/// A chunk in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its bytes.
    pub len: u32,
    /// Its name.
    pub hash: Hash,
}

impl Entry {
    /// Nothing of it is kept.
    pub fn is_zeroes(&self) -> bool {
        self.hash == Hash::ZEROES
    }
}

/// A list as bytes: for each chunk its length, little endian, and its name.
pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY);
    for entry in entries {
        bytes.extend_from_slice(&entry.len.to_le_bytes());
        bytes.extend_from_slice(&entry.hash.0);
    }
    bytes
}

/// A list from the bytes of the chunk `hash`.
///
/// # Errors
/// If they are none.
pub fn decode(hash: Hash, bytes: &[u8]) -> Result<Vec<Entry>, StoreError> {
    let damaged = |why: &str| StoreError::Damaged {
        what: "list",
        hash,
        why: why.into(),
    };
    let (entries, rest) = bytes.as_chunks::<ENTRY>();
    if !rest.is_empty() || entries.is_empty() || entries.len() > CHUNKS {
        return Err(damaged("it has a length that no list has"));
    }
    let entries = entries.iter().map(|bytes| {
        let (mut len, mut hash) = ([0; 4], [0; 32]);
        len.copy_from_slice(&bytes[..4]);
        hash.copy_from_slice(&bytes[4..]);
        let len = u32::from_le_bytes(len);
        match len > 0 && len as usize <= super::chunk::LARGEST {
            true => Ok(Entry {
                len,
                hash: Hash(hash),
            }),
            false => Err(damaged("it has a chunk of an impossible length")),
        }
    });
    entries.collect()
}
