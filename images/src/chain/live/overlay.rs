//! A new layer on top: from then on, what is below stays as it is.

use std::time::{Duration, Instant};

use super::commit::settle;
use crate::chain::volume::{add_bitmaps, remove_bitmaps};
use crate::chain::{Layer, MAX_LAYERS, Stack, Volume};
use crate::io::Port;
use crate::{Error, Result};

/// Puts `overlay`, an empty image of the disk's size, on top. Everything that was written before is
/// durable below it. Requests wait meanwhile; the answer is how long. On failure the disk goes on as
/// it was.
///
/// `ready` is called when all that can fail has happened, before the first write to the overlay: to
/// give it its final name, say.
pub async fn put_on_top(
    port: &Port,
    volume: &Volume,
    overlay: Layer,
    ready: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    // What can be written now need not be written while requests wait.
    let view = volume.view();
    if view.stack.layers().len() >= MAX_LAYERS {
        return Err(Error::Invalid {
            path: overlay.file().path().to_owned(),
            what: format!(
                "the disk has {MAX_LAYERS} layers, which is the most: merge some of them first"
            ),
        });
    }
    view.stack.flush(port).await?;
    let begun = Instant::now();
    let old = {
        let drained = volume.drain().await;
        let view = volume.view();
        let result = async {
            view.stack.flush(port).await?;
            // The bitmaps go on in the new top.
            add_bitmaps(port, &overlay, &view.bitmaps).await?;
            overlay_flush(port, &overlay).await?;
            ready()
        };
        result.await?;
        let mut layers = vec![overlay];
        layers.extend_from_slice(view.stack.layers());
        volume.exchange(&drained, view.on(Stack::new(layers)));
        view.stack.top().clone()
    };
    let waited = begun.elapsed();
    // The overlay is in place and may have been written: nothing from here on undoes that.
    let tidied = async {
        remove_bitmaps(port, &old, &volume.view().bitmaps).await?;
        settle(port, &old).await
    };
    if let Err(e) = tidied.await {
        log::warn!(
            "{} is not tidy below its new layer: {e}",
            old.file().path().display()
        );
    }
    Ok(waited)
}

async fn overlay_flush(port: &Port, overlay: &Layer) -> Result<()> {
    match overlay {
        Layer::Qcow2(image) => image.flush(port).await,
        Layer::Raw(raw) => port.flush(raw.file()).await,
    }
}
