//! `skerry image export`.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use skerry_images::chain::{Format, Layer, Stack};
use skerry_images::io::{Buffer, ImageFile, Port, block_on};
use skerry_images::ops::is_zero;
use skerry_images::qcow2::{CreateOptions, Image, OpenOptions, create};
use skerry_images::store::{Content, Kind, Name, STRETCH, Store, StoreError};

use super::layers::{CACHE, format};
use super::progress::Bar;
use super::scratch::Scratch;
use super::store::{StoreFlag, name};
use super::{Failure, Outcome};

/// Write a disk image of the store to a file. Everything that is written was compared with its name.
#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    store: StoreFlag,
    /// Format of FILE: qcow2 or raw
    #[arg(short = 'O', long, value_name = "FORMAT", default_value = "qcow2", value_parser = format)]
    format: Format,
    /// Replace FILE if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    bar: Bar,
    /// The image
    #[arg(value_name = "NAME[:TAG]", value_parser = name)]
    name: Name,
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Export {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        let _use = store.share()?;
        let image = store.image(&self.name)?;
        let Kind::Disk { disk } = &image.manifest.kind else {
            return Err(Failure::Images(StoreError::Kind {
                name: image.name.to_string(),
                is: "an OCI image",
                wanted: "a disk",
            }));
        };
        let mut scratch = Scratch::new();
        let file = scratch.file(&self.file, self.force)?;
        self.bar.watch("Exporting", |progress| match self.format {
            Format::Raw => {
                let plain = file.descriptor(false);
                let plain = plain.ok_or_else(|| Failure::Asked("give a file".into()))?;
                store.write_disk(disk, plain, progress)?;
                let port = Port::new();
                Ok::<_, Failure>(block_on(&port, port.flush(&file))?)
            }
            Format::Qcow2 => {
                progress.expect(disk.size);
                qcow2(&store, disk, &file, progress)
            }
        })?;
        scratch.keep()?;
        Ok(0)
    }
}

/// Writes a disk into a new qcow2 image.
fn qcow2(
    store: &Store,
    disk: &Content,
    file: &Arc<ImageFile>,
    progress: &skerry_images::chain::live::Progress,
) -> Result<(), Failure> {
    let port = Port::new();
    let options = OpenOptions {
        cache: CACHE,
        ..OpenOptions::default()
    };
    let size = disk.size.next_multiple_of(512);
    let image = block_on(&port, async {
        create(&port, file, None, &CreateOptions::new(size)).await?;
        Image::open(&port, file.clone(), None, &options).await
    })?;
    let target = Stack::new(vec![Layer::Qcow2(image)]);
    let mut reader = store.reader(disk)?;
    let mut buffer = Buffer::new(STRETCH as usize);
    let mut at = 0;
    while at < disk.size {
        let len = STRETCH.min(disk.size - at) as usize;
        let read = reader.read_exact(&mut buffer.bytes_mut()[..len]);
        read.map_err(StoreError::Source)?;
        if !is_zero(&buffer.bytes()[..len]) {
            block_on(&port, target.write(&port, at, &buffer.part(0, len)))?;
        }
        progress.step(len as u64)?;
        at += len as u64;
    }
    Ok(block_on(&port, target.close(&port))?)
}
