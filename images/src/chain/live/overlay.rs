//! A new layer on top: from then on, what is below stays as it is.

use std::time::{Duration, Instant};

use crate::Result;
use crate::chain::volume::{add_bitmaps, remove_bitmaps};
use crate::chain::{Layer, Stack, Volume};
use crate::io::Port;

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
    volume.view().stack.flush(port).await?;
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
    remove_bitmaps(port, &old, &volume.view().bitmaps).await?;
    if let Layer::Qcow2(image) = &old {
        image.close(port).await?;
    }
    // Nobody writes it any more, so others may read it.
    old.file().relock(Some(false))?;
    Ok(waited)
}

async fn overlay_flush(port: &Port, overlay: &Layer) -> Result<()> {
    match overlay {
        Layer::Qcow2(image) => image.flush(port).await,
        Layer::Raw(raw) => port.flush(raw.file()).await,
    }
}
