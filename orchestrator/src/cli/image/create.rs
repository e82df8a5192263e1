//! `skerry image create`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use skerry_images::chain::{Format, LayerSpec};
use skerry_images::io::{Buffer, FileOptions, ImageFile, Port, block_on};
use skerry_images::qcow2::{Preallocation, create, read_header};

use super::layers::{format, layer};
use super::options::{self, Options};
use super::scratch::Scratch;
use super::{Failure, Outcome, bytes};

/// Make a new image.
#[derive(Debug, Args)]
pub struct Create {
    /// Format: qcow2 or raw
    #[arg(short, long, value_name = "FORMAT", default_value = "qcow2", value_parser = format)]
    format: Format,

    /// What it is to be
    #[arg(short, value_name = "NAME=VALUE,…", help = options::HELP, value_parser = options::parse)]
    options: Vec<Options>,

    /// The layer below: raw:PATH, qcow2:PATH or PATH (qcow2); the upper one first, repeatable
    #[arg(long, value_name = "LAYER", value_parser = layer)]
    backing: Vec<LayerSpec>,

    /// Replace the file if it exists
    #[arg(long)]
    force: bool,

    /// Say nothing
    #[arg(short, long)]
    quiet: bool,

    /// The new image
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Size of the guest's disk, with k, M, G or T if you like [default: that of the layer below]
    #[arg(value_name = "SIZE", value_parser = bytes::parse)]
    size: Option<u64>,
}

impl Create {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let port = Port::new();
        block_on(&port, self.create(&port))
    }

    async fn create(&self, port: &Port) -> Outcome {
        let options = Options::merged(&self.options);
        let below = self.backing.first();
        let size = match (self.size, below) {
            (Some(size), _) => size,
            (None, Some(layer)) => layer_size(port, layer).await?,
            (None, None) => {
                return Err(Failure::Asked(format!(
                    "how large is {} to be? Give its size, or a layer below it (--backing)",
                    self.file.display()
                )));
            }
        };
        let mut scratch = Scratch::new();
        make(
            port,
            &mut scratch,
            &self.file,
            self.format,
            size,
            below,
            &options,
            self.force,
        )
        .await?;
        scratch.keep()?;
        if !self.quiet {
            let on = below.map_or(String::new(), |b| format!(" on {}", b.path.display()));
            println!(
                "Made {}: {}, {} ({size} bytes){on}",
                self.file.display(),
                self.format.name(),
                bytes::show(size)
            );
        }
        Ok(0)
    }
}

/// The size of the disk that a layer holds.
async fn layer_size(port: &Port, layer: &LayerSpec) -> Result<u64, Failure> {
    let readonly = FileOptions {
        readonly: true,
        ..FileOptions::default()
    };
    let file = ImageFile::open(&layer.path, &readonly)?;
    match layer.format {
        Format::Raw => Ok(file.end().next_multiple_of(512)),
        Format::Qcow2 => Ok(read_header(port, &file).await?.size),
    }
}

/// Makes an image; its file, and its external data file.
#[expect(
    clippy::too_many_arguments,
    reason = "what create and convert were told, passed once"
)]
pub async fn make(
    port: &Port,
    scratch: &mut Scratch,
    path: &std::path::Path,
    format: Format,
    size: u64,
    below: Option<&LayerSpec>,
    options: &Options,
    force: bool,
) -> Result<(Arc<ImageFile>, Option<Arc<ImageFile>>), Failure> {
    if format == Format::Raw {
        options.check_raw()?;
        if below.is_some() {
            return Err(Failure::Asked(
                "a raw image has no layer below it: make it qcow2, or leave --backing out".into(),
            ));
        }
        let file = scratch.file(path, force)?;
        fill_raw(port, &file, size, options.preallocation()).await?;
        return Ok((file, None));
    }
    // Whatever is wrong with the options is said before a file is made.
    let what = options.qcow2(path, size, below.map(|b| (b.path.as_path(), b.format)))?;
    if let Some(below) = below {
        let same = |path: &std::path::Path| std::fs::canonicalize(path).ok();
        if same(path).is_some_and(|p| same(&below.path) == Some(p)) {
            return Err(Failure::Asked(format!(
                "{} cannot lie on itself: choose another name for the new image",
                path.display()
            )));
        }
        // It must be there, whatever it is.
        ImageFile::open(
            &below.path,
            &FileOptions {
                readonly: true,
                unlocked: true,
                ..FileOptions::default()
            },
        )?;
    }
    let file = scratch.file(path, force)?;
    let data = match &options.data_file {
        Some(path) => Some(scratch.file(path, force)?),
        None => None,
    };
    create(port, &file, data.as_ref(), &what).await?;
    Ok((file, data))
}

async fn fill_raw(
    port: &Port,
    file: &Arc<ImageFile>,
    size: u64,
    how: Preallocation,
) -> Result<(), Failure> {
    if file.block_device() {
        if file.end() < size {
            return Err(Failure::Asked(format!(
                "{} has {} bytes, and {size} are asked for",
                file.path().display(),
                file.end()
            )));
        }
        return Ok(());
    }
    port.set_len(file, size).await?;
    match how {
        Preallocation::Off => {}
        Preallocation::Metadata => {
            return Err(Failure::Asked(
                "a raw image has no metadata: give preallocation=falloc or full".into(),
            ));
        }
        Preallocation::Falloc => port.zero(file, 0, size).await?,
        Preallocation::Full => {
            const PIECE: u64 = 2 << 20;
            let zeroes = Buffer::new(PIECE as usize);
            let mut at = 0;
            while at < size {
                let part = zeroes.part(0, (size - at).min(PIECE) as usize);
                let n = part.len();
                port.write(file, at, part).await?;
                at += n;
            }
        }
    }
    Ok(())
}
