//! `skerry image inspect`.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use skerry_images::store::{Kind, Name, usage};

use super::list::Line;
use super::output::{Output, on_a_line, print_json};
use super::store::{StoreFlag, name};
use super::{Outcome, bytes, date};

/// Say what an image of the store is, and who uses it.
#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    output: Output,
    /// The image
    #[arg(value_name = "NAME[:TAG]", value_parser = name)]
    name: Name,
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    line: Line,
    /// Bytes that its chunks take in the store.
    stored: u64,
    checksums: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    blobs: BTreeMap<String, u64>,
    leases: Vec<String>,
}

impl Inspect {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        let image = store.image(&self.name)?;
        let mut leases = Vec::new();
        for holder in store.holders()? {
            let lease = store.lease(&holder)?;
            if lease.is_some_and(|l| l.images.values().any(|d| *d == image.named.digest)) {
                leases.push(holder);
            }
        }
        let (manifest, blobs) = match &image.manifest.kind {
            Kind::Disk { .. } => (None, BTreeMap::new()),
            Kind::Oci { manifest, blobs } => {
                let sizes = blobs
                    .iter()
                    .map(|(digest, blob)| (digest.clone(), blob.size));
                (Some(manifest.clone()), sizes.collect())
            }
        };
        let answer = Answer {
            line: Line::of(&image),
            stored: usage(&store, &image.manifest.kind)?,
            checksums: image.named.checksums.clone(),
            manifest,
            blobs,
            leases,
        };
        if self.output.json() {
            print_json(&answer)?;
            return Ok(0);
        }
        println!("name:     {}", image.name);
        println!("kind:     {}", image.manifest.kind.word());
        println!("digest:   {}", image.named.digest);
        let size = image.manifest.kind.size();
        println!("size:     {} ({size} bytes)", bytes::show(size));
        println!(
            "stored:   {} ({} bytes)",
            bytes::show(answer.stored),
            answer.stored
        );
        println!("source:   {}", on_a_line(&image.named.source));
        for (algorithm, sum) in &answer.checksums {
            println!("checksum: {}", on_a_line(&format!("{algorithm}:{sum}")));
        }
        println!("created:  {}", date::show(image.named.created));
        if let Some(manifest) = &answer.manifest {
            println!("manifest: {}", on_a_line(manifest));
        }
        for (digest, size) in &answer.blobs {
            println!("blob:     {} {}", on_a_line(digest), bytes::show(*size));
        }
        for holder in &answer.leases {
            println!("used by:  {}", on_a_line(holder));
        }
        Ok(0)
    }
}
