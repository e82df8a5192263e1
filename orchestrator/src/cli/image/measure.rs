//! `skerry image measure`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use skerry_images::chain::{Format, LayerSpec};
use skerry_images::io::{Port, block_on};
use skerry_images::ops;

use super::layers::{Source, format, layer};
use super::options::{self, Options};
use super::output::{Output, print_json};
use super::{Failure, Outcome, bytes};

/// Say how large the file of a new image would be.
#[derive(Debug, Args)]
pub struct Measure {
    /// Format of FILE
    #[arg(short, long, value_name = "FORMAT", default_value = "qcow2", value_parser = format)]
    format: Format,

    /// A layer below FILE; repeatable
    #[arg(long, value_name = "LAYER", value_parser = layer)]
    backing: Vec<LayerSpec>,

    /// The external data file of FILE
    #[arg(long, value_name = "PATH")]
    data_file: Option<PathBuf>,

    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FORMAT", default_value = "raw", value_parser = format)]
    target_format: Format,

    /// What the new image is to be
    #[arg(short, value_name = "NAME=VALUE,…", help = options::HELP, value_parser = options::parse)]
    options: Vec<Options>,

    /// Size of the new image's disk, instead of a FILE
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse, conflicts_with = "file", required_unless_present = "file")]
    size: Option<u64>,

    #[command(flatten)]
    output: Output,

    /// What the new image is to hold
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Answer {
    required: u64,
    fully_allocated: u64,
}

impl Measure {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let port = Port::new();
        let answer = block_on(&port, self.measure(&port))?;
        if self.output.json() {
            print_json(&answer)?;
        } else {
            println!("required size: {}", answer.required);
            println!("fully allocated size: {}", answer.fully_allocated);
        }
        Ok(0)
    }

    async fn measure(&self, port: &Port) -> Result<Answer, Failure> {
        let source = match &self.file {
            Some(file) => {
                let source = Source {
                    format: self.format,
                    backing: self.backing.clone(),
                    data_file: self.data_file.clone(),
                    force_share: false,
                    file: file.clone(),
                };
                Some(source.open(port).await?)
            }
            None => None,
        };
        let size = match (&source, self.size) {
            (Some(source), _) => source.size(),
            (None, size) => size.unwrap_or(0),
        };
        let options = Options::merged(&self.options);
        if self.target_format == Format::Raw {
            options.check_raw()?;
            return Ok(Answer {
                required: size,
                fully_allocated: size,
            });
        }
        let name = self.file.clone().unwrap_or_else(|| "the new image".into());
        let options = options.qcow2(&name, size.next_multiple_of(512), None)?;
        let measured = ops::measure(port, &options, source.as_ref()).await?;
        Ok(Answer {
            required: measured.required,
            fully_allocated: measured.fully_allocated,
        })
    }
}
