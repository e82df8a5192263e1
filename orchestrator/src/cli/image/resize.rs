//! `skerry image resize`.

use clap::Args;
use skerry_images::io::{Port, block_on};

use super::layers::Source;
use super::{Failure, Outcome, bytes};

/// Make a disk larger or smaller. What is new reads as zeroes.
#[derive(Debug, Args)]
pub struct Resize {
    #[command(flatten)]
    source: Source,

    /// Cut the disk off; what was there is gone
    #[arg(long)]
    shrink: bool,

    /// Say nothing
    #[arg(short, long)]
    quiet: bool,

    /// The new size; with + or -, by how much it changes
    #[arg(value_name = "[+-]SIZE", allow_hyphen_values = true, value_parser = change)]
    size: Change,
}

/// A new size, or how an old one changes.
#[derive(Debug, Clone, Copy)]
enum Change {
    To(u64),
    Grow(u64),
    Shrink(u64),
}

fn change(text: &str) -> Result<Change, String> {
    match text.split_at_checked(1) {
        Some(("+", by)) => bytes::parse(by).map(Change::Grow),
        Some(("-", by)) => bytes::parse(by).map(Change::Shrink),
        _ => bytes::parse(text).map(Change::To),
    }
}

impl Resize {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let port = Port::new();
        block_on(&port, self.resize(&port))
    }

    async fn resize(&self, port: &Port) -> Outcome {
        let disk = self.source.open_writable(port).await?;
        let old = disk.size();
        let new = match self.size {
            Change::To(size) => Some(size),
            Change::Grow(by) => old.checked_add(by),
            Change::Shrink(by) => old.checked_sub(by),
        };
        let asked = |what: String| {
            Err(Failure::Asked(format!(
                "{}: {what}",
                self.source.file.display()
            )))
        };
        let Some(new) = new else {
            return asked(format!("it has {old} bytes, which cannot change so far"));
        };
        if new < old && !self.shrink {
            return asked(format!(
                "{old} bytes would be cut off to {new}, and what is behind is lost: say --shrink if that is meant"
            ));
        }
        disk.resize(port, new).await?;
        disk.close(port).await?;
        if !self.quiet {
            println!(
                "Resized {}: {} ({new} bytes)",
                self.source.file.display(),
                bytes::show(new)
            );
        }
        Ok(0)
    }
}
