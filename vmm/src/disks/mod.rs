//! The images behind a machine's disks, and what is done with them while the guest runs.

mod files;
mod jobs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use skerry_devices::virtio::blk::run_on;
use skerry_devices::worker::WorkerHandle;
use skerry_images::DirtyMap;
use skerry_images::chain::{Layer, Stack, Volume, live};
use skerry_images::io::{Port, block_on};
use skerry_vmm_api::config::DiskConfig;
use skerry_vmm_api::requests::*;
use skerry_vmm_api::snapshots::DiskOverlay;
use thiserror::Error;

use files::Opening;
pub use files::{create_overlay_of, top_layer};
use jobs::Jobs;

/// What the API asks about disks.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum DiskRequest {
    List,
    Resize(VmResizeDisk),
    Snapshot(VmDiskSnapshot),
    Commit(VmDiskCommit),
    Stream(VmDiskStream),
    Backup(VmDiskBackup),
    Jobs,
    Cancel(VmDiskCancel),
    BitmapAdd(VmDiskBitmap),
    BitmapClear(VmDiskBitmap),
    BitmapRemove(VmDiskBitmap),
}

impl DiskRequest {
    /// Whether the disks' layers, sizes or bitmaps may be others afterwards, or soon.
    pub fn changes_disks(&self) -> bool {
        !matches!(self, Self::List | Self::Jobs | Self::Cancel(_))
    }
}

/// Why work on a disk was refused.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum DiskError {
    #[error("the VM has no disk called `{0}`: see vm.disks for the names")]
    NoDisk(String),
    #[error("there is no disk job {0}: see vm.disk-jobs for the numbers")]
    NoJob(u64),
    #[error("disk `{id}` has no bitmap called `{name}`: see vm.disks for the names")]
    NoBitmap { id: String, name: String },
    #[error("disk `{id}` has a bitmap called `{name}` already: give another name")]
    BitmapExists { id: String, name: String },
    #[error("job {job} is under way on disk `{id}`: wait for it, or end it with vm.disk-cancel")]
    Busy { id: String, job: u64 },
    #[error("disk `{id}`: {what}")]
    Invalid { id: String, what: String },
    #[error("disk {path} has {size} bytes, which is {problem}")]
    Size {
        path: PathBuf,
        size: u64,
        problem: &'static str,
    },
    #[error(transparent)]
    Image(#[from] skerry_images::Error),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
}

type Answer = Result<Option<Value>, DiskError>;

/// A disk in use.
struct Disk {
    volume: Arc<Volume>,
    opening: Opening,
}

/// A new top layer that is about to be put on a disk.
pub struct Frozen {
    id: String,
    path: PathBuf,
    layer: Layer,
}

impl Frozen {
    /// Nothing comes of it.
    pub fn remove(self) {
        drop(self.layer);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// All disks of a machine.
#[derive(Default)]
pub struct Disks {
    disks: BTreeMap<String, Disk>,
    jobs: Jobs,
    /// Another process may have them, nothing is written to them: how each was when that began.
    let_go: Option<BTreeMap<String, files::Stamp>>,
}

/// Granules of a bitmap unless something else is asked for, and of backups: 64 KiB.
const GRANULARITY: u64 = 64 << 10;

impl Disks {
    /// Opens a disk's layers.
    pub fn open(&mut self, config: &DiskConfig) -> Result<Arc<Volume>, DiskError> {
        if self.let_go.is_some() {
            return Err(DiskError::Invalid {
                id: config.id.clone().unwrap_or_default(),
                what: "the VM may run elsewhere, whose disks are not this monitor's now".into(),
            });
        }
        let opening = Opening::of(config);
        let port = Port::new();
        let stack = block_on(&port, opening.open(&port, config))?;
        let volume = Volume::new(stack, opening.cache());
        let size = volume.size();
        let problem = if size < 512 {
            Some("too small for one sector of 512: make it larger with `truncate -s`")
        } else if !size.is_multiple_of(volume.block_size().into()) {
            Some("not a whole number of blocks: make it larger with `truncate -s`")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(DiskError::Size {
                path: config.path.clone(),
                size,
                problem,
            });
        }
        if !config.readonly {
            block_on(&port, volume.load_bitmaps(&port))?;
        }
        let id = config.id.clone().unwrap_or_default();
        let disk = Disk {
            volume: volume.clone(),
            opening,
        };
        self.disks.insert(id, disk);
        Ok(volume)
    }

    /// Fails if something long is under way on a disk.
    pub fn check_idle(&self, id: &str) -> Result<(), DiskError> {
        match self.jobs.running(id) {
            Some(job) => {
                let id = id.to_owned();
                Err(DiskError::Busy { id, job })
            }
            None => Ok(()),
        }
    }

    /// Whether another process may have the disks.
    pub fn are_let_go(&self) -> bool {
        self.let_go.is_some()
    }

    /// Closes a disk whose queues are gone, and gives its locks up. One that another process serves is none
    /// of these.
    pub fn remove(&mut self, id: &str) {
        self.jobs.end_of(id);
        let Some(disk) = self.disks.remove(id) else {
            return;
        };
        close(id, &disk.volume);
        for layer in disk.volume.view().stack.layers() {
            // Somebody may still hold the layer for a moment.
            if let Err(e) = files::unlock(layer) {
                log::warn!("disk {id}: {e}");
            }
        }
    }

    /// Does or begins what is asked. `changed` tells a disk's driver that its size changed.
    pub fn serve(
        &mut self,
        request: DiskRequest,
        worker: &WorkerHandle,
        changed: impl Fn(&str),
    ) -> Answer {
        self.jobs.reap(worker);
        match request {
            DiskRequest::List => answer(self.disks.iter().map(info).collect::<Vec<_>>()),
            DiskRequest::Jobs => answer(self.jobs.list()),
            DiskRequest::Cancel(cancel) => {
                if self.jobs.cancel(cancel.job) {
                    Ok(None)
                } else {
                    Err(DiskError::NoJob(cancel.job))
                }
            }
            DiskRequest::Resize(resize) => self.resize(resize, worker, changed),
            DiskRequest::Snapshot(snapshot) => self.snapshot(snapshot, worker),
            DiskRequest::Commit(commit) => self.commit(commit, worker),
            DiskRequest::Stream(stream) => self.stream(stream, worker),
            DiskRequest::Backup(backup) => self.backup(backup, worker),
            DiskRequest::BitmapAdd(bitmap) => self.bitmap_add(bitmap, worker),
            DiskRequest::BitmapClear(bitmap) => {
                self.bitmap(&bitmap)?.clear();
                Ok(None)
            }
            DiskRequest::BitmapRemove(bitmap) => {
                let volume = self.idle(&bitmap.id)?.volume.clone();
                wait_on(worker, move |port| {
                    Box::pin(async move { volume.remove_bitmap(&port, &bitmap.name).await })
                })?;
                Ok(None)
            }
        }
    }

    fn disk(&mut self, id: &str) -> Result<&mut Disk, DiskError> {
        let disk = self.disks.get_mut(id);
        disk.ok_or_else(|| DiskError::NoDisk(id.to_owned()))
    }

    /// The disk, if nothing long is under way on it.
    fn idle(&mut self, id: &str) -> Result<&mut Disk, DiskError> {
        self.check_idle(id)?;
        self.disk(id)
    }

    fn bitmap(&mut self, bitmap: &VmDiskBitmap) -> Result<Arc<DirtyMap>, DiskError> {
        let view = self.disk(&bitmap.id)?.volume.view();
        let found = view.bitmaps.iter().find(|b| b.name() == bitmap.name);
        found
            .map(|b| b.map().clone())
            .ok_or_else(|| DiskError::NoBitmap {
                id: bitmap.id.clone(),
                name: bitmap.name.clone(),
            })
    }

    fn resize(
        &mut self,
        resize: VmResizeDisk,
        worker: &WorkerHandle,
        changed: impl Fn(&str),
    ) -> Answer {
        let disk = self.idle(&resize.id)?;
        let invalid = |what: String| DiskError::Invalid {
            id: resize.id.clone(),
            what,
        };
        let block = u64::from(disk.volume.block_size());
        let size = resize.desired_size;
        if size == 0 || !size.is_multiple_of(block) {
            return Err(invalid(format!(
                "the size {size} is not a multiple of {block}"
            )));
        }
        if disk.volume.readonly() {
            return Err(invalid("it is read-only, so its size stays".into()));
        }
        let volume = disk.volume.clone();
        wait_on(worker, move |port| {
            Box::pin(async move { volume.resize(&port, size).await })
        })?;
        changed(&resize.id);
        Ok(None)
    }

    fn snapshot(&mut self, snapshot: VmDiskSnapshot, worker: &WorkerHandle) -> Answer {
        let disk = self.idle(&snapshot.id)?;
        if disk.volume.readonly() {
            return Err(DiskError::Invalid {
                id: snapshot.id,
                what: "it is read-only, so a new layer would never be written".into(),
            });
        }
        let overlay = disk.opening.create_overlay(&disk.volume, &snapshot.path)?;
        let volume = disk.volume.clone();
        let put = wait_on(worker, move |port| {
            Box::pin(async move { live::put_on_top(&port, &volume, overlay, || Ok(())).await })
        });
        match put {
            Ok(pause) => answer(DiskSnapshotInfo {
                layers: layers(&disk.volume),
                pause_us: pause.as_micros() as u64,
            }),
            Err(e) => {
                let _ = std::fs::remove_file(&snapshot.path);
                Err(e)
            }
        }
    }

    /// Makes new top layers for disks that are about to be frozen, and writes what can be written before
    /// that. Fails, and leaves nothing, if one of them cannot be frozen.
    pub fn prepare_freeze(
        &mut self,
        overlays: Vec<DiskOverlay>,
        worker: &WorkerHandle,
    ) -> Result<Vec<Frozen>, DiskError> {
        self.jobs.reap(worker);
        let ids: Vec<String> = self.disks.keys().cloned().collect();
        for id in ids {
            let volume = self.idle(&id)?.volume.clone();
            wait_on(worker, move |port| {
                Box::pin(async move { volume.view().stack.flush(&port).await })
            })?;
        }
        let mut made = Vec::new();
        for DiskOverlay { id, path } in overlays {
            let layer = self
                .disk(&id)
                .and_then(|disk| disk.opening.create_overlay(&disk.volume, &path));
            match layer {
                Ok(layer) => made.push(Frozen { id, path, layer }),
                Err(e) => {
                    made.into_iter().for_each(Frozen::remove);
                    return Err(e);
                }
            }
        }
        Ok(made)
    }

    /// Freezes disks by their new layers. Their queues are stopped.
    pub fn freeze(&mut self, frozen: Vec<Frozen>, worker: &WorkerHandle) -> Result<(), DiskError> {
        let mut left = frozen.into_iter();
        while let Some(Frozen { id, path, layer }) = left.next() {
            let volume = self.disk(&id)?.volume.clone();
            let put = wait_on(worker, move |port| {
                Box::pin(async move { live::put_on_top(&port, &volume, layer, || Ok(())).await })
            });
            if let Err(e) = put {
                let _ = std::fs::remove_file(&path);
                left.for_each(Frozen::remove);
                return Err(e);
            }
        }
        Ok(())
    }

    /// A disk with bitmaps, if there is one.
    pub fn with_bitmaps(&self) -> Option<&str> {
        let has = |(_, disk): &(&String, &Disk)| !disk.volume.view().bitmaps.is_empty();
        self.disks.iter().find(has).map(|(id, _)| id.as_str())
    }

    /// Lets another process have the disks: all of them is on their files, and nobody has their locks. Their
    /// queues are stopped.
    pub fn let_go(&mut self, worker: &WorkerHandle) -> Result<(), DiskError> {
        self.prepare_freeze(Vec::new(), worker)?;
        let mut stamps = BTreeMap::new();
        for (id, disk) in &self.disks {
            let stamp = files::stamp(disk.volume.view().stack.top())?;
            stamps.insert(id.clone(), stamp);
        }
        self.let_go = Some(stamps);
        for disk in self.disks.values() {
            for layer in disk.volume.view().stack.layers() {
                files::unlock(layer)?;
            }
        }
        Ok(())
    }

    /// They are another process's for good: nothing is written to them any more.
    pub fn forget(&mut self) {
        self.disks.clear();
    }

    /// Takes them back, if they were let go, nobody else has them, and nobody wrote to them: what is known of
    /// them here would be wrong.
    pub fn take_back(&mut self) -> Result<(), DiskError> {
        let Some(stamps) = &self.let_go else {
            return Ok(());
        };
        for disk in self.disks.values() {
            let written = !disk.volume.readonly();
            for (index, layer) in disk.volume.view().stack.layers().iter().enumerate() {
                files::lock(layer, written && index == 0)?;
            }
        }
        for (id, disk) in &self.disks {
            if stamps.get(id) != Some(&files::stamp(disk.volume.view().stack.top())?) {
                return Err(DiskError::Invalid {
                    id: id.clone(),
                    what: "another process wrote to it meanwhile: the guest may have run there"
                        .into(),
                });
            }
        }
        self.let_go = None;
        Ok(())
    }

    fn commit(&mut self, commit: VmDiskCommit, worker: &WorkerHandle) -> Answer {
        let disk = self.idle(&commit.id)?;
        let stack = disk.volume.view().stack.clone();
        let index = commit.layer;
        if index + 1 >= stack.layers().len() {
            return Err(DiskError::Invalid {
                id: commit.id,
                what: format!(
                    "layer {index} has none below it: there are {} layers",
                    stack.layers().len()
                ),
            });
        }
        if disk.volume.readonly() {
            return Err(DiskError::Invalid {
                id: commit.id,
                what: "it is read-only, so its layers stay".into(),
            });
        }
        let old_below = &stack.layers()[index + 1];
        let below = disk.opening.reopen(old_below)?;
        let above = match index {
            0 => None,
            1 => Some(stack.top().clone()),
            _ => match disk.opening.reopen(&stack.layers()[index - 1]) {
                Ok(above) => Some(above),
                Err(e) => {
                    drop(below);
                    files::lock_again(old_below)?;
                    return Err(e.into());
                }
            },
        };
        let volume = disk.volume.clone();
        let job = self
            .jobs
            .start(&commit.id, "commit", worker, move |port, progress| {
                Box::pin(async move {
                    match above {
                        None => live::commit_active(&port, &volume, below, &progress).await,
                        Some(above) => {
                            live::commit(&port, &volume, index, above, below, &progress).await
                        }
                    }
                })
            });
        answer(job?)
    }

    fn stream(&mut self, stream: VmDiskStream, worker: &WorkerHandle) -> Answer {
        let disk = self.idle(&stream.id)?;
        let layers = disk.volume.view().stack.layers().len();
        let base = stream.base.unwrap_or(layers);
        let what = if disk.volume.readonly() {
            Some("it is read-only, so its layers stay".to_owned())
        } else if base < 2 || base > layers {
            Some(format!(
                "nothing lies between the top and layer {base}: there are {layers} layers"
            ))
        } else {
            None
        };
        if let Some(what) = what {
            let id = stream.id;
            return Err(DiskError::Invalid { id, what });
        }
        let volume = disk.volume.clone();
        let job = self
            .jobs
            .start(&stream.id, "stream", worker, move |port, progress| {
                Box::pin(async move { live::stream(&port, &volume, base, &progress).await })
            });
        answer(job?)
    }

    fn backup(&mut self, backup: VmDiskBackup, worker: &WorkerHandle) -> Answer {
        let bitmap = match &backup.bitmap {
            Some(name) => Some(self.bitmap(&VmDiskBitmap {
                id: backup.id.clone(),
                name: name.clone(),
                granularity: None,
            })?),
            None => None,
        };
        let disk = self.idle(&backup.id)?;
        let target =
            disk.opening
                .create_backup(&disk.volume, &backup.path, backup.backing.as_deref())?;
        let granularity = bitmap.as_ref().map_or(GRANULARITY, |b| b.granularity());
        let volume = disk.volume.clone();
        let mut layers = vec![target];
        // It lies on the backup before it, so it must say what is zeroes now.
        layers.extend(backup.backing.is_some().then(Layer::nothing));
        let target = Stack::new(layers);
        let complete = files::complete_backup(&backup.path)?;
        let job = self
            .jobs
            .start(&backup.id, "backup", worker, move |port, progress| {
                Box::pin(async move {
                    let bits = granularity.ilog2();
                    let bitmap = bitmap.as_deref();
                    live::backup(&port, &volume, target, bits, bitmap, &progress, complete).await
                })
            })?;
        self.jobs
            .when_done(job.job, files::remove_partial(backup.path));
        answer(job)
    }

    fn bitmap_add(&mut self, bitmap: VmDiskBitmap, worker: &WorkerHandle) -> Answer {
        let granularity = bitmap.granularity.unwrap_or(GRANULARITY);
        if !granularity.is_power_of_two() || !(512..=2 << 30).contains(&granularity) {
            return Err(DiskError::Invalid {
                id: bitmap.id,
                what: format!(
                    "the granularity {granularity} is not a power of two from 512 to 2 GiB"
                ),
            });
        }
        if self.bitmap(&bitmap).is_ok() {
            let VmDiskBitmap { id, name, .. } = bitmap;
            return Err(DiskError::BitmapExists { id, name });
        }
        let volume = self.idle(&bitmap.id)?.volume.clone();
        wait_on(worker, move |port| {
            Box::pin(async move { volume.add_bitmap(&port, &bitmap.name, granularity).await })
        })?;
        Ok(None)
    }

    /// Says in the configuration which layers the disks have now.
    pub fn note_layers(&self, configs: &mut [DiskConfig]) {
        for config in configs {
            let id = config.id.as_deref().unwrap_or_default();
            if let Some(disk) = self.disks.get(id) {
                disk.opening.note_layers(&disk.volume, config);
            }
        }
    }

    /// Ends what is under way, and waits until it has ended.
    pub fn end_jobs(&mut self) {
        self.jobs.end();
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.jobs.end();
        if self.let_go.is_some() {
            return;
        }
        for (id, disk) in &self.disks {
            close(id, &disk.volume);
        }
    }
}

/// Leaves a disk's images clean.
fn close(id: &str, volume: &Volume) {
    let port = Port::new();
    if let Err(e) = block_on(&port, volume.close(&port)) {
        log::error!("disk {id} was not closed well: {e}");
    }
}

/// Runs a task on the worker and waits for it.
fn wait_on<T: Send + 'static>(
    worker: &WorkerHandle,
    task: impl FnOnce(Port) -> jobs::Task<T>,
) -> Result<T, DiskError> {
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    let id = run_on(worker, task, move |result| drop(send.send(result))).map_err(|source| {
        DiskError::System {
            what: "begin work on a disk",
            source,
        }
    })?;
    let result = receive.recv().map_err(|_| DiskError::System {
        what: "work on a disk: the I/O worker ended",
        source: std::io::ErrorKind::BrokenPipe.into(),
    })?;
    worker.detach(id);
    Ok(result?)
}

fn answer(value: impl serde::Serialize) -> Answer {
    // These types have string keys and no values that JSON lacks.
    Ok(Some(serde_json::to_value(value).unwrap_or(Value::Null)))
}

fn info((id, disk): (&String, &Disk)) -> DiskInfo {
    DiskInfo {
        id: id.clone(),
        size: disk.volume.size(),
        layers: layers(&disk.volume),
        bitmaps: disk
            .volume
            .view()
            .bitmaps
            .iter()
            .map(|bitmap| DiskBitmapInfo {
                name: bitmap.name(),
                granularity: bitmap.map().granularity(),
                dirty: bitmap.map().dirty(),
            })
            .collect(),
    }
}

fn layers(volume: &Volume) -> Vec<DiskLayerInfo> {
    let view = volume.view();
    let layer = |layer: &skerry_images::chain::Layer| DiskLayerInfo {
        path: layer.file().path().to_owned(),
        image_type: files::image_type(layer.format()),
        size: layer.size(),
    };
    view.stack.layers().iter().map(layer).collect()
}
