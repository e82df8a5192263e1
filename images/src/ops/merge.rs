//! Merging a layer into the one below it, while nobody uses either.

use super::{PIECE, extent};
use crate::chain::live::Progress;
use crate::chain::{Layer, Stack};
use crate::io::{Buffer, Port};
use crate::qcow2::Tracker;
use crate::{Error, Result};

/// Copies what the first layer has into the second, which is open for writing, and makes it durable
/// there. The first is left as it is: both chains read the same afterwards.
pub async fn merge(port: &Port, layers: &[Layer], progress: &Progress) -> Result<()> {
    let [top, below @ ..] = layers else {
        return Ok(());
    };
    if below.is_empty() {
        return Err(Error::Invalid {
            path: top.file().path().to_owned(),
            what: "there is no layer below it to merge it into".into(),
        });
    }
    let alone = std::slice::from_ref(top);
    let target = Stack::new(below.to_vec());
    let size = top.size();
    if target.size() < size {
        target.resize(port, size).await?;
    }
    let trackers = target.load_bitmaps(port).await?;
    let mark = |at, len| trackers.iter().for_each(|t: &Tracker| t.mark(at, len));
    progress.expect(size);
    let buffer = Buffer::new(PIECE as usize);
    let mut at = 0;
    while at < size {
        // Stretches of one kind are written at once, wherever they are in the layer's file.
        let first = extent(port, alone, at, size - at).await?;
        let mut len = first.len;
        if first.present && !first.zero {
            let most = (PIECE - at % PIECE).min(size - at);
            while len < most {
                let next = extent(port, alone, at + len, most - len).await?;
                if !next.present || next.zero {
                    break;
                }
                len += next.len;
            }
            len = len.min(most);
            let span = buffer.part(0, len as usize);
            crate::chain::read(port, alone, at, &span).await?;
            mark(at, len);
            target.write(port, at, &span).await?;
        } else if first.present {
            mark(at, len);
            target.zero(port, at, len, true).await?;
        }
        at += len;
        progress.step(len)?;
    }
    target.flush(port).await?;
    target.store_bitmaps(port, &trackers).await
}
