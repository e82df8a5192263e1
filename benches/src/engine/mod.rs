//! `skerry-bench engine`: small random requests on images, by the engine that the monitor uses, beside
//! `qemu-img bench` on the same files.

mod load;
mod qemu;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::{Buffer, FileOptions, ImageFile, Port, block_on};
use skerry_images::qcow2::{CreateOptions, DEFAULT_CACHE, create};

use crate::machine::Host;
use crate::report::{Better, Report, ReportArguments};
use crate::stats::Samples;
use load::{Load, Open};

/// `skerry-bench engine`.
#[derive(Args)]
pub struct EngineArguments {
    /// Where the images are made; on a file system like that of real ones
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Times that each is measured, in turns
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Requests a run
    #[arg(long, default_value_t = 60_000)]
    requests: u64,
    /// Bytes of the images, in MiB
    #[arg(long, default_value_t = 256)]
    size: u64,
    #[command(flatten)]
    report: ReportArguments,
    /// Leave `qemu-img bench` out
    #[arg(long)]
    no_qemu: bool,
}

/// Bytes of a request.
const BLOCK: u64 = 4096;

/// Measures and prints.
pub fn run(arguments: &EngineArguments) -> Result<()> {
    let folder = tempfile::tempdir_in(&arguments.directory).context("a folder for images")?;
    let size = arguments.size << 20;
    let mut report = Report::new(
        &arguments.report,
        Host::here([("qemu-img", Path::new("qemu-img"))]),
    );
    let path = |name: &str| folder.path().join(name);
    let (raw, image) = (path("plain.raw"), path("image.qcow2"));
    ImageFile::create(&raw)?;
    std::fs::OpenOptions::new()
        .write(true)
        .open(&raw)?
        .set_len(size)?;
    make(&image, &CreateOptions::new(size))?;
    for (format, path) in [(Format::Raw, &raw), (Format::Qcow2, &image)] {
        fill(&LayerSpec::new(format, path), size)?;
    }
    for write in [false, true] {
        for depth in [1, 32] {
            let load = Load::strided(size, arguments.requests, depth, write);
            let names = [
                "skerry raw",
                "skerry qcow2",
                "qemu qcow2 threads",
                "qemu qcow2 uring",
            ];
            let mut samples: Vec<Samples> = names.into_iter().map(Samples::new).collect();
            // The first round fills caches and doesn't count.
            for round in 0..=arguments.runs {
                for (i, samples) in samples.iter_mut().enumerate() {
                    let rate = match i {
                        0 => Some(rate_of(&[LayerSpec::new(Format::Raw, &raw)], &load)?),
                        1 => Some(rate_of(&[LayerSpec::new(Format::Qcow2, &image)], &load)?),
                        _ if arguments.no_qemu => None,
                        2 => qemu::rate(&image, "threads", &load)?,
                        _ => qemu::rate(&image, "io_uring", &load)?,
                    };
                    if let Some(rate) = rate.filter(|_| round > 0) {
                        samples.add(rate / 1e3);
                    }
                }
            }
            samples.retain(|s| !s.is_empty());
            let verb = if write { "writes" } else { "reads" };
            let name = format!("engine: {verb} of 4 KiB, depth {depth}");
            report.add(&name, "1000 a second", Better::Higher, &samples, Vec::new());
        }
    }
    first_writes(arguments, folder.path(), &mut report)?;
    overlays(arguments, folder.path(), &mut report)?;
    report.finish()
}

/// First writes into an overlay of a 64 GiB image, beside writes where it has something already.
fn first_writes(arguments: &EngineArguments, folder: &Path, report: &mut Report) -> Result<()> {
    const SIZE: u64 = 64 << 30;
    // So much of it is written to: what one disk's caches hold the tables of.
    const SPAN: u64 = 2 << 30;
    let base = folder.join("base.qcow2");
    make(&base, &CreateOptions::new(SIZE))?;
    fill(&LayerSpec::new(Format::Qcow2, &base), 64 << 20)?;
    for depth in [1, 32] {
        let names = ["allocated", "first", "raw, allocated", "raw, first"];
        let mut samples = names.map(Samples::new);
        for round in 0..=arguments.runs {
            let top = folder.join("top.qcow2");
            make(&top, &overlay(SIZE, &base))?;
            let specs = [
                LayerSpec::new(Format::Qcow2, &top),
                LayerSpec::new(Format::Qcow2, &base),
            ];
            // A quarter of its clusters, each written once.
            let load = Load::strided(SPAN, SPAN / (128 << 10), depth, true);
            // What a file system takes for a page where a file has a hole is in both: so a plain
            // file is measured beside it.
            let hole = folder.join("hole.raw");
            std::fs::File::create(&hole)?.set_len(SPAN)?;
            let plain = [LayerSpec::new(Format::Raw, &hole)];
            for (i, specs) in [&specs[..], &plain[..]].into_iter().enumerate() {
                let mut open = Open::new(specs, &load)?;
                let first = open.run(&load)?;
                let again = open.run(&load)?;
                open.close()?;
                if round > 0 {
                    samples[2 * i].add(1e6 / again);
                    samples[2 * i + 1].add(1e6 / first);
                }
            }
            std::fs::remove_file(&top)?;
            std::fs::remove_file(&hole)?;
        }
        let name = format!("engine: writes of 4 KiB into an overlay of 64 GiB, depth {depth}");
        report.add(&name, "us a request", Better::Lower, &samples, Vec::new());
    }
    Ok(())
}

/// The time that making an overlay takes, by the size of what is below.
fn overlays(arguments: &EngineArguments, folder: &Path, report: &mut Report) -> Result<()> {
    let names = ["64 MiB", "64 GiB", "1 TiB"];
    let sizes = [64u64 << 20, 64 << 30, 1 << 40];
    let mut samples: Vec<Samples> = names.into_iter().map(Samples::new).collect();
    for round in 0..=arguments.runs * 5 {
        for (size, samples) in sizes.iter().zip(&mut samples) {
            let path = folder.join("overlay.qcow2");
            let options = overlay(*size, Path::new("/images/base.qcow2"));
            let begun = std::time::Instant::now();
            make(&path, &options)?;
            if round > 0 {
                samples.add(begun.elapsed().as_secs_f64() * 1e3);
            }
            std::fs::remove_file(&path)?;
        }
    }
    report.add(
        "engine: making an overlay",
        "ms",
        Better::Lower,
        &samples,
        Vec::new(),
    );
    Ok(())
}

fn overlay(size: u64, base: &Path) -> CreateOptions {
    CreateOptions::overlay(size, (base.display().to_string(), "qcow2".into()))
}

/// Makes an image.
pub fn make(path: &Path, options: &CreateOptions) -> Result<()> {
    let port = Port::new();
    let file = ImageFile::create(path)?;
    block_on(&port, create(&port, &file, None, options))?;
    Ok(())
}

/// Writes something everywhere, up to `size`.
fn fill(spec: &LayerSpec, size: u64) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let port = Port::new();
    let specs = std::slice::from_ref(spec);
    let options = FileOptions::default();
    block_on(&port, async {
        let stack = Stack::open(&port, specs, &options, DEFAULT_CACHE).await?;
        let mut data = Buffer::new(PIECE as usize);
        data.bytes_mut().fill(0x5a);
        for at in (0..size).step_by(PIECE as usize) {
            stack.write(&port, at, &data.span()).await?;
        }
        stack.close(&port).await
    })?;
    Ok(())
}

fn rate_of(specs: &[LayerSpec], load: &Load) -> Result<f64> {
    let mut open = Open::new(specs, load)?;
    let rate = open.run(load)?;
    open.close()?;
    Ok(rate)
}
