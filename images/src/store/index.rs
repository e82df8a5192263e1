//! A pack's index: the names of its chunks, and where each is in the pack's data.
//!
//! ```text
//! 0   "SKPACK", 0, 2
//! 8   the digest of the disk image that the data is as a whole, or zeroes
//! 40  for each chunk, in the order of names: its name (32 bytes), its offset (8), its length (4); little endian.
//!     The length's highest bit says that zstd packed it
//! end the BLAKE3 hash of all before it (32)
//! ```

use super::Hash;
use super::chunk::LARGEST;

const MAGIC: [u8; 8] = *b"SKPACK\0\x02";
const HEADER: usize = 8 + 32;
const RECORD: usize = 32 + 8 + 4;
const TRAILER: usize = 32;
/// Of a length: the chunk is packed.
const PACKED: u32 = 1 << 31;
/// Bytes of a file system's block: smaller stretches of a pack stay.
const BLOCK: u64 = 4096;
/// Bytes of the longest index: for six TiB of a disk that are no zeroes.
pub const LONGEST: u64 = 4 << 30;

/// Where a chunk is in a pack's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its first byte.
    pub at: u64,
    /// Bytes that it takes there.
    pub len: u32,
    /// They are packed by zstd.
    pub packed: bool,
}

/// An index, as it is kept.
#[derive(Debug, Clone)]
pub struct Index {
    bytes: Vec<u8>,
}

impl Index {
    /// That of some chunks, of which each may be there several times. With `whole`, the data is this disk image, byte
    /// by byte.
    pub fn new(whole: Option<Hash>, mut chunks: Vec<(Hash, Place)>) -> Index {
        chunks.sort_unstable_by_key(|(hash, place)| (*hash, place.at));
        chunks.dedup_by_key(|(hash, _)| *hash);
        let mut bytes = Vec::with_capacity(HEADER + chunks.len() * RECORD + TRAILER);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&whole.unwrap_or(Hash::ZEROES).0);
        for (hash, place) in chunks {
            let packed = if place.packed { PACKED } else { 0 };
            bytes.extend_from_slice(&hash.0);
            bytes.extend_from_slice(&place.at.to_le_bytes());
            bytes.extend_from_slice(&(place.len | packed).to_le_bytes());
        }
        let sum = Hash::of(&bytes);
        bytes.extend_from_slice(&sum.0);
        Index { bytes }
    }

    /// That in a file's bytes.
    ///
    /// # Errors
    /// If they are none, in words.
    pub fn read(bytes: Vec<u8>) -> Result<Index, &'static str> {
        let Some((before, sum)) = bytes.split_last_chunk::<TRAILER>() else {
            return Err("it is too short");
        };
        if Hash::of(before).0 != *sum {
            return Err("its checksum is another");
        }
        if !before.starts_with(&MAGIC) || before.len() < HEADER {
            return Err("it does not begin as an index does");
        }
        let index = Index { bytes };
        let records = index.bytes.len() - HEADER - TRAILER;
        if !records.is_multiple_of(RECORD) {
            return Err("it has a length that no index has");
        }
        let mut last = None;
        for (hash, place) in index.chunks() {
            if last >= Some(hash) {
                return Err("its chunks are not in order");
            }
            last = Some(hash);
            let end = place.at.checked_add(place.len.into());
            if place.len == 0 || place.len as usize > LARGEST || end.is_none() {
                return Err("it has a chunk at an impossible place");
            }
        }
        Ok(index)
    }

    /// As a file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The disk image that the data is as a whole.
    pub fn whole(&self) -> Option<Hash> {
        let mut digest = [0; 32];
        digest.copy_from_slice(&self.bytes[MAGIC.len()..HEADER]);
        Some(Hash(digest)).filter(|digest| *digest != Hash::ZEROES)
    }

    fn records(&self) -> &[[u8; RECORD]] {
        let records = &self.bytes[HEADER..self.bytes.len() - TRAILER];
        records.as_chunks().0
    }

    /// All chunks, in the order of their names.
    pub fn chunks(&self) -> impl Iterator<Item = (Hash, Place)> {
        self.records().iter().map(chunk)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.records().len()
    }

    /// Where a chunk is.
    pub fn find(&self, hash: Hash) -> Option<Place> {
        let records = self.records();
        let found = records.binary_search_by(|record| record[..32].cmp(&hash.0));
        let record = records.get(found.ok()?)?;
        Some(chunk(record).1)
    }
}

fn chunk(record: &[u8; RECORD]) -> (Hash, Place) {
    let (mut hash, mut at, mut len) = ([0; 32], [0; 8], [0; 4]);
    hash.copy_from_slice(&record[..32]);
    at.copy_from_slice(&record[32..40]);
    len.copy_from_slice(&record[40..]);
    let len = u32::from_le_bytes(len);
    let place = Place {
        at: u64::from_le_bytes(at),
        len: len & !PACKED,
        packed: len & PACKED != 0,
    };
    (Hash(hash), place)
}

/// What of `len` bytes of data is between chunks, in whole blocks, by start and length.
pub fn holes(chunks: &[(Hash, Place)], len: u64) -> Vec<(u64, u64)> {
    let mut taken: Vec<(u64, u64)> = chunks
        .iter()
        .map(|(_, place)| (place.at, place.at + u64::from(place.len)))
        .collect();
    taken.sort_unstable();
    taken.push((len, len));
    let (mut holes, mut end) = (Vec::new(), 0_u64);
    for (from, to) in taken {
        let first = end.next_multiple_of(BLOCK);
        let last = match from == len {
            true => from,
            false => from / BLOCK * BLOCK,
        };
        if first < last {
            holes.push((first, last - first));
        }
        end = end.max(to);
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(count: u64) -> Vec<(Hash, Place)> {
        let one = |n: u64| {
            let place = Place {
                at: n * 10,
                len: 1 + n as u32,
                packed: n.is_multiple_of(2),
            };
            (Hash::of(&n.to_le_bytes()), place)
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn what_is_in_an_index_is_found_and_nothing_else() {
        let digest = Hash::of(b"a disk");
        let mut chunks = some(300);
        chunks.extend(some(3));
        let index = Index::new(Some(digest), chunks);
        let index = Index::read(index.bytes().to_vec()).expect("an index");
        assert_eq!((index.count(), index.whole()), (300, Some(digest)));
        for (hash, place) in some(300) {
            assert_eq!(index.find(hash), Some(place));
        }
        assert_eq!(index.find(Hash::of(b"another")), None);
        assert_eq!(Index::new(None, Vec::new()).whole(), None);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        let good = Index::new(None, some(5)).bytes;
        for cut in 0..good.len() {
            assert!(Index::read(good[..cut].to_vec()).is_err(), "{cut}");
            let mut bad = good.clone();
            bad[cut] ^= 1;
            assert!(Index::read(bad).is_err(), "{cut}");
        }
        // With a checksum that is right, but chunks that cannot be.
        let sealed = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.len() - TRAILER);
            let sum = Hash::of(&bytes);
            bytes.extend_from_slice(&sum.0);
            Index::read(bytes)
        };
        assert!(sealed(good.clone()).is_ok());
        for (at, byte) in [(HEADER, 0xff), (HEADER + 43, 0x7f), (0, 0)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(sealed(bad).is_err(), "{at}");
        }
    }
}
