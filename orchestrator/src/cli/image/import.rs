//! `skerry image import`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use skerry_images::chain::live::Progress;
use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::{FileOptions, Port, block_on};
use skerry_images::store::{FETCHED, Hash, Imported, Name, Origin, Store};

use super::checksum::Checksum;
use super::fetch::Fetcher;
use super::layers::{CACHE, hint, layer};
use super::output::{Output, print_json};
use super::progress::Bar;
use super::store::{StoreFlag, name, short};
use super::{Failure, Outcome, bytes};
use crate::runtime::container::Layout;

/// Bring an image into the image store: a disk (qcow2, raw) from a file or an address, or an OCI image from a layout's
/// directory or tar file.
#[derive(Debug, Args)]
pub struct Import {
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    bar: Bar,
    /// The image's name in the store
    #[arg(long, value_name = "NAME[:TAG]", value_parser = name)]
    name: Name,
    /// What SOURCE is [default: oci for a directory, else qcow2]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<What>,
    /// What the file must be: sha256:… or sha512:…
    #[arg(long, value_name = "CHECKSUM")]
    checksum: Option<Checksum>,
    /// A layer below a qcow2 SOURCE: raw:PATH, qcow2:PATH or PATH (qcow2), the upper one first; repeatable
    #[arg(long, value_name = "LAYER", value_parser = layer)]
    backing: Vec<LayerSpec>,
    /// Which image of an OCI layout, if it has several
    #[arg(long, value_name = "NAME")]
    pick: Option<String>,
    /// A file, a directory, or http://… or https://…
    #[arg(value_name = "SOURCE")]
    from: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Qcow2,
    Raw,
    /// An OCI layout: a directory, or a tar file of one
    Oci,
}

impl Import {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        let remote = self.from.starts_with("http://") || self.from.starts_with("https://");
        let _use = store.share()?;
        let imported = match remote {
            false => self.file(&store, Path::new(&self.from))?,
            true => {
                if self.checksum.is_none() && self.from.starts_with("http://") {
                    return Err(Failure::Asked(
                        "what comes by http:// may be anybody's: give --checksum, or use https://"
                            .into(),
                    ));
                }
                let folder = scratch(&store, &self.from)?;
                let file = folder.join("file");
                // A wait for the network ends at once; what came is kept for the next attempt.
                let end = || std::process::exit(1);
                self.bar.watch_waiting("Fetching", end, |progress| {
                    let fetcher = Fetcher::new();
                    fetcher.download(&self.from, &[], &file, None, progress)
                })?;
                let imported = self.file(&store, &file);
                // Whatever it is, it is whole: there is nothing to go on from.
                remove(&folder)?;
                imported?
            }
        };
        tell(&self.output, &self.name, &imported)
    }

    fn file(&self, store: &Store, path: &Path) -> Result<Imported, Failure> {
        let mut checksums = BTreeMap::new();
        if let Some(checksum) = &self.checksum {
            if path.is_dir() {
                return Err(Failure::Asked(
                    "a directory has no checksum: what is in an OCI layout is compared with its digests".into(),
                ));
            }
            checksum.check(path)?;
            checksums.insert(checksum.algorithm.to_owned(), checksum.digits.clone());
        }
        let origin = Origin {
            source: match self.from.contains("://") {
                true => self.from.clone(),
                false => std::path::absolute(path)
                    .unwrap_or(path.into())
                    .display()
                    .to_string(),
            },
            checksums,
        };
        let what = self.format.unwrap_or(match path.is_dir() {
            true => What::Oci,
            false => What::Qcow2,
        });
        let format = match what {
            What::Oci => return self.oci(store, path, origin),
            What::Qcow2 => Format::Qcow2,
            What::Raw => Format::Raw,
        };
        let mut specs = vec![LayerSpec::new(format, path)];
        specs.extend(self.backing.iter().cloned());
        let port = Port::new();
        let options = FileOptions {
            readonly: true,
            ..FileOptions::default()
        };
        let disk = block_on(&port, Stack::open(&port, &specs, &options, CACHE));
        let disk = disk.map_err(hint)?;
        self.bar.watch("Importing", |progress| {
            Ok(store.import_disk(&self.name, &disk, origin, progress)?)
        })
    }

    fn oci(&self, store: &Store, path: &Path, origin: Origin) -> Result<Imported, Failure> {
        let pick = self.pick.as_deref();
        if path.is_dir() {
            let layout = Layout::open(path)?;
            return self.bar.watch("Importing", |progress| {
                keep(store, &self.name, &layout, pick, origin, progress)
            });
        }
        let folder = scratch(store, &path.display().to_string())?;
        let kept = self.bar.watch("Importing", |progress| {
            let layout = Layout::unpack(path, &folder)?;
            keep(store, &self.name, &layout, pick, origin, progress)
        });
        remove(&folder)?;
        kept
    }
}

/// Puts an image of a layout into the store.
pub fn keep(
    store: &Store,
    name: &Name,
    layout: &Layout,
    pick: Option<&str>,
    origin: Origin,
    progress: &Progress,
) -> Result<Imported, Failure> {
    let (manifest, blobs) = layout.all(pick)?;
    progress.expect(blobs.iter().map(|(_, size)| size).sum());
    let blobs = blobs.into_iter().map(|(digest, size)| {
        let from = layout.verified(&digest, size);
        (format!("sha256:{digest}"), from)
    });
    let mut refused = None;
    let blobs = blobs.map_while(|(digest, from)| match from {
        Ok(from) => Some((digest, from)),
        Err(e) => {
            refused = Some(e);
            None
        }
    });
    let blobs: Vec<_> = blobs.collect();
    match refused {
        Some(e) => Err(e.into()),
        None => {
            Ok(store.import_oci(name, &format!("sha256:{manifest}"), blobs, origin, progress)?)
        }
    }
}

/// A folder of the store for what is on its way there. The same source has the same, so an attempt goes on where the
/// last one ended.
pub fn scratch(store: &Store, source: &str) -> Result<PathBuf, Failure> {
    let name = Hash::of(source.as_bytes()).to_string();
    let path = store.root().join(FETCHED).join(&name[..32]);
    std::fs::create_dir_all(&path).map_err(|source| Failure::System {
        what: "make",
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

/// Removes such a folder.
pub fn remove(folder: &Path) -> Result<(), Failure> {
    std::fs::remove_dir_all(folder).map_err(|source| Failure::System {
        what: "remove",
        path: folder.into(),
        source,
    })
}

/// Says what an import came to.
pub fn tell(output: &Output, name: &Name, imported: &Imported) -> Outcome {
    if output.json() {
        print_json(&serde_json::json!({
            "name": name,
            "digest": imported.digest,
            "size": imported.size,
            "added": imported.added,
            "chunks": imported.chunks,
        }))?;
        return Ok(0);
    }
    println!(
        "{name} is {}: {}, of which {} are new in the store",
        short(imported.digest),
        bytes::show(imported.size),
        bytes::show(imported.added)
    );
    Ok(0)
}
