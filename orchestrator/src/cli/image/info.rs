//! `skerry image info`.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use skerry_images::chain::Format;
use skerry_images::io::{FileOptions, ImageFile, Port, block_on};
use skerry_images::qcow2::{Header, Image, OpenOptions, autoclear, incompatible, read_header};

use super::layers::Source;
use super::output::{Output, print_json};
use super::{Outcome, bitmap, bytes, snapshot};

/// Say what an image is. Names of other files in it are shown, and not opened.
#[derive(Debug, Args)]
pub struct Info {
    #[command(flatten)]
    source: Source,

    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Answer<'a> {
    filename: &'a Path,
    format: &'static str,
    virtual_size: u64,
    actual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename_format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format_specific: Option<Specific>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<snapshot::Answer>,
    dirty_flag: bool,
}

#[derive(Serialize)]
struct Specific {
    #[serde(rename = "type")]
    kind: &'static str,
    data: Qcow2,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Qcow2 {
    compat: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_file_raw: Option<bool>,
    compression_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lazy_refcounts: Option<bool>,
    refcount_bits: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    corrupt: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extended_l2: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bitmaps: Vec<bitmap::Answer>,
}

impl Qcow2 {
    fn of(header: &Header) -> Qcow2 {
        let modern = |value| (header.version >= 3).then_some(value);
        Qcow2 {
            compat: if header.version >= 3 { "1.1" } else { "0.10" },
            data_file: header.data_file.clone(),
            data_file_raw: header
                .external()
                .then_some(header.autoclear & autoclear::RAW_DATA != 0),
            compression_type: header.compression.name(),
            lazy_refcounts: modern(header.lazy()),
            refcount_bits: header.geometry.refcount_bits(),
            corrupt: modern(header.needs(incompatible::CORRUPT)),
            extended_l2: modern(header.geometry.extended),
            bitmaps: Vec::new(),
        }
    }
}

impl Info {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let port = Port::new();
        block_on(&port, self.show(&port))
    }

    async fn show(&self, port: &Port) -> Outcome {
        let options = FileOptions {
            readonly: true,
            direct: false,
            unlocked: self.source.force_share,
        };
        let file: Arc<ImageFile> = ImageFile::open(&self.source.file, &options)?;
        let mut answer = Answer {
            filename: &self.source.file,
            format: self.source.format.name(),
            virtual_size: file.end().next_multiple_of(512),
            actual_size: file.allocated()?,
            cluster_size: None,
            backing_filename: None,
            backing_filename_format: None,
            format_specific: None,
            snapshots: Vec::new(),
            dirty_flag: false,
        };
        if self.source.format == Format::Qcow2 {
            let header = read_header(port, &file).await?;
            answer.virtual_size = header.size;
            answer.cluster_size = Some(header.geometry.cluster());
            answer.dirty_flag = header.needs(incompatible::DIRTY);
            let mut data = Qcow2::of(&header);
            if header.snapshots > 0 || header.bitmaps.is_some() {
                // They are all in the image's own file, wherever the guest's data is.
                let own = header.external().then(|| file.clone());
                let options = OpenOptions {
                    readonly: true,
                    ..OpenOptions::default()
                };
                let image = Image::open(port, file.clone(), own, &options).await?;
                let saved = image.snapshots(port).await?;
                answer.snapshots = saved.iter().map(snapshot::Answer::from).collect();
                let bitmaps = image.bitmaps(port).await?;
                data.bitmaps = bitmaps.iter().map(bitmap::Answer::from).collect();
            }
            answer.format_specific = Some(Specific {
                kind: "qcow2",
                data,
            });
            answer.backing_filename = header.backing;
            answer.backing_filename_format = header.backing_format;
        }
        if self.output.json() {
            print_json(&answer)?;
        } else {
            answer.print();
        }
        Ok(0)
    }
}

impl Answer<'_> {
    fn print(&self) {
        println!("image: {}", self.filename.display());
        println!("file format: {}", self.format);
        println!(
            "virtual size: {} ({} bytes)",
            bytes::show(self.virtual_size),
            self.virtual_size
        );
        println!("disk size: {}", bytes::show(self.actual_size));
        if let Some(size) = self.cluster_size {
            println!("cluster_size: {size}");
        }
        if self.dirty_flag {
            println!("not closed: its refcounts are rebuilt when it is opened for writing");
        }
        // Names come from the image: whatever is in them, they stay on their line.
        if let Some(name) = &self.backing_filename {
            println!("backing file: {}", name.escape_debug());
        }
        if let Some(format) = &self.backing_filename_format {
            println!("backing file format: {}", format.escape_debug());
        }
        snapshot::print_table(&self.snapshots);
        let Some(Specific { data, .. }) = &self.format_specific else {
            return;
        };
        println!("Format specific information:");
        println!("    compat: {}", data.compat);
        if let Some(name) = &data.data_file {
            println!("    data file: {}", name.escape_debug());
        }
        let flags = [
            ("data file raw", data.data_file_raw),
            ("lazy refcounts", data.lazy_refcounts),
            ("corrupt", data.corrupt),
            ("extended l2", data.extended_l2),
        ];
        println!("    compression type: {}", data.compression_type);
        println!("    refcount bits: {}", data.refcount_bits);
        for (name, value) in flags {
            if let Some(value) = value {
                println!("    {name}: {value}");
            }
        }
        if !data.bitmaps.is_empty() {
            println!("    bitmaps:");
            data.bitmaps.iter().for_each(|b| b.print("        "));
        }
    }
}
