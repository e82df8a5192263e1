//! The volumes of a host: one VM at a time has each, and whoever changes one goes by the VM's monitor as long as that
//! has it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use skerry_images::chain::LayerSpec;
use skerry_vmm_api::client::Client;
use skerry_vmm_api::requests::{DiskInfo, VmDiskSnapshot};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::error::VolumeError;
use super::folder::{Base, Folder, MOST_LAYERS};
use crate::api::{ApiError, Objects, Part, rest};
use crate::model::{MicroVmSpec, Object, Volume, VolumePhase, VolumeSpec, kind_of};

/// How long a monitor may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The layers of a VM's disks that are volumes, by the disks' names; the top first.
pub type Chains = BTreeMap<String, Vec<LayerSpec>>;

/// Finds a VM's monitor by the VM's uid, if one has its folder: the monitor's socket.
type Finder = Box<dyn Fn(&str) -> Option<PathBuf> + Send + Sync>;

/// All volumes of a host.
pub struct Blocks {
    objects: Objects,
    host: String,
    volumes: PathBuf,
    snapshots: PathBuf,
    monitor: Finder,
    /// VMs that were started here and are not known to have ended. Whoever has it changes who has a volume, or what
    /// its layers are.
    turn: Mutex<HashSet<String>>,
}

/// The turn to change volumes.
pub(super) type Turn<'a> = MutexGuard<'a, HashSet<String>>;

impl Blocks {
    /// Those of a host, with their folders below `state`. `monitor` tells the socket of the monitor that has a VM's
    /// folder, by the VM's uid.
    pub fn new(
        objects: Objects,
        host: &str,
        state: &Path,
        monitor: impl Fn(&str) -> Option<PathBuf> + Send + Sync + 'static,
    ) -> Blocks {
        Blocks {
            objects,
            host: host.to_owned(),
            volumes: state.join("volumes"),
            snapshots: state.join("volume-snapshots"),
            monitor: Box::new(monitor),
            turn: Mutex::default(),
        }
    }

    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Where volumes' folders are, and snapshots'.
    pub(super) fn roots(&self) -> [&Path; 2] {
        [&self.volumes, &self.snapshots]
    }

    /// A volume's folder.
    pub(super) fn volume(&self, uid: &str) -> Folder {
        Folder::new(self.volumes.join(uid))
    }

    /// A snapshot's folder.
    pub(super) fn snapshot(&self, uid: &str) -> Folder {
        Folder::new(self.snapshots.join(uid))
    }

    /// The turn to change something.
    pub(super) async fn turn(&self) -> Turn<'_> {
        self.turn.lock().await
    }

    /// Whether a VM may be running.
    pub(super) fn may_run(&self, turn: &Turn<'_>, vm: &str) -> bool {
        !vm.is_empty() && (turn.contains(vm) || (self.monitor)(vm).is_some())
    }

    /// Gives a VM that is about to start all volumes of its disks, or none.
    ///
    /// # Errors
    /// [`VolumeError::Waits`] if one is not there yet, or somebody else has it.
    pub async fn claim(&self, vm: &Object, spec: &MicroVmSpec) -> Result<Chains, VolumeError> {
        let named = spec.disks.iter();
        let named = named.filter_map(|disk| Some((disk.name.clone(), disk.volume.clone()?)));
        let mut wanted = Vec::new();
        for (disk, name) in named {
            wanted.push((disk, name));
        }
        let mut chains = Chains::new();
        if wanted.is_empty() {
            return Ok(chains);
        }
        let mut turn = self.turn().await;
        let mut found = Vec::new();
        for (disk, name) in wanted {
            found.push((disk, self.free(vm, &name).await?));
        }
        for (_, object) in &found {
            self.give(object, vm).await?;
        }
        turn.insert(vm.meta.uid.clone());
        for (disk, object) in found {
            let folder = self.volume(&object.meta.uid);
            let specs = spawn_blocking(move || {
                let layers = folder.settled()?;
                Ok::<_, VolumeError>(folder.specs(&layers))
            });
            chains.insert(disk, specs.await??);
        }
        Ok(chains)
    }

    /// The monitor of a VM that runs.
    pub(super) fn client(&self, turn: &Turn<'_>, vm: &str) -> Result<Client, VolumeError> {
        let wait = || VolumeError::Waits("its VM is starting, or ending".to_owned());
        let socket = (self.monitor)(vm).filter(|_| self.may_run(turn, vm));
        Ok(Client::new(&socket.ok_or_else(wait)?))
    }

    /// A volume that a VM can have.
    pub(super) async fn free(&self, vm: &Object, name: &str) -> Result<Object, VolumeError> {
        let wait = |what: String| Err(VolumeError::Waits(what));
        let found = self
            .objects
            .get(kind_of::<Volume>(), &vm.meta.namespace, name);
        let object = match found.await {
            Ok(object) => object,
            Err(ApiError::NotFound { .. }) => {
                return wait(format!(
                    "there is no volume `{name}` in the namespace: declare it"
                ));
            }
            Err(e) => return Err(e.into()),
        };
        let status = rest::<Volume>(&object)?.status.unwrap_or_default();
        let has = !status.attached_uid.is_empty();
        if has && status.attached_uid != vm.meta.uid {
            let holder = &status.attached_to;
            return wait(format!(
                "volume `{name}` is attached to microvm `{holder}`, and one VM at a time can have it: stop that one, \
                 or take the volume out of its disks"
            ));
        }
        if object.meta.deletion_timestamp.is_some() && !has {
            return wait(format!("volume `{name}` is being deleted"));
        }
        if !self.volume(&object.meta.uid).exists() {
            return wait(format!(
                "volume `{name}` is not made yet: `skerry describe volume {name}` says why"
            ));
        }
        Ok(object)
    }

    /// Says that a VM has a volume.
    pub(super) async fn give(&self, volume: &Object, vm: &Object) -> Result<(), ApiError> {
        self.attach(volume, &vm.meta.name, &vm.meta.uid).await
    }

    /// Says that nobody has a volume.
    pub(super) async fn release(&self, volume: &Object) -> Result<(), ApiError> {
        self.attach(volume, "", "").await
    }

    async fn attach(&self, volume: &Object, name: &str, uid: &str) -> Result<(), ApiError> {
        let change = |old: &Object| {
            let mut status = rest::<Volume>(old)?.status.unwrap_or_default();
            name.clone_into(&mut status.attached_to);
            uid.clone_into(&mut status.attached_uid);
            status.phase = match uid {
                "" => VolumePhase::Available,
                _ => VolumePhase::Attached,
            };
            let mut new = old.clone();
            new.meta.resource_version.clear();
            new.meta.uid.clone_from(&volume.meta.uid);
            let status = serde_json::to_value(&status).unwrap_or_default();
            new.body.insert("status".to_owned(), status);
            Ok(new)
        };
        let (kind, meta) = (volume.kind, &volume.meta);
        let (objects, part) = (&self.objects, Part::Status);
        let changed = objects.change(kind, &meta.namespace, &meta.name, part, false, change);
        changed.await.map(drop)
    }

    /// A VM has ended: its monitor is gone.
    pub async fn ended(&self, vm: &str) {
        self.turn().await.remove(vm);
    }

    /// Makes a volume, with what it begins as.
    pub(super) async fn make(&self, object: &Object, spec: VolumeSpec) -> Result<(), VolumeError> {
        let folder = self.volume(&object.meta.uid);
        let size = spec.size.map(|size| size.whole());
        let source = spec.source.unwrap_or_default();
        let snapshot = match source.volume_snapshot.as_str() {
            "" => None,
            name => Some(self.ready_snapshot(&object.meta.namespace, name).await?),
        };
        let base = source.image.map(|path| Base {
            path,
            format: source.format,
        });
        spawn_blocking(move || folder.make(size, base, snapshot.as_ref())).await?
    }

    async fn ready_snapshot(&self, namespace: &str, name: &str) -> Result<Folder, VolumeError> {
        let kind = kind_of::<crate::model::VolumeSnapshot>();
        let object = match self.objects.get(kind, namespace, name).await {
            Ok(object) => object,
            Err(ApiError::NotFound { .. }) => {
                let what = format!("there is no volume snapshot `{name}` in the namespace");
                return Err(VolumeError::Waits(what));
            }
            Err(e) => return Err(e.into()),
        };
        let folder = self.snapshot(&object.meta.uid);
        match folder.exists() {
            true => Ok(folder),
            false => Err(VolumeError::Waits(format!(
                "volume snapshot `{name}` is not taken yet"
            ))),
        }
    }

    /// Takes a snapshot of a volume that `holder` has, or nobody if it is empty.
    pub(super) async fn freeze(
        &self,
        volume: &str,
        holder: &str,
        snapshot: &str,
    ) -> Result<(), VolumeError> {
        let turn = self.turn().await;
        let (folder, kept) = (self.volume(volume), self.snapshot(snapshot));
        let runs = self.may_run(&turn, holder);
        let noted = folder.clone();
        let mut layers = spawn_blocking(move || {
            let mut layers = noted.read()?;
            if layers.own.len() >= MOST_LAYERS {
                return Err(VolumeError::Waits(format!(
                    "the volume has {MOST_LAYERS} layers, as many as it may have: attach an empty volume to its VM \
                     beside it, and copy what is in it there"
                )));
            }
            if layers.next.is_none() {
                layers.next = Some(layers.name());
                noted.write(&layers)?;
            }
            Ok(layers)
        })
        .await??;
        if runs {
            self.freeze_live(&folder, holder, &layers).await?;
        }
        spawn_blocking(move || {
            if !runs {
                folder.put_on_top(&layers)?;
            }
            kept.keep(&folder, &layers)?;
            folder.note_top(&mut layers)
        })
        .await?
    }

    /// Lets a VM's monitor put the layer on top that is noted, unless it has done so already.
    async fn freeze_live(
        &self,
        folder: &Folder,
        holder: &str,
        layers: &super::folder::Layers,
    ) -> Result<(), VolumeError> {
        let (Some(next), Some(top)) = (&layers.next, layers.own.first()) else {
            return Ok(());
        };
        let (path, top) = (folder.path(next), folder.path(top));
        let (client, disk) = self.disk(holder, &[&path, &top]).await?;
        if disk.layers.first().is_some_and(|layer| layer.path == path) {
            return Ok(());
        }
        // Nothing came of an attempt before: the monitor does one thing after the other.
        if let Err(e) = std::fs::remove_file(&path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            return Err(super::error::system("remove", &path)(e));
        }
        let request = VmDiskSnapshot { id: disk.id, path };
        let taken = timeout(PATIENCE, client.disk_snapshot(&request)).await;
        taken.map_err(|_| VolumeError::Silent)??;
        Ok(())
    }

    /// The disk of a VM whose top layer is one of `tops`, and its monitor.
    async fn disk(&self, vm: &str, tops: &[&PathBuf]) -> Result<(Client, DiskInfo), VolumeError> {
        let wait = || VolumeError::Waits("its VM is starting, or ending".to_owned());
        let socket = (self.monitor)(vm).ok_or_else(wait)?;
        let client = Client::new(&socket);
        let disks = timeout(PATIENCE, client.disks()).await;
        let disks = disks.map_err(|_| VolumeError::Silent)??;
        let is_it = |disk: &DiskInfo| {
            let top = disk.layers.first();
            top.is_some_and(|top| tops.iter().any(|path| **path == top.path))
        };
        let disk = disks.into_iter().find(is_it).ok_or_else(wait)?;
        Ok((client, disk))
    }

    /// The size of a volume, after it was made as large as `wanted` if it was smaller.
    pub(super) async fn resize(
        &self,
        volume: &str,
        holder: &str,
        wanted: Option<u64>,
    ) -> Result<u64, VolumeError> {
        let turn = self.turn().await;
        let folder = self.volume(volume);
        let (runs, looked) = (self.may_run(&turn, holder), folder.clone());
        let (layers, has) = spawn_blocking(move || {
            let layers = looked.read()?;
            let size = looked.size(&layers)?;
            Ok::<_, VolumeError>((layers, size))
        })
        .await??;
        let wanted = wanted.map_or(0, |size| size.next_multiple_of(512));
        if wanted <= has {
            return Ok(has);
        }
        if !runs {
            spawn_blocking(move || folder.grow(wanted)).await??;
            return Ok(wanted);
        }
        let tops = layers.own.iter().take(1).chain(&layers.next);
        let tops: Vec<PathBuf> = tops.map(|name| folder.path(name)).collect();
        let tops: Vec<&PathBuf> = tops.iter().collect();
        let (client, disk) = self.disk(holder, &tops).await?;
        if disk.size < wanted {
            let resized = timeout(PATIENCE, client.resize_disk(&disk.id, wanted)).await;
            resized.map_err(|_| VolumeError::Silent)??;
        }
        Ok(wanted)
    }
}
