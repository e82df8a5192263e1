//! Images of the host's store, as workloads name them. What a workload uses is leased: it stays in the store, whatever
//! becomes of its name.

use std::path::{Path, PathBuf};

use skerry_images::chain::live::Progress;
use skerry_images::store::{Kind, Manifest, Name, Store, StoreError};

use super::RuntimeError;
use crate::model::{DiskFormat, MicroVmSpec};

/// The store of a host, which is opened when it is needed. All of it blocks.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
}

/// What a container's image is called in its lease.
const IMAGE: &str = "image";

impl Images {
    /// That in a directory.
    pub fn new(root: &Path) -> Images {
        Images {
            root: root.to_owned(),
        }
    }

    /// Puts in the place of images of the store the files that they are in one piece. A disk stays on the image that its
    /// name meant first.
    ///
    /// # Errors
    /// If there is no such image, or it cannot be written in one piece.
    pub fn resolve(&self, uid: &str, spec: &mut MicroVmSpec) -> Result<(), RuntimeError> {
        for disk in &mut spec.disks {
            let Some(image) = disk.image.take() else {
                continue;
            };
            disk.base = Some(self.disk(uid, &disk.name, &image)?);
            disk.format = DiskFormat::Raw;
        }
        Ok(())
    }

    /// Puts in the place of the name of what was prepared its snapshot's directory.
    ///
    /// # Errors
    /// If nothing of that name was prepared.
    pub fn find_snapshot(&self, spec: &mut MicroVmSpec) -> Result<(), RuntimeError> {
        let Some(name) = spec
            .boot
            .snapshot
            .as_ref()
            .filter(|path| !path.is_absolute())
        else {
            return Ok(());
        };
        let missing = || {
            let name = name.display();
            RuntimeError::Unfit(format!(
                "nothing is prepared as `{name}` on this host: make it with `skerry image prepare`"
            ))
        };
        let store = Store::open(&self.root)?;
        let found = store.prepared_snapshot(name.to_str().unwrap_or_default());
        spec.boot.snapshot = Some(found.ok_or_else(missing)?);
        Ok(())
    }

    fn disk(&self, uid: &str, disk: &str, image: &str) -> Result<PathBuf, RuntimeError> {
        let store = Store::open(&self.root)?;
        // From the look at the name to the lease, nothing goes.
        let _use = store.share()?;
        let held = store.lease(uid)?;
        let held = held.and_then(|lease| lease.images.get(disk).copied());
        let digest = match held {
            Some(digest) => digest,
            None => {
                let image = store.image(&image.parse::<Name>()?)?;
                if !matches!(image.manifest.kind, Kind::Disk { .. }) {
                    return Err(RuntimeError::Image(StoreError::Kind {
                        name: image.name.to_string(),
                        is: "an OCI image",
                        wanted: "a disk",
                    }));
                }
                store.hold(uid, disk, image.named.digest)?;
                image.named.digest
            }
        };
        Ok(store.base(digest, &Progress::default())?)
    }

    /// The image that a container is made of, which is leased from now on.
    ///
    /// # Errors
    /// If there is no such image, or it is a disk.
    pub fn container(&self, uid: &str, image: &str) -> Result<(Store, Manifest), RuntimeError> {
        let store = Store::open(&self.root)?;
        let _use = store.share()?;
        let image = store.image(&image.parse::<Name>()?)?;
        if !matches!(image.manifest.kind, Kind::Oci { .. }) {
            return Err(RuntimeError::Image(StoreError::Kind {
                name: image.name.to_string(),
                is: "a disk",
                wanted: "an OCI image",
            }));
        }
        store.hold(uid, IMAGE, image.named.digest)?;
        Ok((store, image.manifest))
    }

    /// A workload is gone: it uses no image any more.
    ///
    /// # Errors
    /// If the store cannot be changed.
    pub fn release(&self, uid: &str) -> Result<(), RuntimeError> {
        // A host that never had an image has no store.
        match self.root.join("leases").exists() {
            true => Ok(Store::open(&self.root)?.release(uid)?),
            false => Ok(()),
        }
    }
}
