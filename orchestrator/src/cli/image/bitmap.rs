//! `skerry image bitmap`.

use clap::Args;
use serde::Serialize;
use skerry_images::chain::Layer;
use skerry_images::io::{Port, block_on};
use skerry_images::qcow2::BitmapInfo;

use super::layers::Source;
use super::output::{Output, print_json};
use super::{Failure, Outcome, bytes};

/// List, add, remove, clear, enable or disable persistent bitmaps of what changed.
#[derive(Debug, Args)]
pub struct Bitmap {
    #[command(flatten)]
    what: What,

    /// Bytes for each bit of a new bitmap: a power of two
    #[arg(short, long, value_name = "SIZE", default_value = "64k", value_parser = bytes::parse)]
    granularity: u64,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    source: Source,

    /// The bitmap's name
    #[arg(value_name = "NAME", required_unless_present = "list")]
    name: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// List all
    #[arg(long)]
    list: bool,

    /// Make a new one, which is enabled
    #[arg(long)]
    add: bool,

    /// Delete it
    #[arg(long)]
    remove: bool,

    /// Forget what changed
    #[arg(long)]
    clear: bool,

    /// Track changes from now on
    #[arg(long)]
    enable: bool,

    /// Do not track changes from now on
    #[arg(long)]
    disable: bool,
}

/// A bitmap, as qemu-img says it in JSON.
#[derive(Serialize)]
pub struct Answer {
    name: String,
    granularity: u64,
    flags: Vec<&'static str>,
}

impl From<&BitmapInfo> for Answer {
    fn from(info: &BitmapInfo) -> Answer {
        let flags = [("in-use", info.in_use), ("auto", info.auto)];
        Answer {
            name: info.name.clone(),
            granularity: info.granularity,
            flags: flags.iter().filter(|f| f.1).map(|f| f.0).collect(),
        }
    }
}

impl Answer {
    /// Prints it on one line.
    pub fn print(&self, indent: &str) {
        let flags = match self.flags.is_empty() {
            true => "disabled".to_owned(),
            false => self.flags.join(", "),
        };
        // What the image says stays on its line.
        let name = self.name.escape_debug();
        println!(
            "{indent}{name}: {} a bit, {flags}",
            bytes::show(self.granularity)
        );
    }
}

impl Bitmap {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let port = Port::new();
        block_on(&port, self.act(&port))
    }

    async fn act(&self, port: &Port) -> Outcome {
        let what = &self.what;
        let Layer::Qcow2(image) = self.source.open_alone(port, what.list, false).await? else {
            return Err(Failure::Asked(format!(
                "{} is raw, and a raw image holds no bitmaps: convert it to qcow2 first",
                self.source.file.display()
            )));
        };
        let name = self.name.as_deref().unwrap_or("");
        match what {
            What { add: true, .. } => image.bitmap_add(port, name, self.granularity).await?,
            What { remove: true, .. } => image.bitmap_remove(port, name).await?,
            What { clear: true, .. } => image.bitmap_clear(port, name).await?,
            What { enable: true, .. } => image.bitmap_enable(port, name, true).await?,
            What { disable: true, .. } => image.bitmap_enable(port, name, false).await?,
            _ => {
                let answers: Vec<Answer> = image
                    .bitmaps(port)
                    .await?
                    .iter()
                    .map(Answer::from)
                    .collect();
                if self.output.json() {
                    print_json(&answers)?;
                } else {
                    answers.iter().for_each(|a| a.print(""));
                }
                return Ok(0);
            }
        }
        image.close(port).await?;
        Ok(0)
    }
}
