//! `skerry image list`.

use clap::Args;
use serde::Serialize;
use skerry_images::store::{Hash, Image, Name};

use super::output::{Output, print_json};
use super::store::{StoreFlag, short};
use super::{Outcome, bytes, date};

/// List the images of the store.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    output: Output,
}

/// What is said of an image.
#[derive(Serialize)]
pub struct Line {
    name: Name,
    kind: &'static str,
    digest: Hash,
    size: u64,
    source: String,
    created: u64,
}

impl Line {
    /// That of an image.
    pub fn of(image: &Image) -> Line {
        Line {
            name: image.name.clone(),
            kind: image.manifest.kind.word(),
            digest: image.named.digest,
            size: image.manifest.kind.size(),
            source: image.named.source.clone(),
            created: image.named.created,
        }
    }
}

impl List {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        let mut lines = Vec::new();
        let mut failed = None;
        for name in store.names()? {
            match store.image(&name) {
                Ok(image) => lines.push(Line::of(&image)),
                // The others are there all the same.
                Err(e) => failed = Some(e),
            }
        }
        match self.output.json() {
            true => print_json(&lines)?,
            false => show(&lines),
        }
        failed.map_or(Ok(0), |e| Err(e.into()))
    }
}

fn show(lines: &[Line]) {
    let rows = lines.iter().map(|line| {
        [
            line.name.to_string(),
            line.kind.to_owned(),
            short(line.digest),
            bytes::show(line.size),
            date::show(line.created),
        ]
    });
    let head = ["NAME", "KIND", "DIGEST", "SIZE", "CREATED"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    for row in rows {
        let [name, kind, digest, size, created] = row;
        let [a, b, c, d] = widths;
        println!("{name:a$}  {kind:b$}  {digest:c$}  {size:>d$}  {created}");
    }
}
