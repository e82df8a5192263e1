//! OCI images, unpacked: a cache of layers by what is in them, which containers share.
//!
//! A layer's directory has the digest of itself and all layers below it as its name, and gets that name
//! only when it is complete, compared with its digests, and on disk.

mod error;
mod layout;
mod rooted;
mod unpack;

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use error::ImageError;
pub use layout::{Layout, fits_here};
pub use rooted::Rooted;
pub use unpack::Limits;

use self::layout::{Contents, Layer, hex};
use super::record;
use super::removal::remove_path;

/// How long to wait for others who change the cache.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the name of a layer begins with that is not complete.
const PARTIAL: &str = ".partial-";

/// An image that containers can be made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The manifest's sha256 digest, as 64 hexadecimal digits.
    pub digest: String,
    /// Its layers in the cache, the lowest first.
    pub layers: Vec<String>,
    /// What it wants to be run as.
    pub config: ImageConfiguration,
}

/// The cache.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
    limits: Limits,
}

impl Images {
    /// A cache in a directory, which is made when it is needed.
    pub fn new(root: &Path, limits: Limits) -> Images {
        Images {
            root: root.into(),
            limits,
        }
    }

    /// The directory of a layer.
    pub fn layer(&self, id: &str) -> PathBuf {
        self.root.join("layers").join(id)
    }

    fn record(&self, digest: &str) -> PathBuf {
        self.root.join("images").join(format!("{digest}.json"))
    }

    /// Unpacks what the cache lacks of an image. `name` is the image's in the layout, or its digest.
    pub fn prepare(&self, layout: &Layout, name: Option<&str>) -> Result<Image, ImageError> {
        let contents = layout.contents(name)?;
        let layers = chain(&contents.layers);
        let _lock = self.lock()?;
        self.sweep()?;
        let mut below = Vec::new();
        for (layer, id) in contents.layers.iter().zip(&layers) {
            let place = self.layer(id);
            if !place.exists() {
                self.unpack(layout, layer, id, &below)?;
            }
            below.insert(0, place);
        }
        let Contents { digest, config, .. } = contents;
        let image = Image {
            digest,
            layers,
            config,
        };
        let path = self.record(&image.digest);
        if !path.exists() {
            record::write(&path, &image).map_err(ImageError::system("write", &path))?;
        }
        Ok(image)
    }

    /// An image that was prepared before, by its manifest's digest.
    pub fn get(&self, digest: &str) -> Result<Option<Image>, ImageError> {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        if digest.len() != 64 || !digest.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let path = self.record(digest);
        let image: Option<Image> =
            record::read(&path).map_err(ImageError::system("read", &path))?;
        let whole = |image: &Image| image.layers.iter().all(|id| self.layer(id).exists());
        Ok(image.filter(whole))
    }

    /// Removes all images but `kept`, by their digests, and all layers that neither these nor `used`
    /// name. Says how many layers went.
    pub fn prune(
        &self,
        kept: &HashSet<String>,
        used: &HashSet<String>,
    ) -> Result<usize, ImageError> {
        let _lock = self.lock()?;
        self.sweep()?;
        let mut used = used.clone();
        for path in self.listed("images")? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let image: Option<Image> = match kept.contains(&*name) {
                true => record::read(&path).map_err(ImageError::system("read", &path))?,
                false => None,
            };
            match image {
                Some(image) => used.extend(image.layers),
                None => fs::remove_file(&path).map_err(ImageError::system("remove", &path))?,
            }
        }
        let mut gone = 0;
        for path in self.listed("layers")? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if used.contains(&*name) {
                continue;
            }
            // Never half a layer under its name.
            let partial = self.layer(&format!("{PARTIAL}{name}"));
            fs::rename(&path, &partial).map_err(ImageError::system("rename", &path))?;
            remove_path(&partial).map_err(ImageError::system("remove", &partial))?;
            gone += 1;
        }
        Ok(gone)
    }

    fn unpack(
        &self,
        layout: &Layout,
        layer: &Layer,
        id: &str,
        below: &[PathBuf],
    ) -> Result<(), ImageError> {
        let blob = layout.blob(&layer.blob, layer.size)?;
        let partial = self.layer(&format!("{PARTIAL}{id}"));
        fs::create_dir(&partial).map_err(ImageError::system("make", &partial))?;
        let unpacked = unpack::unpack(layer, blob, &partial, below, self.limits);
        let done = unpacked.and_then(|()| {
            let place = self.layer(id);
            sync_tree(&partial).map_err(ImageError::system("write out", &partial))?;
            fs::rename(&partial, &place).map_err(ImageError::system("rename", &partial))?;
            record::sync_directory(&self.root.join("layers"))
                .map_err(ImageError::system("write out", &place))
        });
        if done.is_err() {
            // The next to come tries again.
            let _ = remove_path(&partial);
        }
        done
    }

    /// Removes what somebody who was killed left.
    fn sweep(&self) -> Result<(), ImageError> {
        for path in self.listed("layers")? {
            let name = path.file_name().unwrap_or_default();
            if name.to_string_lossy().starts_with(PARTIAL) {
                remove_path(&path).map_err(ImageError::system("remove", &path))?;
            }
        }
        Ok(())
    }

    fn listed(&self, folder: &str) -> Result<Vec<PathBuf>, ImageError> {
        let folder = self.root.join(folder);
        let entries = fs::read_dir(&folder).map_err(ImageError::system("list", &folder))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        paths
            .collect::<io::Result<_>>()
            .map_err(ImageError::system("list", &folder))
    }

    /// Makes the cache's directories and keeps others from changing it.
    fn lock(&self) -> Result<File, ImageError> {
        for folder in ["images", "layers"] {
            let folder = self.root.join(folder);
            fs::create_dir_all(&folder).map_err(ImageError::system("make", &folder))?;
        }
        let path = self.root.join("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(ImageError::system("open", &path))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => return Err(ImageError::system("lock", &path)(e.into())),
            }
        }
    }
}

/// The names of layers in the cache: each depends on those below.
fn chain(layers: &[Layer]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for layer in layers {
        let id = match ids.last() {
            None => layer.diff_id.clone(),
            Some(below) => {
                let both = format!("sha256:{below} sha256:{}", layer.diff_id);
                hex(&Sha256::digest(both))
            }
        };
        ids.push(id);
    }
    ids
}

/// Writes out all of the file system that a directory is on.
fn sync_tree(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}
