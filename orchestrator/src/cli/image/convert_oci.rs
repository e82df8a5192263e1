//! `skerry image convert-oci`.

use std::path::Path;

use arcbox_ext4::{FormatOptions, Formatter};
use clap::Args;
use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::{FileOptions, Port, block_on};
use skerry_images::store::{Kind, Name, Origin, StoreError};

use super::import::{remove, scratch, tell};
use super::layers::CACHE;
use super::output::Output;
use super::progress::Bar;
use super::store::{StoreFlag, name};
use super::{Failure, Outcome, bytes};
use crate::runtime::container::Layout;

/// The largest file system that is made: what its block addresses reach.
const LARGEST: u64 = 16 << 40;

/// Make a disk image of an OCI image of the store: its files, in an ext4 file system.
///
/// A VM that boots a kernel can have it as its root (root=/dev/vda rw init=…). Device nodes, file capabilities and other
/// extended attributes are left out, and there is no journal.
#[derive(Debug, Args)]
pub struct ConvertOci {
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    bar: Bar,
    /// The disk image's name in the store
    #[arg(long, value_name = "NAME[:TAG]", value_parser = name)]
    name: Name,
    /// The file system's size, which is larger if its files need more
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = bytes::parse)]
    size: u64,
    /// The OCI image
    #[arg(value_name = "IMAGE[:TAG]", value_parser = name)]
    image: Name,
}

impl ConvertOci {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let size = self.size.next_multiple_of(4096);
        if !(1 << 20..=LARGEST).contains(&size) {
            return Err(Failure::Asked("--size is 1M to 16T".into()));
        }
        let store = self.store.open()?;
        let _use = store.share()?;
        let image = store.image(&self.image)?;
        if !matches!(image.manifest.kind, Kind::Oci { .. }) {
            return Err(Failure::Images(StoreError::Kind {
                name: image.name.to_string(),
                is: "a disk",
                wanted: "an OCI image",
            }));
        }
        let origin = Origin {
            source: format!("the OCI image {} ({})", image.name, image.named.digest),
            ..Origin::default()
        };
        let folder = scratch(&store, &format!("disk {} of {}", self.name, self.image))?;
        let file = folder.join("root.ext4");
        let made = self.bar.watch("Converting", |_| {
            let layout = Layout::Stored(Box::new((store.clone(), image.manifest)));
            fill(&layout, &file, size)?;
            let options = FileOptions {
                readonly: true,
                ..FileOptions::default()
            };
            let (port, spec) = (Port::new(), LayerSpec::new(Format::Raw, &file));
            Ok::<_, Failure>(block_on(
                &port,
                Stack::open(&port, &[spec], &options, CACHE),
            )?)
        });
        let kept = made.and_then(|disk| {
            self.bar.watch("Importing", |progress| {
                Ok(store.import_disk(&self.name, &disk, origin, progress)?)
            })
        });
        remove(&folder)?;
        tell(&self.output, &self.name, &kept?)
    }
}

/// Makes a file system of all layers, the lowest first.
fn fill(layout: &Layout, path: &Path, size: u64) -> Result<(), Failure> {
    let failed = |e: arcbox_ext4::error::FormatError| {
        Failure::Asked(format!(
            "the image's files cannot be put into a file system: {e}"
        ))
    };
    let mut system = Formatter::with_options(path, FormatOptions::new(size)).map_err(failed)?;
    for layer in &layout.contents(None)?.layers {
        system.unpack_tar(layout.archive(layer)?).map_err(failed)?;
    }
    system.close().map_err(failed)
}
