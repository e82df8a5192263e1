//! `skerry image map`.

use clap::Args;
use serde::Serialize;
use skerry_images::chain::Stack;
use skerry_images::io::{Port, block_on};
use skerry_images::ops::{Extent, extent};

use super::layers::Source;
use super::output::Output;
use super::{Failure, Outcome, bytes};

/// Say where a disk's content is: in which layer, and at which offset of its file.
#[derive(Debug, Args)]
pub struct Map {
    #[command(flatten)]
    source: Source,

    /// Begin there
    #[arg(short, long, value_name = "OFFSET", default_value = "0", value_parser = bytes::parse)]
    start_offset: u64,

    /// Look at so much
    #[arg(short = 'l', long, value_name = "BYTES", value_parser = bytes::parse)]
    max_length: Option<u64>,

    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Answer {
    start: u64,
    length: u64,
    depth: usize,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

impl Map {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let port = Port::new();
        block_on(&port, async {
            let disk = self.source.open(&port).await?;
            let mut printer = Printer {
                map: self,
                disk: &disk,
                first: true,
            };
            let start = self.start_offset.min(disk.size());
            let end = match self.max_length {
                Some(most) => disk.size().min(start.saturating_add(most)),
                None => disk.size(),
            };
            printer.begin();
            let mut at = start;
            let mut current: Option<Extent> = None;
            while at < end {
                let next = extent(&port, disk.layers(), at, end - at).await?;
                at += next.len;
                if current.as_mut().is_some_and(|extent| extent.join(&next)) {
                    continue;
                }
                if let Some(done) = current.replace(next) {
                    printer.print(&done)?;
                }
            }
            if let Some(done) = current {
                printer.print(&done)?;
            }
            printer.end();
            Ok(0)
        })
    }
}

struct Printer<'a> {
    map: &'a Map,
    disk: &'a Stack,
    first: bool,
}

impl Printer<'_> {
    fn begin(&self) {
        if self.map.output.json() {
            print!("[");
        } else {
            println!("{:16}{:16}{:16}File", "Offset", "Length", "Mapped to");
        }
    }

    fn print(&mut self, extent: &Extent) -> Result<(), Failure> {
        if self.map.output.json() {
            let answer = Answer {
                start: extent.start,
                length: extent.len,
                depth: extent.depth,
                present: extent.present,
                zero: extent.zero,
                data: extent.data,
                compressed: extent.compressed,
                offset: extent.offset,
            };
            let comma = if std::mem::take(&mut self.first) {
                ""
            } else {
                ",\n"
            };
            print!("{comma}{}", serde_json::to_string(&answer)?);
            return Ok(());
        }
        if !extent.data || extent.zero {
            return Ok(());
        }
        let layer = self.disk.layers().get(extent.depth);
        let path = layer.map_or_else(String::new, |l| l.data_file().path().display().to_string());
        let offset = match extent.offset {
            Some(offset) => format!("{offset:#x}"),
            None => "compressed".into(),
        };
        println!(
            "{:<16}{:<16}{offset:<16}{path}",
            format!("{:#x}", extent.start),
            format!("{:#x}", extent.len),
        );
        Ok(())
    }

    fn end(&self) {
        if self.map.output.json() {
            println!("]");
        }
    }
}
