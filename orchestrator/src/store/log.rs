//! How entries and changes lie in the embedded engine's tables.

use super::{Changed, Entry, LeaseId, Revision};

/// Bytes before a value: created, modified, lease, each a little-endian u64.
const HEAD: usize = 24;
/// What stands for no lease.
const NONE: u64 = 0;

/// An entry's bytes.
pub fn encode_entry(
    value: &[u8],
    created: Revision,
    modified: Revision,
    lease: Option<LeaseId>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + value.len());
    for number in [created.0, modified.0, lease.map_or(NONE, |lease| lease.0)] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(value);
    bytes
}

/// An entry and its lease.
pub fn decode_entry(key: &str, bytes: &[u8]) -> Option<(Entry, Option<LeaseId>)> {
    let (head, value) = bytes.split_at_checked(HEAD)?;
    let number = |at: usize| {
        let word = head.get(at * 8..at * 8 + 8)?;
        Some(u64::from_le_bytes(word.try_into().ok()?))
    };
    let lease = number(2)?;
    let entry = Entry {
        key: key.to_owned(),
        value: value.to_vec(),
        created: Revision(number(0)?),
        modified: Revision(number(1)?),
    };
    Some((entry, (lease != NONE).then_some(LeaseId(lease))))
}

/// A change's bytes: three parts, each with its length before it; a part that is not there has the length
/// `u32::MAX`.
pub fn encode_change(key: &str, value: Option<&[u8]>, before: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in [Some(key.as_bytes()), value, before] {
        let length = part.map_or(u32::MAX, |part| part.len() as u32);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(part.unwrap_or_default());
    }
    bytes
}

/// The change.
pub fn decode_change(revision: Revision, mut bytes: &[u8]) -> Option<Changed> {
    let mut part = || {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length);
        if length == u32::MAX {
            bytes = rest;
            return Some(None);
        }
        let (part, rest) = rest.split_at_checked(length as usize)?;
        bytes = rest;
        Some(Some(part.to_vec()))
    };
    let (key, value, before) = (part()??, part()?, part()?);
    Some(Changed {
        revision,
        key: String::from_utf8(key).ok()?,
        value,
        before,
    })
}

#[cfg(test)]
#[path = "log_test.rs"]
mod tests;
