//! `skerry image convert`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use skerry_images::chain::live::Progress;
use skerry_images::chain::{Format, Layer, LayerSpec, Raw, Stack};
use skerry_images::io::{FileOptions, ImageFile, Kind, Op, Port, block_on_with, carry_out};
use skerry_images::ops::{Convert as Copy, ConvertOptions};
use skerry_images::qcow2::{Image, OpenOptions};

use super::create::make;
use super::layers::{CACHE, Source, format, hint, layer};
use super::options::{self, Options};
use super::progress::Bar;
use super::scratch::Scratch;
use super::{Failure, Outcome, bytes};

/// Threads that copy: reading, packing and writing go on side by side.
const MOST_THREADS: usize = 8;

/// Copy a disk into another image.
#[derive(Debug, Args)]
pub struct Convert {
    #[command(flatten)]
    source: Source,

    /// Format of TARGET
    #[arg(short = 'O', long, value_name = "FORMAT", default_value = "raw", value_parser = format)]
    target_format: Format,

    /// What TARGET is to be
    #[arg(short, value_name = "NAME=VALUE,…", help = options::HELP, value_parser = options::parse)]
    options: Vec<Options>,

    /// Compress
    #[arg(short, long)]
    compress: bool,

    /// A layer below TARGET, which keeps only what differs; the upper one first, repeatable
    #[arg(short = 'B', long, value_name = "LAYER", value_parser = layer)]
    target_backing: Vec<LayerSpec>,

    /// Leave zeroes out where there are so many at least; 0: write them
    #[arg(short = 'S', long, value_name = "SIZE", default_value = "4k", value_parser = bytes::parse)]
    sparse: u64,

    /// TARGET exists: write into it
    #[arg(short = 'n', long)]
    no_create: bool,

    /// Replace TARGET if it exists
    #[arg(long, conflicts_with = "no_create")]
    force: bool,

    /// The external data file of a TARGET that exists
    #[arg(long, value_name = "PATH", requires = "no_create")]
    target_data_file: Option<PathBuf>,

    /// Whether the copy is durable when the command ends [default: writeback with -n, else unsafe]
    #[arg(short = 't', long, value_name = "HOW")]
    cache: Option<Cache>,

    /// Threads that copy [default: one a CPU, at most 8]
    #[arg(short = 'm', long, value_name = "N")]
    threads: Option<usize>,

    #[command(flatten)]
    bar: Bar,

    /// The copy
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

/// When what is written is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// In order, and at the end: a power cut at any moment leaves a sound image.
    Writeback,
    /// When the system gets to it: a copy that a power cut interrupts is made anew.
    Unsafe,
}

impl Convert {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let lasting = match self.cache {
            Some(cache) => cache == Cache::Writeback,
            None => self.no_create,
        };
        let carry = move |op: &Op| match op.kind {
            Kind::Flush if !lasting => 0,
            _ => carry_out(op),
        };
        let port = Port::new();
        let mut scratch = Scratch::new();
        self.bar.watch("Converting", |progress| {
            let opened = block_on_with(&port, self.open(&port, &mut scratch), carry);
            let (source, target, options) = opened?;
            self.copy(&source, &target, options, progress, carry)?;
            block_on_with(&port, target.close(&port), carry)?;
            Ok::<_, Failure>(())
        })?;
        scratch.keep()?;
        Ok(0)
    }

    fn copy(
        &self,
        source: &Stack,
        target: &Stack,
        options: ConvertOptions,
        progress: &Progress,
        carry: impl Fn(&Op) -> i32 + Send + Sync,
    ) -> Result<(), Failure> {
        let copy = Copy::new(source, target, options, progress)?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.unwrap_or(cpus.min(MOST_THREADS)).max(1);
        let work = || {
            let port = Port::new();
            block_on_with(&port, copy.work(&port), &carry)
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut result = work();
            for other in others {
                // A thread that panicked ended the process: panics abort.
                if let Ok(ended) = other.join() {
                    result = result.and(ended);
                }
            }
            Ok(result?)
        })
    }

    async fn open(
        &self,
        port: &Port,
        scratch: &mut Scratch,
    ) -> Result<(Stack, Stack, ConvertOptions), Failure> {
        let source = self.source.open(port).await?;
        let below = self.open_below(port).await?;
        let options = Options::merged(&self.options);
        let target = if self.no_create {
            self.existing(port).await?
        } else {
            let size = source.size().next_multiple_of(512);
            let below = self.target_backing.first();
            let (file, data) = make(
                port,
                scratch,
                &self.target,
                self.target_format,
                size,
                below,
                &options,
                self.force,
            )
            .await?;
            self.opened(port, file, data).await?
        };
        let fresh = !self.no_create && below.is_empty() && !target.file().block_device();
        // Preallocated clusters read as zeroes, too, unless the device below has old data.
        let shared = shared(&source, &below)?;
        let options = ConvertOptions {
            packed: self.compress,
            sparse: self.sparse,
            zeroed: fresh,
            shared,
            differing: !below.is_empty() && shared.is_none(),
        };
        let mut layers = vec![target];
        layers.extend(below);
        Ok((source, Stack::new(layers), options))
    }

    async fn open_below(&self, port: &Port) -> Result<Vec<Layer>, Failure> {
        if self.target_backing.is_empty() {
            return Ok(Vec::new());
        }
        let readonly = FileOptions {
            readonly: true,
            unlocked: self.source.force_share,
            ..FileOptions::default()
        };
        let stack = Stack::open(port, &self.target_backing, &readonly, CACHE).await;
        Ok(stack.map_err(hint)?.layers().to_vec())
    }

    async fn existing(&self, port: &Port) -> Result<Layer, Failure> {
        let options = FileOptions::default();
        let file = ImageFile::open(&self.target, &options)?;
        let data = match &self.target_data_file {
            Some(path) => Some(ImageFile::open(path, &options)?),
            None => None,
        };
        self.opened(port, file, data).await
    }

    async fn opened(
        &self,
        port: &Port,
        file: std::sync::Arc<ImageFile>,
        data: Option<std::sync::Arc<ImageFile>>,
    ) -> Result<Layer, Failure> {
        match self.target_format {
            Format::Raw => Ok(Layer::Raw(std::sync::Arc::new(Raw::new(file)))),
            Format::Qcow2 => {
                let options = OpenOptions {
                    cache: CACHE,
                    ..OpenOptions::default()
                };
                let image = Image::open(port, file, data, &options).await;
                let image = image.map_err(hint)?;
                if let Some(name) = image
                    .header()
                    .backing
                    .filter(|_| self.target_backing.is_empty())
                {
                    return Err(Failure::Asked(format!(
                        "{} lies on another image, which it calls \u{201c}{}\u{201d}: give that with -B, so that what is zeroes there is written",
                        self.target.display(),
                        name.escape_debug()
                    )));
                }
                Ok(Layer::Qcow2(image))
            }
        }
    }
}

/// The source's layer from which on the target's lower layers are the same files.
fn shared(source: &Stack, below: &[Layer]) -> Result<Option<usize>, Failure> {
    let identities = |layers: &[Layer]| {
        let each = layers.iter().map(|l| l.file().identity());
        each.collect::<Result<Vec<_>, _>>()
    };
    let (have, want) = (identities(source.layers())?, identities(below)?);
    let same = !want.is_empty() && have.ends_with(&want) && have.len() > want.len();
    Ok(same.then(|| have.len() - want.len()))
}
