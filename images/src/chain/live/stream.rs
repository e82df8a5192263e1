//! Layers drawn up into the top, until what lies below is not needed any more.

use super::{PIECE, Progress};
use crate::chain::{Layer, Stack, Volume, find};
use crate::io::{Buffer, Port};
use crate::qcow2::Place;
use crate::{Error, Result};

/// Copies what layers 1 to before `base` have into the top, and drops them. With `base` being the
/// number of layers, the top stands alone afterwards.
pub async fn stream(port: &Port, volume: &Volume, base: usize, progress: &Progress) -> Result<()> {
    let view = volume.view();
    let Layer::Qcow2(top) = view.stack.top().clone() else {
        return Err(Error::Invalid {
            path: view.stack.top().file().path().to_owned(),
            what: "a raw image has no layers below it".into(),
        });
    };
    let layers = view.stack.layers();
    let base = base.min(layers.len());
    let between = layers.get(1..base).unwrap_or_default();
    let kept = &layers[base..];
    let size = volume.size();
    progress.expect(size);
    let buffer = Buffer::new(PIECE as usize);
    let mut at = 0;
    while at < size {
        let run = {
            let _guard = top.guard();
            top.map(port, at, size - at).await?
        };
        let mut n = run.len;
        if run.place == Place::Hole {
            // Pieces end where the top's tables do.
            n = n.min(PIECE - at % PIECE);
            let (which, below) = {
                let _guards: Vec<_> = between.iter().map(Layer::guard).collect();
                find(port, between, at, n).await?
            };
            n = n.min(below.len);
            let part = buffer.part(0, n as usize);
            let hidden = which < between.len() && !kept.is_empty();
            match below.place {
                Place::Data(_) | Place::Compressed(..) => {
                    crate::chain::read(port, between, at, &part).await?;
                    top.populate(port, at, &part, layers).await?;
                }
                // Zeroes, or the end of a shorter layer, hide what is further below.
                Place::Zero | Place::Hole if hidden => {
                    part.zero(0);
                    top.populate(port, at, &part, layers).await?;
                }
                Place::Zero | Place::Hole => {}
            }
        }
        at += n;
        progress.step(n)?;
    }
    top.flush(port).await?;
    let drained = volume.drain().await;
    let top_layer = view.stack.top().clone();
    top.set_backing(port, kept.first()).await?;
    volume.change(&drained, |view| {
        view.on({
            let mut layers = vec![top_layer];
            layers.extend_from_slice(kept);
            Stack::new(layers)
        })
    });
    Ok(())
}
