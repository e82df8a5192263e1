//! Partition tables: MBR's four entries, and GPT (UEFI 2.10 §5.2.3 and §5.3). The libraries for GPT make room for as many
//! entries as an image says, so it is read here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Entries of a GPT that are looked at.
const ENTRIES: u64 = 256;
/// What MBR says of a disk with a GPT.
const PROTECTIVE: u8 = 0xee;

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// What the kernel calls it; none if it is the whole disk.
    pub number: Option<u32>,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

/// The partitions of a disk in their order; the disk if it has none.
pub fn partitions(disk: &File) -> io::Result<Vec<Partition>> {
    let size = disk.metadata()?.len();
    let mut sector = [0; SECTOR as usize];
    let whole = Partition {
        number: None,
        start: 0,
        len: size,
    };
    let read = disk.read_exact_at(&mut sector, 0);
    if read.is_err() || sector[510..] != [0x55, 0xaa] {
        return Ok(vec![whole]);
    }
    let within = |number: u32, first: u64, sectors: u64| {
        let start = first.checked_mul(SECTOR)?;
        let len = sectors.checked_mul(SECTOR)?.min(size.checked_sub(start)?);
        let number = Some(number);
        (len > 0).then_some(Partition { number, start, len })
    };
    let (entries, _) = sector[446..510].as_chunks::<16>();
    if entries.iter().any(|entry| entry[4] == PROTECTIVE) {
        return gpt(disk, within);
    }
    let partition = |(number, entry): (u32, &[u8; 16])| {
        let word = |at: usize| number_at(entry, at, 4);
        (entry[4] != 0).then(|| within(number, word(8), word(12)))?
    };
    Ok((1..).zip(entries).filter_map(partition).collect())
}

fn gpt(
    disk: &File,
    within: impl Fn(u32, u64, u64) -> Option<Partition>,
) -> io::Result<Vec<Partition>> {
    let mut header = [0; SECTOR as usize];
    disk.read_exact_at(&mut header, SECTOR)?;
    if header[..8] != *b"EFI PART" {
        return Ok(Vec::new());
    }
    let (table, count) = (number_at(&header, 72, 8), number_at(&header, 80, 4));
    let long = number_at(&header, 84, 4).max(128);
    let mut found = Vec::new();
    for number in 0..count.min(ENTRIES) {
        let at = table.saturating_mul(SECTOR).saturating_add(number * long);
        let mut entry = [0; 128];
        if at > i64::MAX as u64 || disk.read_exact_at(&mut entry, at).is_err() {
            break;
        }
        let (first, last) = (number_at(&entry, 32, 8), number_at(&entry, 40, 8));
        let sectors = last.checked_sub(first).and_then(|n| n.checked_add(1));
        if entry[..16] != [0; 16]
            && let Some(sectors) = sectors
        {
            found.extend(within(number as u32 + 1, first, sectors));
        }
    }
    Ok(found)
}

/// A number of up to 8 bytes, the lowest first; what is not there is 0.
fn number_at(bytes: &[u8], at: usize, len: usize) -> u64 {
    let part = bytes.get(at..at + len).unwrap_or_default();
    part.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
