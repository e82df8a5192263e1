//! An OCI image layout: a directory with `oci-layout`, `index.json` and blobs named by their digests; or one image of
//! the image store, which has the same blobs.
//!
//! Everything is read as what somebody else wrote: documents have a bounded size and depth, blobs are
//! regular files, and each is what its digest says.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout,
};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use sha2::{Digest as _, Sha256};
use skerry_images::store::{Kind, Manifest, Store};

use super::error::ImageError;
use super::unpack::{Limits, archive};

/// How long a document may be, in bytes.
const DOCUMENT: u64 = 4 << 20;
/// How many layers an image may have. An overlay takes no more than 500.
pub const LAYERS: usize = 127;
/// How many indexes may be nested.
const NESTED: usize = 4;
/// The annotation that names an image in a layout.
const NAME: &str = "org.opencontainers.image.ref.name";

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// As gzip.
    Gzip,
    /// As zstd.
    Zstd,
}

/// A layer as the manifest has it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The digest of its blob: 64 hexadecimal digits.
    pub blob: String,
    /// How long the blob is.
    pub size: u64,
    /// How it is compressed.
    pub packing: Packing,
    /// The digest of the archive in it: 64 hexadecimal digits.
    pub diff_id: String,
}

/// What an image consists of.
#[derive(Debug)]
pub struct Contents {
    /// The manifest's digest: 64 hexadecimal digits.
    pub digest: String,
    /// What the image wants to be run as.
    pub config: ImageConfiguration,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// The digest of its configuration, and that one's size.
    pub configuration: (String, u64),
    /// How long its manifest is.
    pub manifest: u64,
}

/// A layout, by where its blobs are.
#[derive(Debug)]
pub enum Layout {
    /// A directory.
    Folder(PathBuf),
    /// An image of the store, whose blobs are known by `sha256:…`.
    Stored(Box<(Store, Manifest)>),
}

impl Layout {
    /// Opens a layout.
    pub fn open(path: &Path) -> Result<Layout, ImageError> {
        let layout = Layout::Folder(path.into());
        let no_layout = || ImageError::NoLayout { path: path.into() };
        let file = open_file(&path.join("oci-layout")).map_err(|_| no_layout())?;
        let text = read_all(file, 4096).map_err(|_| no_layout())?;
        let header = OciLayout::from_reader(&text[..]).map_err(|_| no_layout())?;
        match header.image_layout_version().starts_with("1.") {
            true => Ok(layout),
            false => Err(no_layout()),
        }
    }

    /// Reads what an image consists of. A name is that of the annotation, or the manifest's digest;
    /// without one the layout must hold one image.
    pub fn contents(&self, name: Option<&str>) -> Result<Contents, ImageError> {
        let manifest = self.manifest(name)?;
        let digest = sha256(&manifest)?;
        let length = manifest.size();
        let text = self.document("manifest", &manifest)?;
        let wrong = |why: String| ImageError::Document {
            what: "manifest",
            digest: digest.clone(),
            why,
        };
        let manifest = ImageManifest::from_reader(&text[..]).map_err(|e| wrong(e.to_string()))?;
        let text = self.document("configuration", manifest.config())?;
        let config =
            ImageConfiguration::from_reader(&text[..]).map_err(|e| ImageError::Document {
                what: "configuration",
                digest: manifest.config().digest().to_string(),
                why: e.to_string(),
            })?;
        let diff_ids = config.rootfs().diff_ids();
        if manifest.layers().len() != diff_ids.len() {
            return Err(wrong(format!(
                "it has {} layers, the configuration names {}",
                manifest.layers().len(),
                diff_ids.len()
            )));
        }
        if diff_ids.is_empty() || diff_ids.len() > LAYERS {
            return Err(wrong(format!(
                "it has {} layers; 1 to {LAYERS} can be used",
                diff_ids.len()
            )));
        }
        let layers = manifest.layers().iter().zip(diff_ids);
        let layers = layers.map(|(layer, diff_id)| {
            Ok(Layer {
                blob: sha256(layer)?,
                size: layer.size(),
                packing: packing(layer.media_type()).ok_or_else(|| {
                    wrong(format!("layer of unknown kind {}", layer.media_type()))
                })?,
                diff_id: hexadecimal(diff_id)
                    .ok_or_else(|| wrong(format!("{diff_id:?} is no sha256 digest of a layer")))?,
            })
        });
        let layers = layers.collect::<Result<_, ImageError>>()?;
        Ok(Contents {
            digest,
            config,
            layers,
            configuration: (sha256(manifest.config())?, manifest.config().size()),
            manifest: length,
        })
    }

    /// The descriptor of the manifest that is meant.
    fn manifest(&self, name: Option<&str>) -> Result<Descriptor, ImageError> {
        let wrong = |why: String| ImageError::Document {
            what: "document",
            digest: "index.json".into(),
            why,
        };
        match self {
            Layout::Folder(path) => {
                let path = path.join("index.json");
                let file = open_file(&path).map_err(ImageError::system("open", &path))?;
                let text = read_all(file, DOCUMENT).map_err(|e| wrong(e.to_string()))?;
                let index = ImageIndex::from_reader(&text[..]).map_err(|e| wrong(e.to_string()))?;
                self.pick(&index, name, 0)
            }
            Layout::Stored(image) => match &image.1.kind {
                Kind::Oci { manifest, blobs } => {
                    let size = blobs.get(manifest).map_or(0, |blob| blob.size);
                    let digest: oci_spec::image::Digest =
                        manifest.parse().map_err(|_| wrong(manifest.clone()))?;
                    Ok(Descriptor::new(MediaType::ImageManifest, size, digest))
                }
                Kind::Disk { .. } => Err(wrong("the image is a disk".into())),
            },
        }
    }

    /// The digest of an image's manifest, and all of its blobs by digest and size, the manifest among them.
    pub fn all(&self, name: Option<&str>) -> Result<(String, Vec<(String, u64)>), ImageError> {
        let contents = self.contents(name)?;
        let mut blobs = vec![
            (contents.digest.clone(), contents.manifest),
            contents.configuration,
        ];
        blobs.extend(
            contents
                .layers
                .into_iter()
                .map(|layer| (layer.blob, layer.size)),
        );
        // A layer may be there twice.
        let mut seen = std::collections::BTreeSet::new();
        blobs.retain(|(digest, _)| seen.insert(digest.clone()));
        Ok((contents.digest, blobs))
    }

    /// The manifest that is meant, through nested indexes.
    fn pick(
        &self,
        index: &ImageIndex,
        name: Option<&str>,
        depth: usize,
    ) -> Result<Descriptor, ImageError> {
        let named = |one: &&Descriptor| match name {
            None => true,
            Some(name) => label(one) == Some(name) || one.digest().as_ref() == name,
        };
        let fits = |one: &&Descriptor| fits_here(one);
        let kind = |one: &&Descriptor| is_manifest(one) || is_index(one);
        let all = index.manifests();
        let mut found = all.iter().filter(kind).filter(named).filter(fits);
        let first = found.next().ok_or_else(|| ImageError::NoImage {
            name: name.unwrap_or("").into(),
            platform: format!("linux/{}", architecture()),
            names: labels(all),
        })?;
        if let Some(second) = found.next() {
            // One image may be listed twice.
            if second.digest() != first.digest() {
                return Err(ImageError::Ambiguous { names: labels(all) });
            }
        }
        if is_manifest(first) {
            return Ok(first.clone());
        }
        let wrong = |why: String| ImageError::Document {
            what: "index",
            digest: first.digest().to_string(),
            why,
        };
        if depth + 1 >= NESTED {
            return Err(wrong(format!("indexes are nested deeper than {NESTED}")));
        }
        let text = self.document("index", first)?;
        let nested = ImageIndex::from_reader(&text[..]).map_err(|e| wrong(e.to_string()))?;
        self.pick(&nested, None, depth + 1)
    }

    /// A document's bytes, which its digest was compared with.
    fn document(&self, what: &'static str, at: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let digest = sha256(at)?;
        if at.size() > DOCUMENT {
            return Err(ImageError::Document {
                what,
                digest,
                why: format!("it has {} bytes, more than {DOCUMENT}", at.size()),
            });
        }
        let file = self.blob(&digest, at.size())?;
        let text = read_all(file, DOCUMENT).map_err(|e| ImageError::Document {
            what,
            digest: digest.clone(),
            why: e.to_string(),
        })?;
        match hex(&Sha256::digest(&text)) == digest {
            true => Ok(text),
            false => Err(ImageError::Digest {
                digest,
                why: "its sha256 is another".into(),
            }),
        }
    }

    /// A blob, whose bytes are not compared with its digest yet.
    pub fn blob(&self, digest: &str, size: u64) -> Result<Box<dyn Read + '_>, ImageError> {
        let (found, blob): (u64, Box<dyn Read + '_>) = match self {
            Layout::Folder(path) => {
                let path = path.join("blobs/sha256").join(digest);
                let file = open_file(&path).map_err(ImageError::system("open", &path))?;
                let found = file.metadata();
                let found = found.map_err(ImageError::system("look at", &path))?;
                (found.len(), Box::new(file))
            }
            Layout::Stored(image) => {
                let name = format!("sha256:{digest}");
                let content = match &image.1.kind {
                    Kind::Oci { blobs, .. } => blobs.get(&name),
                    Kind::Disk { .. } => None,
                };
                let content = content.ok_or_else(|| ImageError::Digest {
                    digest: digest.into(),
                    why: "the store has no such blob of it".into(),
                })?;
                let reader = image.0.reader(content).map_err(io::Error::other);
                let reader = reader.map_err(ImageError::system("read", digest))?;
                (content.size, Box::new(reader))
            }
        };
        match found == size {
            true => Ok(blob),
            false => Err(ImageError::Digest {
                digest: digest.into(),
                why: format!("it has {found} bytes, not {size}"),
            }),
        }
    }

    /// A blob whose reader fails at its end if its bytes are not what its digest says.
    pub fn verified(&self, digest: &str, size: u64) -> Result<Box<dyn Read + '_>, ImageError> {
        Ok(Box::new(Verified {
            inner: self.blob(digest, size)?,
            sum: Some(Sha256::new()),
            digest: digest.to_owned(),
        }))
    }

    /// A layer's archive, unpacked: no more of it than a layer may have.
    pub fn archive(&self, layer: &Layer) -> Result<Box<dyn Read + '_>, ImageError> {
        let blob = self.blob(&layer.blob, layer.size)?;
        let archive = archive(layer.packing, blob, Limits::default());
        archive.map_err(|source| ImageError::Archive {
            layer: layer.blob.clone(),
            source,
        })
    }

    /// Unpacks a layout from its archive into a folder: the two documents and the blobs, and nothing else.
    pub fn unpack(archive: &Path, into: &Path) -> Result<Layout, ImageError> {
        let failed = |what| ImageError::system(what, archive);
        let blobs = into.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(ImageError::system("make", &blobs))?;
        let file = open_file(archive).map_err(failed("open"))?;
        let mut archive = tar::Archive::new(io::BufReader::new(file));
        let mut left = ARCHIVE;
        for (n, entry) in archive.entries().map_err(failed("read"))?.enumerate() {
            let mut entry = entry.map_err(failed("read"))?;
            let name = entry.path().map_err(failed("read"))?.into_owned();
            let name = name.strip_prefix(".").unwrap_or(&name);
            let text = name.to_str().unwrap_or_default();
            let place = match text.strip_prefix("blobs/sha256/") {
                Some(digits) if hexadecimal(&format!("sha256:{digits}")).is_some() => {
                    blobs.join(digits)
                }
                None if matches!(text, "oci-layout" | "index.json") => into.join(text),
                _ => continue,
            };
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let size = entry.size();
            left = match left.checked_sub(size).filter(|_| n < ENTRIES) {
                Some(left) => left,
                None => {
                    let source = io::Error::other("it has more than a layout may have");
                    return Err(failed("unpack")(source));
                }
            };
            let written = File::create(&place).and_then(|mut file| io::copy(&mut entry, &mut file));
            written.map_err(ImageError::system("write", &place))?;
        }
        Layout::open(into)
    }
}

/// Bytes and entries of the largest archive of a layout.
const ARCHIVE: u64 = 1 << 40;
const ENTRIES: usize = 100_000;

/// A blob that is summed as it is read.
struct Verified<'a> {
    inner: Box<dyn Read + 'a>,
    /// None once its end was seen.
    sum: Option<Sha256>,
    digest: String,
}

impl Read for Verified<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        if n > 0 || into.is_empty() {
            self.sum.iter_mut().for_each(|sum| sum.update(&into[..n]));
            return Ok(n);
        }
        match self.sum.take() {
            Some(sum) => match hex(&sum.finalize()) == self.digest {
                true => Ok(0),
                false => Err(io::Error::other(ImageError::Digest {
                    digest: self.digest.clone(),
                    why: "its sha256 is another".into(),
                })),
            },
            None => Ok(0),
        }
    }
}

/// Whether an image is one for this machine: an index's entry that says no platform is.
pub fn fits_here(one: &Descriptor) -> bool {
    match one.platform() {
        None => true,
        Some(platform) => {
            platform.os().to_string() == "linux"
                && platform.architecture().to_string() == architecture()
        }
    }
}

/// This machine's architecture, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn is_manifest(one: &Descriptor) -> bool {
    match one.media_type() {
        MediaType::ImageManifest => true,
        MediaType::Other(kind) => kind == "application/vnd.docker.distribution.manifest.v2+json",
        _ => false,
    }
}

fn is_index(one: &Descriptor) -> bool {
    match one.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(kind) => {
            kind == "application/vnd.docker.distribution.manifest.list.v2+json"
        }
        _ => false,
    }
}

fn packing(kind: &MediaType) -> Option<Packing> {
    match kind {
        MediaType::ImageLayer | MediaType::ImageLayerNonDistributable => Some(Packing::Plain),
        MediaType::ImageLayerGzip | MediaType::ImageLayerNonDistributableGzip => {
            Some(Packing::Gzip)
        }
        MediaType::ImageLayerZstd | MediaType::ImageLayerNonDistributableZstd => {
            Some(Packing::Zstd)
        }
        MediaType::Other(kind) => match kind.as_str() {
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => Some(Packing::Gzip),
            "application/vnd.docker.image.rootfs.diff.tar" => Some(Packing::Plain),
            _ => None,
        },
        _ => None,
    }
}

fn label(one: &Descriptor) -> Option<&str> {
    let annotations = one.annotations().as_ref()?;
    annotations.get(NAME).map(String::as_str)
}

/// The names of some images, not endlessly many.
fn labels(all: &[Descriptor]) -> String {
    let names = all.iter().take(16);
    let names = names.map(|one| label(one).unwrap_or(one.digest().as_ref()).to_string());
    let mut names = names.collect::<Vec<_>>();
    if all.len() > names.len() {
        names.push("…".into());
    }
    match names.is_empty() {
        true => "none".into(),
        false => names.join(", "),
    }
}

/// The hexadecimal digits of a descriptor's digest, if it is by sha256.
fn sha256(one: &Descriptor) -> Result<String, ImageError> {
    hexadecimal(one.digest().as_ref()).ok_or_else(|| ImageError::Document {
        what: "digest",
        digest: one.digest().to_string(),
        why: "only sha256 digests can be checked".into(),
    })
}

fn hexadecimal(digest: &str) -> Option<String> {
    let digits = digest.strip_prefix("sha256:")?;
    let plain = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    (digits.len() == 64 && digits.bytes().all(plain)).then(|| digits.to_string())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens a regular file, not through a link.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = rustix::fs::openat(CWD, path, flags, Mode::empty())?.into();
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    match kind {
        FileType::RegularFile => Ok(file),
        _ => Err(io::Error::other("this is no regular file")),
    }
}

fn read_all(file: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text)?;
    match text.len() as u64 > limit {
        true => Err(io::Error::other(format!("it is longer than {limit} bytes"))),
        false => Ok(text),
    }
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod tests;
