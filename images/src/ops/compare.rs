//! Comparing what two disks hold.

use super::{Extent, extent, is_zero};
use crate::Result;
use crate::chain::Stack;
use crate::chain::live::Progress;
use crate::io::{Buffer, Port};

/// How two disks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// They have different bytes from this offset on (the start of a sector).
    Content(u64),
    /// One has something there that the other lacks, though both read the same.
    Allocation(u64),
}

/// What is compared at a time.
const PIECE: u64 = 1 << 20;

/// Finds the first difference of two disks. The longer one's rest must read as zeroes. With
/// `strict`, also what is allocated must be the same.
pub async fn compare(
    port: &Port,
    disks: [&Stack; 2],
    strict: bool,
    job: &Progress,
) -> Result<Option<Difference>> {
    let sizes = disks.map(Stack::size);
    let (common, end) = (sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
    let buffers = [Buffer::new(PIECE as usize), Buffer::new(PIECE as usize)];
    job.expect(end);
    let mut at = 0;
    while at < common {
        let mut len = common - at;
        let mut found: [Option<Extent>; 2] = [None; 2];
        for (found, disk) in found.iter_mut().zip(disks) {
            let e = extent(port, disk.layers(), at, len).await?;
            len = len.min(e.len);
            *found = Some(e);
        }
        let [Some(a), Some(b)] = found else { break };
        let kind = |e: Extent| (e.present, e.zero, e.data);
        if strict && kind(a) != kind(b) {
            return Ok(Some(Difference::Allocation(at)));
        }
        if a.zero && b.zero {
            at += len;
            job.step(len)?;
            continue;
        }
        // Kinds may change often: what is read is read in large pieces all the same.
        if !strict {
            len = PIECE.min(common - at);
        }
        let len = len.min(PIECE);
        for (buffer, disk) in buffers.iter().zip(disks) {
            disk.read(port, at, &buffer.part(0, len as usize)).await?;
        }
        let [a, b] = [&buffers[0], &buffers[1]].map(|b| &b.bytes()[..len as usize]);
        if a != b {
            let differs = a.chunks(512).zip(b.chunks(512)).position(|(a, b)| a != b);
            let offset = at + differs.unwrap_or(0) as u64 * 512;
            return Ok(Some(Difference::Content(offset)));
        }
        at += len;
        job.step(len)?;
    }
    let longer = usize::from(sizes[1] > sizes[0]);
    while at < end {
        let found = extent(port, disks[longer].layers(), at, end - at).await?;
        let mut len = found.len;
        if !found.zero {
            len = len.min(PIECE);
            let span = buffers[0].part(0, len as usize);
            disks[longer].read(port, at, &span).await?;
            let bytes = &buffers[0].bytes()[..len as usize];
            if let Some(i) = bytes.chunks(512).position(|b| !is_zero(b)) {
                return Ok(Some(Difference::Content(at + i as u64 * 512)));
            }
        }
        at += len;
        job.step(len)?;
    }
    Ok(None)
}
