//! Putting an image on other layers without changing what it reads as.

use super::{PIECE, extent, is_zero, zeroes};
use crate::Result;
use crate::chain::live::Progress;
use crate::chain::{Layer, Stack, read};
use crate::io::{Buffer, Port};

/// Copies into `top` what it shows of the layers `old` and would not show of the layers `new`, and
/// makes that durable. Afterwards it reads the same on either; its header is still to be changed.
pub async fn rebase(
    port: &Port,
    top: &Layer,
    old: &[Layer],
    new: &[Layer],
    progress: &Progress,
) -> Result<()> {
    let mut layers = vec![top.clone()];
    layers.extend_from_slice(old);
    let disk = Stack::new(layers);
    // A zero is only written where something below would show.
    let mut layers = vec![top.clone()];
    layers.extend_from_slice(new);
    let later = Stack::new(layers);
    let unit = match top {
        Layer::Qcow2(image) => image.geometry().unit(),
        Layer::Raw(_) => 4096,
    };
    // The disk stays what it is: nothing is to be marked.
    let trackers = disk.load_bitmaps(port).await?;
    let alone = std::slice::from_ref(top);
    let buffers = [Buffer::new(PIECE as usize), Buffer::new(PIECE as usize)];
    let size = disk.size();
    progress.expect(size);
    let mut at = 0;
    while at < size {
        let mut len = size - at;
        let own = extent(port, alone, at, len).await?;
        len = own.len;
        if !own.present {
            let before = extent(port, old, at, len).await?;
            let after = extent(port, new, at, len.min(before.len)).await?;
            let zero = before.zero && after.zero;
            // What differs in kind often is read in large pieces all the same.
            len = match zero {
                true => after.len,
                false => len.min(PIECE - at % PIECE),
            };
            if !zero {
                let [was, is] = [&buffers[0], &buffers[1]].map(|b| b.part(0, len as usize));
                read(port, old, at, &was).await?;
                read(port, new, at, &is).await?;
                keep(port, [&disk, &later], at, len as usize, unit, &buffers).await?;
            }
        }
        at += len;
        progress.step(len)?;
    }
    disk.flush(port).await?;
    disk.store_bitmaps(port, &trackers).await
}

/// Writes the blocks of the first buffer that differ from the second's: data as the disk is with the
/// old layers, which fill up the rest of a cluster, and zeroes as it will be with the new ones.
async fn keep(
    port: &Port,
    [disk, later]: [&Stack; 2],
    at: u64,
    len: usize,
    unit: u64,
    buffers: &[Buffer; 2],
) -> Result<()> {
    let differences: Vec<u8> = {
        let [was, is] = [&buffers[0], &buffers[1]].map(|b| &b.bytes()[..len]);
        if was == is {
            return Ok(());
        }
        was.iter().zip(is).map(|(a, b)| a ^ b).collect()
    };
    let mut runs = Vec::new();
    zeroes::runs(&differences, at, unit, |start, len, same| {
        if !same {
            runs.push((start, len));
        }
    });
    for (start, len) in runs {
        let from = (start - at) as usize;
        if is_zero(&buffers[0].bytes()[from..from + len as usize]) {
            later.zero(port, start, len, false).await?;
        } else {
            let part = buffers[0].part(from, len as usize);
            disk.write(port, start, &part).await?;
        }
    }
    Ok(())
}
