//! `skerry-bench images`: from an image file to a disk that VMs can lie on, by the image store, beside
//! `qemu-img convert`; and what a second, slightly changed image adds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use skerry_images::chain::live::Progress;
use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::{FileOptions, Port, block_on};
use skerry_images::store::{Imported, Origin, Store};

use crate::machine::Host;
use crate::report::{Better, Report, ReportArguments, Target};
use crate::stats::Samples;

/// `skerry-bench images`.
#[derive(Args)]
pub struct ImageArguments {
    /// Where the images are made; on a file system like that of real ones
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Times that each is measured, in turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Bytes of the image that is made, in MiB
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// A qcow2 image to measure instead of those that are made
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Another state of that image, of which is told what it adds to the store
    #[arg(long, value_name = "FILE", requires = "image")]
    second: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArguments,
}

const MIB: u64 = 1 << 20;
/// Of each ten pieces so many are zeroes, and so many are text; the others cannot be packed.
const ZEROES: u64 = 3;
const TEXT: u64 = 5;
/// Bytes of a stretch that is changed, and that it does not begin at a multiple of.
const CHANGED: u64 = 4 * MIB;
const AWRY: u64 = 12_345;

/// Measures and prints.
pub fn run(arguments: &ImageArguments) -> Result<()> {
    let folder = tempfile::tempdir_in(&arguments.directory).context("a folder for images")?;
    let path = |name: &str| folder.path().join(name);
    let mut report = Report::new(
        &arguments.report,
        Host::here([("qemu-img", Path::new("qemu-img"))]),
    );
    if let Some(image) = &arguments.image {
        let what = image.file_name().unwrap_or_default().to_string_lossy();
        let second = arguments.second.as_deref();
        let second = second.map(|path| (path, Format::Qcow2));
        measure(&mut report, folder.path(), arguments, &what, image, second)?;
        return report.finish();
    }
    let (raw, changed) = (path("guest.raw"), path("changed.raw"));
    fill(&raw, arguments.size * MIB)?;
    std::fs::copy(&raw, &changed).context("a copy")?;
    change(&changed, arguments.size * MIB)?;
    let source = path("source.qcow2");
    for (title, words) in [("plain", &[][..]), ("compressed", &["-c"][..])] {
        convert(&raw, &source, "raw", "qcow2", words)?;
        let what = format!("{} MiB of {title} qcow2", arguments.size);
        let second = Some((changed.as_path(), Format::Raw));
        measure(
            &mut report,
            folder.path(),
            arguments,
            &what,
            &source,
            second,
        )?;
        std::fs::remove_file(&source)?;
    }
    report.finish()
}

/// Measures an image, and prints what it and a second one take in the store.
fn measure(
    report: &mut Report,
    folder: &Path,
    arguments: &ImageArguments,
    what: &str,
    source: &Path,
    second: Option<(&Path, Format)>,
) -> Result<()> {
    let mut samples = [
        Samples::new("qemu-img convert, durable"),
        Samples::new("qemu-img convert, to qcow2, durable"),
        Samples::new("qemu-img convert, not durable"),
        Samples::new("skerry import and base"),
        Samples::new("of that, the import"),
    ];
    let target = folder.join("flat");
    // The first round fills caches and doesn't count.
    for round in 0..=arguments.runs {
        let ways = [
            ("raw", "writeback"),
            ("qcow2", "writeback"),
            ("raw", "unsafe"),
        ];
        for ((becomes, cache), samples) in ways.into_iter().zip(&mut samples) {
            let begun = Instant::now();
            convert(source, &target, "qcow2", becomes, &["-t", cache])?;
            let took = begun.elapsed();
            // The next one does not wait for what this one left to be written.
            rustix::fs::syncfs(File::open(folder)?)?;
            match (round, becomes) {
                (0, "raw") if cache == "writeback" => {
                    std::fs::rename(&target, folder.join("right"))?;
                }
                _ => std::fs::remove_file(&target)?,
            }
            if round > 0 {
                samples.add(took.as_secs_f64());
            }
        }
        let place = folder.join("store");
        let begun = Instant::now();
        let store = Store::open(&place)?;
        let imported = import(&store, source, Format::Qcow2)?;
        let import = begun.elapsed();
        let base = store.base(imported.digest, &Progress::default())?;
        let ours = begun.elapsed();
        if round > 0 {
            samples[3].add(ours.as_secs_f64());
            samples[4].add(import.as_secs_f64());
        } else {
            same(&folder.join("right"), &base)?;
            std::fs::remove_file(folder.join("right"))?;
            if let Some((path, format)) = second {
                let begun = Instant::now();
                let other = self::import(&store, path, format)?;
                let import = begun.elapsed();
                store.base(other.digest, &Progress::default())?;
                eprintln!(
                    "{what}: {} MiB are stored as {} MiB; the second image adds {} MiB, {:.1} %, in {:.2} s, {:.2} s with its base",
                    imported.size / MIB,
                    imported.added / MIB,
                    other.added / MIB,
                    other.added as f64 * 100.0 / imported.added as f64,
                    import.as_secs_f64(),
                    begun.elapsed().as_secs_f64()
                );
            }
        }
        drop(store);
        std::fs::remove_dir_all(&place)?;
        rustix::fs::syncfs(File::open(folder)?)?;
    }
    let name = format!("images: {what} to a durable raw disk");
    let targets = [Target::ratio("skerry import and base", 1.0)];
    report.add_aimed(&name, "s", Better::Lower, &samples, Vec::new(), &targets);
    Ok(())
}

fn convert(from: &Path, to: &Path, is: &str, becomes: &str, words: &[&str]) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(["convert", "-f", is, "-O", becomes])
        .args(words)
        .args([from, to])
        .status()
        .context("cannot run qemu-img: install qemu-utils")?;
    ensure!(status.success(), "qemu-img convert: {status}");
    Ok(())
}

fn import(store: &Store, path: &Path, format: Format) -> Result<Imported> {
    let options = FileOptions {
        readonly: true,
        ..FileOptions::default()
    };
    let (port, spec) = (Port::new(), LayerSpec::new(format, path));
    let disk = block_on(&port, Stack::open(&port, &[spec], &options, 64 * MIB))?;
    let name = "measured".parse()?;
    Ok(store.import_disk(&name, &disk, Origin::default(), &Progress::default())?)
}

/// A guest's disk: some of it empty, some text, some packed already.
fn fill(path: &Path, size: u64) -> Result<()> {
    let file = File::create(path).context("a disk")?;
    file.set_len(size)?;
    let mut state = 1;
    let mut piece = vec![0_u8; MIB as usize];
    for n in 0..size / MIB {
        match n % 10 {
            kind if kind < ZEROES => continue,
            kind if kind < ZEROES + TEXT => text(&mut piece, &mut state),
            _ => noise(&mut piece, &mut state),
        }
        file.write_all_at(&piece, n * MIB)?;
    }
    Ok(())
}

/// Changes a tenth of it, in stretches that begin anywhere.
fn change(path: &Path, size: u64) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let mut piece = vec![0_u8; CHANGED as usize];
    let mut state = 99;
    for at in (0..size).step_by(10 * CHANGED as usize) {
        noise(&mut piece, &mut state);
        let end = (at + AWRY + CHANGED).min(size);
        let len = end.saturating_sub(at + AWRY) as usize;
        file.write_all_at(&piece[..len], at + AWRY)?;
    }
    Ok(())
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn noise(piece: &mut [u8], state: &mut u64) {
    for bytes in piece.chunks_mut(8) {
        bytes.copy_from_slice(&next(state).to_le_bytes()[..bytes.len()]);
    }
}

/// Words in some order, which pack to about a third.
fn text(piece: &mut [u8], state: &mut u64) {
    for bytes in piece.chunks_mut(8) {
        let word = (next(state) % 4096).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

/// Refuses to measure what is wrong.
fn same(one: &Path, other: &Path) -> Result<()> {
    let status = Command::new("cmp")
        .args([one, other])
        .status()
        .context("cmp")?;
    ensure!(status.success(), "the disk is not what was imported");
    Ok(())
}
