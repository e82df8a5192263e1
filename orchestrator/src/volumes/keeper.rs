//! Looks at volumes, their snapshots and the VMs that have them, and does the next step of each.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::blocks::Blocks;
use super::error::VolumeError;
use super::folder::Folder;
use crate::api::{ApiError, Part, rest};
use crate::model::{
    AGENT, Condition, Disk, MicroVM, Object, Phase, Quantity, SnapshotPhase, Timestamp, Volume,
    VolumePhase, VolumeSnapshot, VolumeSnapshotStatus, VolumeStatus, kind_of,
};

/// Between attempts at what could not be done.
const AGAIN: Duration = Duration::from_secs(1);
/// What volumes take on the disk is looked at this often.
const MEASURE: Duration = Duration::from_secs(15);
/// Changes that come quickly one after the other are looked at together.
const GATHER: Duration = Duration::from_millis(20);

/// Who keeps the volumes of a host.
pub struct Keeper {
    blocks: Arc<Blocks>,
}

/// What is to be done after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing until something changes.
    Wait,
    /// Another look soon.
    Again,
}

/// What a VM does with volumes.
struct Holder {
    object: Object,
    name: String,
    /// It is to run, or runs.
    stays: bool,
    runs: bool,
    /// Its disks that are volumes.
    disks: Vec<Disk>,
}

impl Holder {
    /// Its disk that is the volume of a name, if it wants it.
    fn wants(&self, name: &str) -> Option<&Disk> {
        let is_it = |disk: &&Disk| disk.volume.as_deref() == Some(name);
        self.disks.iter().find(is_it)
    }
}

/// What is told of who has a volume, beside who it is: whether somebody has it, a reason and a message.
type Told = (bool, &'static str, String);

impl Keeper {
    /// That of some volumes.
    pub fn new(blocks: Arc<Blocks>) -> Keeper {
        Keeper { blocks }
    }

    /// Works for ever.
    pub async fn run(self) {
        loop {
            match self.rounds().await {
                Err(VolumeError::Api(ApiError::Gone(_))) => {}
                Err(e) => {
                    log::error!("volumes are looked at again: {}", chain(&e));
                    sleep(AGAIN).await;
                }
                Ok(never) => match never {},
            }
        }
    }

    async fn rounds(&self) -> Result<std::convert::Infallible, VolumeError> {
        let kinds = [
            kind_of::<Volume>(),
            kind_of::<VolumeSnapshot>(),
            kind_of::<MicroVM>(),
        ];
        let (_, mut follow) = self.blocks.objects().follow(&kinds).await?;
        self.clear().await?;
        let mut due = Instant::now();
        loop {
            tokio::select! {
                turns = follow.next() => {
                    if !turns?.is_empty() {
                        due = due.min(Instant::now() + GATHER);
                    }
                }
                () = sleep_until(due) => {
                    due = Instant::now() + match self.look().await? {
                        Next::Again => AGAIN,
                        Next::Wait => MEASURE,
                    };
                }
            }
        }
    }

    /// Removes the folders of what nobody declares any more, and halves of folders.
    async fn clear(&self) -> Result<(), VolumeError> {
        let (volumes, _) = self.blocks.objects().all::<Volume>().await?;
        let (snapshots, _) = self.blocks.objects().all::<VolumeSnapshot>().await?;
        for (root, objects) in self.blocks.roots().into_iter().zip([volumes, snapshots]) {
            let uids: HashSet<String> = objects.into_iter().map(|one| one.meta.uid).collect();
            let root = root.to_owned();
            spawn_blocking(move || clear(&root, &uids)).await??;
        }
        Ok(())
    }

    /// Does the next step of each.
    async fn look(&self) -> Result<Next, VolumeError> {
        let (volumes, _) = self.blocks.objects().all::<Volume>().await?;
        let (snapshots, _) = self.blocks.objects().all::<VolumeSnapshot>().await?;
        if volumes.is_empty() && snapshots.is_empty() {
            return Ok(Next::Wait);
        }
        let (vms, _) = self.blocks.objects().all::<MicroVM>().await?;
        let mut holders = HashMap::new();
        for vm in &vms {
            let Ok(spec) = rest::<MicroVM>(vm) else {
                continue;
            };
            let phase = spec.status.map(|status| status.phase).unwrap_or_default();
            let disks = spec.spec.disks.into_iter();
            let holder = Holder {
                object: vm.clone(),
                name: vm.meta.name.clone(),
                stays: matches!(phase, Phase::Running | Phase::Starting | Phase::Failing),
                runs: phase == Phase::Running,
                disks: disks.filter(|disk| disk.volume.is_some()).collect(),
            };
            holders.insert(vm.meta.uid.clone(), holder);
        }
        let mut next = Next::Wait;
        // Snapshots first, as volumes may begin as one.
        for object in &snapshots {
            next = self.settle(self.snapshot(object).await, next, object)?;
        }
        for object in &volumes {
            next = self.settle(self.volume(object, &holders).await, next, object)?;
        }
        Ok(next)
    }

    /// What comes after the look at one; others do not suffer from what is wrong with it.
    fn settle(
        &self,
        looked: Result<Next, VolumeError>,
        next: Next,
        object: &Object,
    ) -> Result<Next, VolumeError> {
        match looked {
            Ok(Next::Wait) => Ok(next),
            Ok(Next::Again) => Ok(Next::Again),
            // It has changed, or is gone, and is looked at again for that.
            Err(VolumeError::Api(ApiError::NotFound { .. } | ApiError::Conflict { .. })) => {
                Ok(Next::Again)
            }
            Err(e @ VolumeError::Api(_)) => Err(e),
            Err(e) => {
                log::warn!("{}: {}", object.shown(), chain(&e));
                Ok(Next::Again)
            }
        }
    }

    async fn volume(
        &self,
        object: &Object,
        holders: &HashMap<String, Holder>,
    ) -> Result<Next, VolumeError> {
        let volume: Volume = rest(object)?;
        let mut status = volume.status.unwrap_or_default();
        let uid = status.attached_uid.clone();
        if !uid.is_empty() && self.is_free(object, &uid, holders.get(&uid)).await? {
            status.attached_to.clear();
            status.attached_uid.clear();
        }
        let mut told = self.take_back(object, &mut status, holders).await?;
        let held = !status.attached_uid.is_empty();
        let generation = object.meta.generation;
        if object.meta.deletion_timestamp.is_some() {
            if held {
                let what = format!(
                    "microvm `{}` has it: it goes when that one is deleted or stopped, or starts again without it",
                    status.attached_to
                );
                set(&mut status.conditions, false, "InUse", &what, generation);
                tell(&mut status, told, generation);
                self.say_volume(object, status).await?;
                return Ok(Next::Again);
            }
            self.remove(self.blocks.volume(&object.meta.uid)).await?;
            self.blocks.objects().finalized(object, AGENT).await?;
            return Ok(Next::Wait);
        }
        let folder = self.blocks.volume(&object.meta.uid);
        let made = match folder.exists() {
            true => Ok(()),
            false => self.blocks.make(object, volume.spec.clone()).await,
        };
        if let Err(e) = made {
            status.phase = VolumePhase::Pending;
            set(
                &mut status.conditions,
                false,
                "NotMade",
                &chain(&e),
                generation,
            );
            self.say_volume(object, status).await?;
            return Ok(Next::Again);
        }
        self.blocks.host().clone_into(&mut status.host);
        if told.is_none() {
            told = self.hand_out(object, &mut status, holders).await?;
        }
        status.phase = match !status.attached_uid.is_empty() {
            true => VolumePhase::Attached,
            false => VolumePhase::Available,
        };
        set(&mut status.conditions, true, "Made", "", generation);
        let wanted = volume.spec.size.map(Quantity::whole);
        let holder = status.attached_uid.clone();
        let resized = self.blocks.resize(&object.meta.uid, &holder, wanted).await;
        let mut next = match resized {
            Ok(size) => {
                status.size = Some(Quantity::of(size));
                status.conditions.retain(|one| one.kind != "Resized");
                Next::Wait
            }
            Err(e) => {
                let (all, what) = (&mut status.conditions, chain(&e));
                Condition::set(all, "Resized", false, "NotResized", &what, generation);
                Next::Again
            }
        };
        status.used = Some(self.used(folder).await?);
        if told.is_some() {
            next = Next::Again;
        }
        tell(&mut status, told, generation);
        self.say_volume(object, status).await?;
        Ok(next)
    }

    /// Whether the VM that has a volume has no need of it any more, and does not run; it is released then.
    async fn is_free(
        &self,
        object: &Object,
        uid: &str,
        holder: Option<&Holder>,
    ) -> Result<bool, VolumeError> {
        let needs = holder.is_some_and(|vm| vm.stays && vm.wants(&object.meta.name).is_some());
        let turn = self.blocks.turn().await;
        if needs || self.blocks.may_run(&turn, uid) {
            return Ok(false);
        }
        self.blocks.release(object).await?;
        Ok(true)
    }

    /// Takes a volume from whoever has it and does not want it any more. A guest that runs is asked for it.
    async fn take_back(
        &self,
        object: &Object,
        status: &mut VolumeStatus,
        holders: &HashMap<String, Holder>,
    ) -> Result<Option<Told>, VolumeError> {
        let name = &object.meta.name;
        let holder = holders.get(&status.attached_uid);
        let Some(holder) = holder.filter(|vm| vm.wants(name).is_none()) else {
            return Ok(None);
        };
        let at_next_start = |why: &str| {
            let what = format!(
                "microvm `{}` does not want it any more, and gives it back at its next start or end: {why}",
                holder.name
            );
            Ok(Some((true, "DetachesAtNextStart", what)))
        };
        if !holder.runs {
            return at_next_start("it does not run now");
        }
        // Once is enough: the monitor keeps in mind what it was asked for.
        let ask = !status
            .conditions
            .iter()
            .any(|one| one.reason == "Detaching");
        match self.blocks.unplug(&status.attached_uid, object, ask).await {
            Ok(true) => {
                status.attached_to.clear();
                status.attached_uid.clear();
                Ok(None)
            }
            Ok(false) => {
                let what = format!(
                    "microvm `{}` does not want it any more, and its guest is asked for it: it has it until it has \
                     given it back, or its end",
                    holder.name
                );
                Ok(Some((true, "Detaching", what)))
            }
            Err(e @ VolumeError::Api(_)) => Err(e),
            Err(e) => at_next_start(&chain(&e)),
        }
    }

    /// Gives a volume that nobody has to a VM that runs and wants it.
    async fn hand_out(
        &self,
        object: &Object,
        status: &mut VolumeStatus,
        holders: &HashMap<String, Holder>,
    ) -> Result<Option<Told>, VolumeError> {
        let name = &object.meta.name;
        let mut waiting = holders.iter().filter_map(|(uid, vm)| {
            let is_other = *uid != status.attached_uid && vm.runs;
            let is_here = vm.object.meta.namespace == object.meta.namespace;
            let disk = vm.wants(name).filter(|_| is_other && is_here)?;
            Some((uid, vm, disk))
        });
        let Some((uid, vm, disk)) = waiting.next() else {
            return Ok(None);
        };
        let without = format!("microvm `{}` runs without it", vm.name);
        if !status.attached_uid.is_empty() {
            let what = format!(
                "{without}, and gets it when microvm `{}` has given it back",
                status.attached_to
            );
            return Ok(Some((true, "Wanted", what)));
        }
        match self.blocks.plug(&vm.object, disk, name).await {
            Ok(()) => {
                status.attached_to.clone_from(&vm.name);
                status.attached_uid.clone_from(uid);
                Ok(None)
            }
            Err(e @ VolumeError::Api(_)) => Err(e),
            Err(e) => {
                let what = format!("{without}, and gets it at its next start: {}", chain(&e));
                Ok(Some((false, "AttachesAtNextStart", what)))
            }
        }
    }

    async fn snapshot(&self, object: &Object) -> Result<Next, VolumeError> {
        let snapshot: VolumeSnapshot = rest(object)?;
        let mut status = snapshot.status.unwrap_or_default();
        let folder = self.blocks.snapshot(&object.meta.uid);
        let generation = object.meta.generation;
        if object.meta.deletion_timestamp.is_some() {
            self.remove(folder).await?;
            self.blocks.objects().finalized(object, AGENT).await?;
            return Ok(Next::Wait);
        }
        if !folder.exists()
            && let Err(e) = self.take(object, &snapshot.spec.volume).await
        {
            set(
                &mut status.conditions,
                false,
                "NotTaken",
                &chain(&e),
                generation,
            );
            self.say_snapshot(object, status).await?;
            return Ok(Next::Again);
        }
        if status.phase != SnapshotPhase::Ready {
            status.phase = SnapshotPhase::Ready;
            status.taken_at = Some(Timestamp::now());
            self.blocks.host().clone_into(&mut status.host);
            set(&mut status.conditions, true, "Taken", "", generation);
            let looked = folder.clone();
            let size = spawn_blocking(move || looked.size(&looked.read()?)).await??;
            status.size = Some(Quantity::of(size));
        }
        status.used = Some(self.used(folder).await?);
        self.say_snapshot(object, status).await?;
        Ok(Next::Wait)
    }

    /// Takes a snapshot of a volume as it is now.
    async fn take(&self, object: &Object, volume: &str) -> Result<(), VolumeError> {
        let kind = kind_of::<Volume>();
        let wait = |what: String| VolumeError::Waits(what);
        let objects = self.blocks.objects();
        let found = match objects.get(kind, &object.meta.namespace, volume).await {
            Ok(found) => found,
            Err(ApiError::NotFound { .. }) => {
                return Err(wait(format!(
                    "there is no volume `{volume}` in the namespace"
                )));
            }
            Err(e) => return Err(e.into()),
        };
        if !self.blocks.volume(&found.meta.uid).exists() {
            return Err(wait(format!("volume `{volume}` is not made yet")));
        }
        let status = rest::<Volume>(&found)?.status.unwrap_or_default();
        let (of, uid) = (&found.meta.uid, &object.meta.uid);
        self.blocks.freeze(of, &status.attached_uid, uid).await
    }

    async fn remove(&self, folder: Folder) -> Result<(), VolumeError> {
        spawn_blocking(move || folder.remove()).await?
    }

    async fn used(&self, folder: Folder) -> Result<Quantity, VolumeError> {
        let used = spawn_blocking(move || folder.used()).await??;
        Ok(Quantity::of(used))
    }

    /// Writes a volume's status, if it is another. Who has it, others say.
    async fn say_volume(&self, object: &Object, mut status: VolumeStatus) -> Result<(), ApiError> {
        status.observed_generation = object.meta.generation;
        self.say(object, |now| {
            let now: VolumeStatus = serde_json::from_value(now.clone()).unwrap_or_default();
            let mut new = status.clone();
            if (&now.attached_uid, now.phase) != (&new.attached_uid, new.phase)
                && new.phase != VolumePhase::Pending
            {
                new.phase = match now.attached_uid.as_str() {
                    "" => VolumePhase::Available,
                    _ => VolumePhase::Attached,
                };
            }
            new.attached_to = now.attached_to;
            new.attached_uid = now.attached_uid;
            serde_json::to_value(new).unwrap_or_default()
        })
        .await
    }

    async fn say_snapshot(
        &self,
        object: &Object,
        mut status: VolumeSnapshotStatus,
    ) -> Result<(), ApiError> {
        status.observed_generation = object.meta.generation;
        let status = serde_json::to_value(status).unwrap_or_default();
        self.say(object, |_| status.clone()).await
    }

    async fn say(&self, object: &Object, status: impl Fn(&Value) -> Value) -> Result<(), ApiError> {
        let old = object.body.get("status").unwrap_or(&Value::Null);
        if status(old) == *old {
            return Ok(());
        }
        let change = |old: &Object| {
            let mut new = old.clone();
            new.meta.resource_version.clear();
            new.meta.uid.clone_from(&object.meta.uid);
            let now = old.body.get("status").unwrap_or(&Value::Null);
            new.body.insert("status".to_owned(), status(now));
            Ok(new)
        };
        let (kind, meta) = (object.kind, &object.meta);
        let (objects, part) = (self.blocks.objects(), Part::Status);
        let changed = objects.change(kind, &meta.namespace, &meta.name, part, false, change);
        changed.await.map(drop)
    }
}

fn set(all: &mut Vec<Condition>, good: bool, reason: &str, message: &str, generation: u64) {
    Condition::set(all, "Ready", good, reason, message, generation);
}

/// Says who is to give a volume back or gets it, or that all is as it should be.
fn tell(status: &mut VolumeStatus, told: Option<Told>, generation: u64) {
    let all = &mut status.conditions;
    match told {
        None => all.retain(|one| one.kind != "Attached"),
        Some((attached, reason, message)) => {
            Condition::set(all, "Attached", attached, reason, &message, generation);
        }
    }
}

/// Removes folders in `root` that are of none of `uids`.
fn clear(root: &Path, uids: &HashSet<String>) -> Result<(), VolumeError> {
    let entries = std::fs::read_dir(root).map_err(super::error::system("read", root))?;
    for entry in entries {
        let entry = entry.map_err(super::error::system("read", root))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !uids.contains(&name) {
            log::info!("{} is of nobody: it is removed", entry.path().display());
            Folder::new(entry.path()).remove()?;
        }
    }
    Ok(())
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
