//! Images on the command line: a file, its format, and what lies below it.

use std::path::PathBuf;

use clap::Args;
use skerry_images::chain::{Format, Layer, LayerSpec, Stack};
use skerry_images::io::{FileOptions, Port};
use skerry_images::qcow2::OpenOptions;

use super::Failure;

/// Bytes of tables in memory: those of half a TiB of clusters of 64 KiB.
pub const CACHE: u64 = 64 << 20;

/// A format by its name.
pub fn format(text: &str) -> Result<Format, String> {
    Format::from_name(text).ok_or_else(|| format!("{text:?} is no format: give qcow2 or raw"))
}

/// A layer: `[raw:|qcow2:]PATH[,data_file=PATH]`.
pub fn layer(text: &str) -> Result<LayerSpec, String> {
    let (layer, data) = match text.rsplit_once(",data_file=") {
        Some((layer, data)) => (layer, Some(data)),
        None => (text, None),
    };
    let spec = LayerSpec::parse(layer);
    if spec.path.as_os_str().is_empty() || data == Some("") {
        return Err("give raw:PATH, qcow2:PATH or PATH".into());
    }
    Ok(LayerSpec {
        data_file: data.map(PathBuf::from),
        ..spec
    })
}

/// An image that exists.
#[derive(Debug, Clone, Args)]
pub struct Source {
    /// Format of FILE: qcow2 or raw
    #[arg(short, long, value_name = "FORMAT", default_value = "qcow2", value_parser = format)]
    pub format: Format,

    /// A layer below FILE: raw:PATH, qcow2:PATH or PATH (qcow2), the upper one first; repeatable
    #[arg(long, value_name = "LAYER", value_parser = layer)]
    pub backing: Vec<LayerSpec>,

    /// The external data file of FILE
    #[arg(long, value_name = "PATH")]
    pub data_file: Option<PathBuf>,

    /// Read the image even if another process writes it; what is read may be inconsistent
    #[arg(short = 'U', long)]
    pub force_share: bool,

    /// The image
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

impl Source {
    /// The image itself.
    pub fn spec(&self) -> LayerSpec {
        LayerSpec {
            format: self.format,
            path: self.file.clone(),
            data_file: self.data_file.clone(),
        }
    }

    /// The image and all that is below it.
    pub fn specs(&self) -> Vec<LayerSpec> {
        let mut specs = vec![self.spec()];
        specs.extend(self.backing.iter().cloned());
        specs
    }

    /// How to open its file.
    pub fn file_options_for(&self, readonly: bool, direct: bool) -> FileOptions {
        FileOptions {
            readonly,
            direct,
            // Who writes without a lock ruins what somebody else is writing.
            unlocked: self.force_share && readonly,
        }
    }

    fn file_options(&self, readonly: bool) -> FileOptions {
        self.file_options_for(readonly, false)
    }

    /// Opens the whole disk so.
    pub async fn open_with(&self, port: &Port, options: &FileOptions) -> Result<Stack, Failure> {
        let stack = Stack::open(port, &self.specs(), options, CACHE).await;
        stack.map_err(hint)
    }

    /// Opens the whole disk for reading.
    pub async fn open(&self, port: &Port) -> Result<Stack, Failure> {
        self.open_with(port, &self.file_options(true)).await
    }

    /// Opens the whole disk, the image for writing.
    pub async fn open_writable(&self, port: &Port) -> Result<Stack, Failure> {
        self.open_with(port, &self.file_options(false)).await
    }

    /// Opens only the image, whatever it lies on.
    pub async fn open_alone(
        &self,
        port: &Port,
        readonly: bool,
        for_check: bool,
    ) -> Result<Layer, Failure> {
        let options = OpenOptions {
            readonly,
            cache: CACHE,
            for_check,
        };
        let layer = self
            .spec()
            .open_with(port, &self.file_options(readonly), &options)
            .await;
        layer.map_err(hint)
    }
}

/// Adds how the command line says what an image lacks.
pub fn hint(error: skerry_images::Error) -> Failure {
    use skerry_images::Error::Invalid;
    match &error {
        Invalid { what, .. } if what.starts_with("it lies on another image") => Failure::Asked(
            format!("{error} (--backing raw:PATH or --backing qcow2:PATH)"),
        ),
        Invalid { what, .. } if what.starts_with("its data is in another file") => {
            Failure::Asked(format!("{error} (here: --data-file PATH)"))
        }
        _ => error.into(),
    }
}
