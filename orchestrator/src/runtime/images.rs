//! Images of the host's store, as workloads name them. What a workload uses is leased: it stays in the store, whatever
//! becomes of its name.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use skerry_images::chain::live::Progress;
use skerry_images::store::{self, Hash, Kind, Manifest, Name, Store, StoreError};

use super::{RuntimeError, system};
use crate::model::{Boot, DiskFormat, MicroVmSpec};

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
    /// name meant first. A VM that is given no kernel starts from that of its first image.
    ///
    /// # Errors
    /// If there is no such image, it cannot be written in one piece, or no kernel is found in it.
    pub fn resolve(&self, uid: &str, spec: &mut MicroVmSpec) -> Result<(), RuntimeError> {
        let mut starts = spec.boot.kernel.is_none();
        for (place, disk) in spec.disks.iter_mut().enumerate() {
            let Some(image) = disk.image.take() else {
                continue;
            };
            let (store, digest) = self.hold(uid, &disk.name, &image)?;
            disk.base = Some(store.base(digest, &Progress::default())?);
            disk.format = DiskFormat::Raw;
            if std::mem::take(&mut starts) {
                start_from(&mut spec.boot, &find_boot(&store, digest)?, place);
            }
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

    /// The image that a disk is on, which is leased from now on.
    fn hold(&self, uid: &str, disk: &str, image: &str) -> Result<(Store, Hash), RuntimeError> {
        let store = Store::open(&self.root)?;
        // From the look at the name to the lease, nothing goes.
        let shared = store.share()?;
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
        drop(shared);
        Ok((store, digest))
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

/// What an image starts from. It is looked for once, by a process that may die of what is in the image.
fn find_boot(store: &Store, digest: Hash) -> Result<store::Boot, RuntimeError> {
    if let Some(boot) = store.boot(digest)? {
        return Ok(boot);
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(["image", "find-boot"]).arg(digest.to_string());
    command.arg("--store").arg(store.root());
    let ended = command.env_clear().stdin(Stdio::null()).output();
    let ended = ended.map_err(system("look for the image's kernel"))?;
    let found = store.boot(digest)?;
    found.ok_or_else(|| {
        let said = String::from_utf8_lossy(&ended.stderr);
        let said = said.lines().next_back().unwrap_or("nothing");
        let said = said.trim_start_matches("skerry: ");
        RuntimeError::Unfit(format!(
            "no kernel of its image was found ({}): {said}",
            ended.status
        ))
    })
}

/// Lets a VM start from what its disk at `place` starts from. What its command line says comes last, and counts.
pub(crate) fn start_from(boot: &mut Boot, found: &store::Boot, place: usize) {
    boot.kernel = Some(found.kernel.clone());
    if boot.initramfs.is_none() {
        boot.initramfs.clone_from(&found.initramfs);
    }
    let partition = found.partition.map_or(String::new(), |n| n.to_string());
    let disk = letters(place);
    let own = format!("console=ttyS0 root=/dev/vd{disk}{partition} rw");
    boot.cmdline = format!("{own} {}", boot.cmdline).trim_end().to_owned();
}

/// What Linux calls a virtio disk after `/dev/vd`: a to z, then aa.
fn letters(place: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    match place.checked_sub(26) {
        None => letter(place).into(),
        Some(more) => [letter(more / 26), letter(more)].iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_called_as_linux_calls_them() {
        let names = [0, 25, 26, 51, 52, 63].map(letters);
        assert_eq!(names, ["a", "z", "aa", "az", "ba", "bl"]);
    }

    #[test]
    fn what_is_said_of_a_boot_comes_last() {
        let mut boot = Boot {
            cmdline: "quiet".into(),
            ..Boot::default()
        };
        let found = store::Boot {
            kernel: "/k".into(),
            initramfs: None,
            partition: Some(1),
        };
        start_from(&mut boot, &found, 1);
        assert_eq!(boot.cmdline, "console=ttyS0 root=/dev/vdb1 rw quiet");
        assert_eq!(boot.kernel, Some("/k".into()));
    }
}
