//! `skerry image commit`.

use clap::Args;
use skerry_images::chain::{Layer, Stack};
use skerry_images::io::{FileOptions, Port, block_on};
use skerry_images::ops::merge;

use super::layers::{CACHE, Source, hint};
use super::progress::Bar;
use super::{Failure, Outcome};

/// Merge an image into the layer below it (the first --backing), and empty it.
#[derive(Debug, Args)]
pub struct Commit {
    #[command(flatten)]
    source: Source,

    /// Do not empty the image: it is about to be deleted
    #[arg(short = 'd', long)]
    drop: bool,

    #[command(flatten)]
    bar: Bar,

    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
}

impl Commit {
    /// Does it.
    pub fn run(&self) -> Outcome {
        if self.source.backing.is_empty() {
            return Err(Failure::Asked(format!(
                "{}: name the layer to merge it into, and those below that: --backing LAYER",
                self.source.file.display()
            )));
        }
        let port = Port::new();
        self.bar.watch("Merging", |progress| {
            block_on(&port, async {
                let writable = FileOptions::default();
                let below = Stack::open(&port, &self.source.backing, &writable, CACHE).await;
                let below = below.map_err(hint)?;
                let top = self.source.open_alone(&port, self.drop, false).await?;
                let Layer::Qcow2(image) = top.clone() else {
                    return Err(Failure::Asked(format!(
                        "{} is raw, and a raw image lies on nothing",
                        self.source.file.display()
                    )));
                };
                let mut layers = vec![top];
                layers.extend_from_slice(below.layers());
                merge(&port, &layers, progress).await?;
                below.close(&port).await?;
                // Only what is durable below may go here.
                if !self.drop {
                    image.vacate(&port).await?;
                    image.close(&port).await?;
                }
                Ok(())
            })
        })?;
        if !self.quiet {
            println!(
                "Merged {} into {}",
                self.source.file.display(),
                self.source.backing[0].path.display()
            );
        }
        Ok(0)
    }
}
