//! Volumes that are put into VMs that run, and that those are asked to give back.

use std::path::Path;

use skerry_images::chain::{Format, LayerSpec};
use skerry_vmm_api::client::Client;
use skerry_vmm_api::config::{DiskConfig, FullLayerConfig, ImageType, LayerConfig};
use skerry_vmm_api::requests::DiskInfo;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::blocks::{Blocks, PATIENCE};
use super::error::VolumeError;
use crate::model::{Disk, Object};

impl Blocks {
    /// Puts a volume that nobody has into a VM that runs, as one of its disks.
    ///
    /// # Errors
    /// When it is not there to be had, or the VM's monitor refuses: then nobody has it.
    pub(super) async fn plug(
        &self,
        vm: &Object,
        disk: &Disk,
        volume: &str,
    ) -> Result<(), VolumeError> {
        // Nobody else takes it meanwhile.
        let turn = self.turn().await;
        let client = self.client(&turn, &vm.meta.uid)?;
        let volume = self.free(vm, volume).await?;
        let folder = self.volume(&volume.meta.uid);
        let within = folder.path("");
        let layers = spawn_blocking(move || {
            let layers = folder.settled()?;
            Ok::<_, VolumeError>(folder.specs(&layers))
        });
        let layers = layers.await??;
        // Whoever was killed in between has put it there.
        if disk_in(&client, &within).await?.is_none() {
            let config = config(disk, &layers);
            let added = timeout(PATIENCE, client.add_disk(&config)).await;
            added.map_err(|_| VolumeError::Silent)??;
        }
        self.give(&volume, vm).await?;
        Ok(())
    }

    /// Takes a volume from a VM that runs and has given it back: true. Else the VM is asked for it, if it is to be
    /// asked.
    pub(super) async fn unplug(
        &self,
        vm: &str,
        volume: &Object,
        ask: bool,
    ) -> Result<bool, VolumeError> {
        let turn = self.turn().await;
        let client = self.client(&turn, vm)?;
        let within = self.volume(&volume.meta.uid).path("");
        match disk_in(&client, &within).await? {
            None => {
                self.release(volume).await?;
                Ok(true)
            }
            Some(disk) if ask => {
                let asked = timeout(PATIENCE, client.remove_device(&disk.id)).await;
                asked.map_err(|_| VolumeError::Silent)??;
                Ok(false)
            }
            Some(_) => Ok(false),
        }
    }
}

/// A VM's disk whose top layer is in a folder.
async fn disk_in(client: &Client, folder: &Path) -> Result<Option<DiskInfo>, VolumeError> {
    let disks = timeout(PATIENCE, client.disks()).await;
    let disks = disks.map_err(|_| VolumeError::Silent)??;
    let is_there = |disk: &DiskInfo| {
        let top = disk.layers.first();
        top.is_some_and(|top| top.path.starts_with(folder))
    };
    Ok(disks.into_iter().find(is_there))
}

/// What a monitor is told of a disk that is a volume; the same as its flag when the VM starts.
fn config(disk: &Disk, layers: &[LayerSpec]) -> DiskConfig {
    let image_type = |layer: &LayerSpec| match layer.format {
        Format::Raw => ImageType::Raw,
        Format::Qcow2 => ImageType::Qcow2,
    };
    let below = layers.iter().skip(1).map(|layer| {
        LayerConfig::Full(FullLayerConfig {
            path: layer.path.clone(),
            image_type: image_type(layer),
            data_file: layer.data_file.clone(),
        })
    });
    let top = layers.first();
    DiskConfig {
        path: top.map(|top| top.path.clone()).unwrap_or_default(),
        image_type: top.map(image_type),
        backing: below.collect(),
        readonly: disk.readonly,
        id: Some(disk.name.clone()),
        serial: Some(disk.name.clone()),
        ..DiskConfig::default()
    }
}
