//! What a driver asks of a disk (virtio 1.3 §5.2.6).

use super::{ID_LEN, MAX_SEGMENT_SECTORS, MAX_SEGMENTS, SECTOR};
use crate::virtio::chain::Chain;

/// The byte that ends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// What requests are checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of the disk.
    pub size: u64,
    /// Writes are refused.
    pub readonly: bool,
    /// What offsets and lengths are multiples of.
    pub block_size: u32,
}

/// A byte range of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub len: u64,
    /// For write-zeroes: the blocks may be freed.
    pub unmap: bool,
}

/// A request, its numbers checked against the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
    },
    Flush,
    Id,
    /// The extents are in the slot's list.
    Discard,
    WriteZeroes,
}

impl Request {
    /// Bytes that go over to the guest or come from it.
    pub fn bytes(&self) -> u64 {
        match self {
            Request::Read { len, .. } | Request::Write { len, .. } => *len,
            _ => 0,
        }
    }
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Reads the header, leaving only data in `chain`, and the extents of a discard or write-zeroes.
pub(super) fn parse(
    chain: &mut Chain,
    disk: &Limits,
    extents: &mut Vec<Extent>,
) -> Result<Request, Status> {
    let mut header = [0; 16];
    if !chain.take_front(&mut header) {
        return Err(Status::IoErr);
    }
    let (kind, sector) = (le32(&header[0..4]), le64(&header[8..16]));
    let writes = matches!(kind, OUT | DISCARD | WRITE_ZEROES);
    if writes && disk.readonly {
        return Err(Status::IoErr);
    }
    match kind {
        IN => extent(disk, sector, chain.writable_len())
            .map(|(offset, len)| Request::Read { offset, len }),
        OUT => extent(disk, sector, chain.readable_len())
            .map(|(offset, len)| Request::Write { offset, len }),
        FLUSH => Ok(Request::Flush),
        GET_ID if chain.writable_len() >= ID_LEN as u64 => Ok(Request::Id),
        GET_ID => Err(Status::IoErr),
        DISCARD | WRITE_ZEROES => {
            read_extents(chain, disk, kind == WRITE_ZEROES, extents)?;
            Ok(if kind == DISCARD {
                Request::Discard
            } else {
                Request::WriteZeroes
            })
        }
        _ => Err(Status::Unsupported),
    }
}

/// Where on the disk `len` bytes from `sector` are, in bytes.
fn extent(disk: &Limits, sector: u64, len: u64) -> Result<(u64, u64), Status> {
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoErr)?;
    let end = offset.checked_add(len).ok_or(Status::IoErr)?;
    let block = u64::from(disk.block_size);
    if len == 0 || end > disk.size || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(Status::IoErr);
    }
    Ok((offset, len))
}

/// struct virtio_blk_discard_write_zeroes, one after the other.
fn read_extents(
    chain: &mut Chain,
    disk: &Limits,
    zeroes: bool,
    extents: &mut Vec<Extent>,
) -> Result<(), Status> {
    const SEGMENT: u64 = 16;
    let n = chain.readable_len() / SEGMENT;
    if n == 0 || n > MAX_SEGMENTS.into() || !chain.readable_len().is_multiple_of(SEGMENT) {
        return Err(Status::IoErr);
    }
    extents.clear();
    for _ in 0..n {
        let mut raw = [0; SEGMENT as usize];
        chain.take_front(&mut raw);
        let (sector, sectors, flags) = (le64(&raw[0..8]), le32(&raw[8..12]), le32(&raw[12..16]));
        // Bit 0 is unmap, for write-zeroes only; the rest is reserved (virtio 1.3 §5.2.6.2).
        if flags & !u32::from(zeroes) != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_SEGMENT_SECTORS {
            return Err(Status::IoErr);
        }
        let (offset, len) = extent(disk, sector, u64::from(sectors) * SECTOR)?;
        extents.push(Extent {
            offset,
            len,
            unmap: flags & 1 != 0,
        });
    }
    Ok(())
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
