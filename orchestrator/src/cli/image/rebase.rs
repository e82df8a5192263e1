//! `skerry image rebase`.

use clap::Args;
use skerry_images::chain::{Format, Layer, LayerSpec, Stack};
use skerry_images::io::{FileOptions, Port, block_on};
use skerry_images::ops;

use super::layers::{CACHE, Source, hint, layer};
use super::options::name_for;
use super::progress::Bar;
use super::{Failure, Outcome};

/// Put an image on other layers. It reads the same afterwards: what differs is copied into it.
#[derive(Debug, Args)]
pub struct Rebase {
    #[command(flatten)]
    source: Source,

    /// A new layer below FILE, the upper one first, repeatable; "" for none
    #[arg(short = 'b', long, value_name = "LAYER", required = true)]
    new_backing: Vec<String>,

    /// Change only the name in the header: the new layers hold the same as the old
    #[arg(short, long)]
    unsafe_rename: bool,

    #[command(flatten)]
    bar: Bar,
}

impl Rebase {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let new = self.new_layers()?;
        if self.source.format == Format::Raw {
            return Err(Failure::Asked(format!(
                "{} is raw, and a raw image lies on nothing: convert it to qcow2 first",
                self.source.file.display()
            )));
        }
        let port = Port::new();
        self.bar.watch("Rebasing", |progress| {
            block_on(&port, async {
                let top = if self.unsafe_rename {
                    self.source.open_alone(&port, false, false).await?
                } else {
                    let disk = self.source.open_writable(&port).await?;
                    let below = self.open_new(&port, &new).await?;
                    let [top, old @ ..] = disk.layers() else {
                        return Ok(0);
                    };
                    ops::rebase(&port, top, old, &below, progress).await?;
                    top.clone()
                };
                let Layer::Qcow2(image) = top else {
                    return Ok(0);
                };
                let name = match new.first() {
                    Some(layer) => Some((
                        name_for(&self.source.file, &layer.path)?,
                        layer.format.name().to_owned(),
                    )),
                    None => None,
                };
                image.set_backing_name(&port, name).await?;
                image.close(&port).await?;
                Ok(0)
            })
        })
    }

    fn new_layers(&self) -> Result<Vec<LayerSpec>, Failure> {
        match self.new_backing.as_slice() {
            [none] if none.is_empty() => Ok(Vec::new()),
            layers => layers
                .iter()
                .map(|l| layer(l).map_err(|e| Failure::Asked(format!("-b {l:?}: {e}"))))
                .collect(),
        }
    }

    async fn open_new(&self, port: &Port, new: &[LayerSpec]) -> Result<Vec<Layer>, Failure> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let readonly = FileOptions {
            readonly: true,
            ..FileOptions::default()
        };
        let stack = Stack::open(port, new, &readonly, CACHE)
            .await
            .map_err(hint)?;
        Ok(stack.layers().to_vec())
    }
}
