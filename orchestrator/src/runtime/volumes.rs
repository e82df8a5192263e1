//! Containers' volumes: directories of their own, kept as long as they are declared, and what the host shares.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::container::MountSpec;
use super::{RuntimeError, shared, system};
use crate::firstboot::{Seed, write_files};
use crate::model::Directory as Volume;

/// The folder of what a container is told: no volume has this name.
const TOLD: &str = ".first-boot";

/// The volumes of a host's containers. Its calls block.
#[derive(Clone)]
pub struct Volumes {
    root: PathBuf,
    shared: Vec<PathBuf>,
}

impl Volumes {
    /// Those with directories in `root`. What is below one of `shared` may be mounted as well.
    pub fn new(root: &Path, shared: &[PathBuf]) -> Volumes {
        Volumes {
            root: root.to_owned(),
            shared: shared.to_vec(),
        }
    }

    /// Makes a container's volumes, as far as they are not there.
    pub(super) fn ensure(
        &self,
        uid: &str,
        volumes: &[Volume],
    ) -> Result<Vec<MountSpec>, RuntimeError> {
        let mount = |volume: &Volume| {
            Ok(MountSpec::Bind {
                source: match &volume.source {
                    Some(source) => shared::path(&self.shared, source)?,
                    None => self.own(uid, &volume.name)?,
                },
                target: volume.path.clone(),
                read_only: volume.read_only,
            })
        };
        volumes.iter().map(mount).collect()
    }

    fn own(&self, uid: &str, name: &str) -> Result<PathBuf, RuntimeError> {
        let path = self.root.join(uid).join(name);
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&path);
        made.map_err(system(format!("make the volume {name}")))?;
        Ok(path)
    }

    /// Writes what a container is told of itself; where it is read.
    pub(super) fn tell(&self, uid: &str, seed: &Seed) -> Result<Vec<MountSpec>, RuntimeError> {
        let files = write_files(&self.root.join(uid).join(TOLD), seed)?;
        let mounts = files.into_iter().map(|(source, target)| MountSpec::Bind {
            source,
            target,
            read_only: true,
        });
        Ok(mounts.collect())
    }

    /// Removes a container's own.
    pub(super) fn remove(&self, uid: &str) -> Result<(), RuntimeError> {
        match fs::remove_dir_all(self.root.join(uid)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(system("remove its volumes")(e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(source: &Path) -> Volume {
        Volume {
            name: "data".to_owned(),
            path: "/data".into(),
            source: Some(source.to_owned()),
            read_only: true,
        }
    }

    #[test]
    fn ones_own_stays_until_it_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let volumes = Volumes::new(folder.path(), &[]);
        let own = Volume {
            source: None,
            ..volume(Path::new("/"))
        };
        for _ in 0..2 {
            let mounts = volumes.ensure("uid", std::slice::from_ref(&own));
            assert!(
                matches!(&mounts.expect("made")[..], [MountSpec::Bind { source, .. }] if source.is_dir())
            );
            fs::write(folder.path().join("uid/data/file"), "kept").expect("written");
        }
        volumes.remove("uid").expect("removed");
        volumes.remove("uid").expect("nothing is there");
        assert!(!folder.path().join("uid").exists());
    }
}
