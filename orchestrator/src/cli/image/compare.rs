//! `skerry image compare`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use skerry_images::chain::{Format, LayerSpec};
use skerry_images::io::{Port, block_on};
use skerry_images::ops::{Difference, compare};

use super::Outcome;
use super::layers::{Source, format, layer};
use super::output::{Output, print_json};
use super::progress::Bar;

/// Tell whether two disks hold the same. Exits with 0: the same, 1: different, 2: could not tell.
#[derive(Debug, Args)]
pub struct Compare {
    #[command(flatten)]
    first: Source,

    /// Format of FILE2
    #[arg(short = 'F', long, value_name = "FORMAT", default_value = "qcow2", value_parser = format)]
    format2: Format,

    /// A layer below FILE2; repeatable
    #[arg(long, value_name = "LAYER", value_parser = layer)]
    backing2: Vec<LayerSpec>,

    /// The external data file of FILE2
    #[arg(long, value_name = "PATH")]
    data_file2: Option<PathBuf>,

    /// Also sizes and what is allocated must be the same
    #[arg(short, long)]
    strict: bool,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    bar: Bar,

    /// Say nothing
    #[arg(short, long)]
    quiet: bool,

    /// The other image
    #[arg(value_name = "FILE2")]
    file2: PathBuf,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Answer {
    identical: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    differs: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    sizes: [u64; 2],
}

impl Compare {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let second = Source {
            format: self.format2,
            backing: self.backing2.clone(),
            data_file: self.data_file2.clone(),
            force_share: self.first.force_share,
            file: self.file2.clone(),
        };
        let port = Port::new();
        let (difference, sizes) = self.bar.watch("Comparing", |progress| {
            block_on(&port, async {
                let a = self.first.open(&port).await?;
                let b = second.open(&port).await?;
                let sizes = [a.size(), b.size()];
                if self.strict && sizes[0] != sizes[1] {
                    return Ok::<_, super::Failure>((None, sizes));
                }
                let found = compare(&port, [&a, &b], self.strict, progress).await?;
                Ok((found, sizes))
            })
        })?;
        let other_sizes = sizes[0] != sizes[1];
        let (differs, offset, words) = match difference {
            Some(Difference::Content(at)) => (
                Some("content"),
                Some(at),
                format!("Content mismatch at offset {at}!"),
            ),
            Some(Difference::Allocation(at)) => (
                Some("allocation"),
                Some(at),
                format!("Strict mode: Offset {at} block status mismatch!"),
            ),
            None if other_sizes && self.strict => (
                Some("size"),
                None,
                "Strict mode: Image size mismatch!".into(),
            ),
            None => (None, None, "Images are identical.".into()),
        };
        if self.output.json() {
            print_json(&Answer {
                identical: differs.is_none(),
                differs,
                offset,
                sizes,
            })?;
        } else if !self.quiet {
            if other_sizes && !self.strict {
                println!("Warning: Image size mismatch!");
            }
            println!("{words}");
        }
        Ok(differs.is_some().into())
    }
}
