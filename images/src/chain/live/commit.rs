//! A layer merged into the one below it.

use std::sync::Arc;

use super::{PIECE, Progress};
use crate::DirtyMap;
use crate::chain::volume::add_bitmaps;
use crate::chain::{Layer, Stack, Volume};
use crate::io::{Buffer, Port};
use crate::qcow2::{Place, Tracker};
use crate::{Error, Result};

/// Granules by which writes are followed while the active layer is merged: 64 KiB.
const GRANULARITY_BITS: u32 = 16;
/// When no more than so much is left to copy, requests wait for it.
const LITTLE: u64 = 16 << 20;
/// After so many rounds requests wait, however much is left.
const ROUNDS: u32 = 12;

/// Merges layer `index`, which is not the top, into the one below it. `below` is that layer opened
/// for writing, and `above`, the one over it, too (it learns what lies below it now).
pub async fn commit(
    port: &Port,
    volume: &Volume,
    index: usize,
    above: Layer,
    below: Layer,
    progress: &Progress,
) -> Result<()> {
    let layer = install(volume, index, Some(above), below).await?;
    let installed = volume.view();
    let merged = merge(port, volume, index, &layer, progress).await;
    // Well or not: these are read only from here on.
    let layers = installed.stack.layers();
    tidy(port, &layers[index + 1]).await;
    if index > 1 {
        tidy(port, &layers[index - 1]).await;
    }
    merged
}

async fn merge(
    port: &Port,
    volume: &Volume,
    index: usize,
    layer: &Layer,
    progress: &Progress,
) -> Result<()> {
    let view = volume.view();
    let target = Stack::new(view.stack.layers()[index + 1..].to_vec());
    progress.expect(layer.size());
    grow(port, &target, layer.size()).await?;
    copy(port, layer, &target, 0, layer.size(), Some(progress)).await?;
    // Behind the end of a shorter layer nothing showed.
    if layer.size() < target.size() {
        let rest = target.size() - layer.size();
        target.zero(port, layer.size(), rest, true).await?;
    }
    target.flush(port).await?;
    // Both chains read the same from here on, so the name can change before the layer goes.
    if let Layer::Qcow2(image) = &view.stack.layers()[index - 1] {
        image.set_backing(port, Some(target.top())).await?;
    }
    let drained = volume.drain().await;
    volume.change(&drained, |view| view.on(view.stack.without(index)));
    Ok(())
}

/// Merges the top layer into the one below it, which becomes the top. `below` is that layer opened
/// for writing.
pub async fn commit_active(
    port: &Port,
    volume: &Volume,
    below: Layer,
    progress: &Progress,
) -> Result<()> {
    let layer = install(volume, 0, None, below).await?;
    let size = volume.size();
    let dirty = Arc::new(DirtyMap::new(size, GRANULARITY_BITS));
    {
        let drained = volume.drain().await;
        volume.change(&drained, |view| view.tracked(dirty.clone()));
    }
    let merged = merge_active(port, volume, &layer, &dirty, progress).await;
    if merged.is_err() {
        let drained = volume.drain().await;
        volume.change(&drained, |view| view.untracked(&dirty));
        drop(drained);
        let view = volume.view();
        let below = &view.stack.layers()[1];
        if let Layer::Qcow2(image) = below {
            // Those that were added for it, perhaps.
            for bitmap in &view.bitmaps {
                let _ = image.bitmap_remove(port, &bitmap.name()).await;
            }
        }
        tidy(port, below).await;
    }
    merged
}

async fn merge_active(
    port: &Port,
    volume: &Volume,
    layer: &Layer,
    dirty: &Arc<DirtyMap>,
    progress: &Progress,
) -> Result<()> {
    let Layer::Qcow2(top) = layer else {
        return Err(Error::Invalid {
            path: layer.file().path().to_owned(),
            what: "a raw image has no layer below it to be merged into".into(),
        });
    };
    let view = volume.view();
    let target = Stack::new(view.stack.layers()[1..].to_vec());
    if let Layer::Qcow2(below) = target.top() {
        let there = below.bitmaps(port).await?;
        let taken = |b: &&Tracker| there.iter().any(|t| t.name == b.name());
        if let Some(bitmap) = view.bitmaps.iter().find(taken) {
            return Err(Error::Invalid {
                path: below.file().path().to_owned(),
                what: format!(
                    "it has a bitmap called {:?}, as the layer that is merged into it: remove one of them",
                    bitmap.name()
                ),
            });
        }
    }
    let size = volume.size();
    progress.expect(size);
    grow(port, &target, size).await?;
    copy(port, layer, &target, 0, size, Some(progress)).await?;
    for _ in 0..ROUNDS {
        if dirty.dirty() <= LITTLE {
            break;
        }
        copy_dirty(port, layer, &target, dirty, Some(progress)).await?;
    }
    target.flush(port).await?;
    let drained = volume.drain().await;
    copy_dirty(port, layer, &target, dirty, None).await?;
    if target.size() != volume.size() {
        target.resize(port, volume.size()).await?;
    }
    target.flush(port).await?;
    progress.step(0)?;
    // The bitmaps go on in the new top.
    add_bitmaps(port, target.top(), &volume.view().bitmaps).await?;
    // Should this process die, whoever starts the guest anew may still give the old chain. It must
    // not hide what is written to the new top from now on.
    top.empty(port).await?;
    volume.change(&drained, |view| {
        view.untracked(dirty)
            .on(Stack::new(view.stack.layers()[1..].to_vec()))
    });
    Ok(())
}

/// Puts layers that are opened for writing in the place of the same ones opened for reading. The
/// layer at `index`.
async fn install(
    volume: &Volume,
    index: usize,
    above: Option<Layer>,
    below: Layer,
) -> Result<Layer> {
    let drained = volume.drain().await;
    let view = volume.view();
    let mut layers = view.stack.layers().to_vec();
    let layer = layers[index].clone();
    layers[index + 1] = below;
    if let Some(above) = above
        && index > 1
    {
        layers[index - 1] = above;
    }
    volume.change(&drained, |view| view.on(Stack::new(layers)));
    Ok(layer)
}

/// A lower layer is read only from here on, by others too.
pub(super) async fn settle(port: &Port, layer: &Layer) -> Result<()> {
    if let Layer::Qcow2(image) = layer {
        image.close(port).await?;
    }
    layer.data_file().relock(Some(false))?;
    layer.file().relock(Some(false)).map(drop)
}

/// Settles a layer when nothing depends on it any more.
async fn tidy(port: &Port, layer: &Layer) {
    if let Err(e) = settle(port, layer).await {
        log::warn!("{} is not tidy: {e}", layer.file().path().display());
    }
}

/// A layer takes at least the size of the one that is merged into it.
async fn grow(port: &Port, target: &Stack, size: u64) -> Result<()> {
    if target.size() < size {
        target.resize(port, size).await?;
    }
    Ok(())
}

/// Copies what `layer` itself has of a range.
pub(super) async fn copy(
    port: &Port,
    layer: &Layer,
    target: &Stack,
    offset: u64,
    len: u64,
    progress: Option<&Progress>,
) -> Result<()> {
    let buffer = Buffer::new(PIECE as usize);
    let alone = std::slice::from_ref(layer);
    let mut at = offset;
    let end = offset + len;
    while at < end {
        let run = {
            let _guard = layer.guard();
            layer.map(port, at, end - at).await?
        };
        let n = match run.place {
            Place::Hole => run.len,
            Place::Zero => {
                target.zero(port, at, run.len, true).await?;
                run.len
            }
            Place::Data(_) | Place::Compressed(..) => {
                let n = run.len.min(PIECE - at % PIECE);
                let part = buffer.part(0, n as usize);
                crate::chain::read(port, alone, at, &part).await?;
                target.write(port, at, &part).await?;
                n
            }
        };
        at += n;
        if let Some(progress) = progress {
            progress.step(n)?;
        }
    }
    Ok(())
}

async fn copy_dirty(
    port: &Port,
    layer: &Layer,
    target: &Stack,
    dirty: &DirtyMap,
    progress: Option<&Progress>,
) -> Result<()> {
    let mut from = 0;
    while let Some(at) = dirty.next(from) {
        dirty.take(at);
        let len = dirty
            .granularity()
            .min(layer.size().min(target.size()).saturating_sub(at));
        copy(port, layer, target, at, len, None).await?;
        if let Some(progress) = progress {
            progress.step(0)?;
        }
        from = at + dirty.granularity();
    }
    Ok(())
}
