//! Internal snapshots: copies of the L1 table that keep what it refers to.

use super::Image;
use super::header::{be32, be64};
use crate::Result;
use crate::io::{Buffer, Port};

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Offset of its L1 table.
    pub l1_offset: u64,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// When it was made: seconds and nanoseconds since 1970.
    pub date: (u32, u32),
    /// How long the guest had run, in nanoseconds.
    pub clock: u64,
    /// Bytes of the guest's saved memory.
    pub vm_state: u64,
    /// The guest disk's size then.
    pub size: u64,
    /// Extra data behind what is known, as it is.
    pub extra: Vec<u8>,
}

/// The most bytes of a snapshot table.
const MAX_TABLE: u64 = 64 << 20;

/// Reads the list of snapshots, and how many bytes of the file it takes.
pub(super) async fn read_list(image: &Image, port: &Port) -> Result<(Vec<Snapshot>, u64)> {
    let header = image.header();
    if header.snapshots == 0 {
        return Ok((Vec::new(), 0));
    }
    let bad = || image.corrupt("the snapshot table cannot be read");
    let at = header.snapshots_offset;
    let len = image.file().end().saturating_sub(at).min(MAX_TABLE);
    let buffer = Buffer::new(len as usize);
    port.read(image.file(), at, buffer.span()).await?;
    let bytes = buffer.bytes();
    let mut list = Vec::new();
    let mut at = 0usize;
    for _ in 0..header.snapshots {
        let fixed = bytes.get(at..at + 40).ok_or_else(bad)?;
        let (id_len, name_len) = (
            usize::from(u16::from_be_bytes([fixed[12], fixed[13]])),
            usize::from(u16::from_be_bytes([fixed[14], fixed[15]])),
        );
        let extra_len = be32(fixed, 36) as usize;
        let rest = bytes
            .get(
                at + 40
                    ..(at + 40)
                        .saturating_add(extra_len)
                        .saturating_add(id_len + name_len),
            )
            .ok_or_else(bad)?;
        let extra = &rest[..extra_len];
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        list.push(Snapshot {
            id: text(&rest[extra_len..extra_len + id_len]),
            name: text(&rest[extra_len + id_len..]),
            l1_offset: be64(fixed, 0),
            l1_entries: be32(fixed, 8),
            date: (be32(fixed, 16), be32(fixed, 20)),
            clock: be64(fixed, 24),
            vm_state: if extra_len >= 8 {
                be64(extra, 0)
            } else {
                be32(fixed, 32).into()
            },
            size: if extra_len >= 16 {
                be64(extra, 8)
            } else {
                header.size
            },
            extra: extra.get(16..).unwrap_or_default().to_vec(),
        });
        at += (40 + extra_len + id_len + name_len).next_multiple_of(8);
    }
    Ok((list, at as u64))
}
