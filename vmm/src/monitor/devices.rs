//! Devices of a VM that are added and removed: in its configuration as long as it has no machine, and disks also
//! while it runs.

use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::DiskConfig;

use super::{Answer, Monitor, RequestError, json, state_name};
use crate::validate::{self, ConfigError};

impl Monitor {
    /// Adds a disk. Of a machine that there is, the answer is where the guest finds it.
    pub(super) fn add_disk(&mut self, disk: DiskConfig) -> Answer {
        let add = |config: &mut VmConfig| {
            validate::disk(&disk)?;
            config.disks.push(disk.clone());
            Ok(())
        };
        if self.vm()?.machine.is_none() {
            return self.change("add a disk", add).map(|()| None);
        }
        let (machine, config) = self.idle("add a disk")?;
        let config = changed(config, add)?;
        let Some(named) = config.disks.last() else {
            return Ok(None);
        };
        let added = machine
            .add_disk(named)
            .map_err(|source| RequestError::Add {
                id: named.id.clone().unwrap_or_default(),
                source,
            })?;
        self.vm()?.config = config;
        Ok(Some(json(&added)))
    }

    /// Removes a device. Of a machine that there is, a disk; the guest is asked for it, and when it has given it
    /// back, it is not in the configuration any more.
    pub(super) fn remove_device(&mut self, id: &str) -> Result<(), RequestError> {
        if self.vm()?.machine.is_none() {
            self.change("remove a device", |config| remove_device(config, id))?;
            self.vm()?.places.remove(id);
            return Ok(());
        }
        let (machine, config) = self.idle("remove a device")?;
        let is_disk = config.disks.iter().any(|d| d.id.as_deref() == Some(id));
        match is_disk {
            true if machine.ask_back(id)? => Ok(()),
            false if machine.places().contains_key(id) => Err(RequestError::Stays(id.to_owned())),
            _ => Err(RequestError::NoDevice(id.to_owned())),
        }
    }

    /// Takes away what the guest has given back, unless somebody counts on all that is there.
    pub(super) fn finish_removals(&mut self) {
        let Some(vm) = self.vm.as_mut().filter(|vm| vm.busy.is_none()) else {
            return;
        };
        let gone = match &mut vm.machine {
            Some(machine) => machine.take_ejected(),
            None => return,
        };
        forget(&mut vm.config, &gone);
    }

    /// The machine ends: its devices stay where they are, and whatever was asked back is gone with it.
    pub(super) fn keep_places(&mut self) {
        if let Some(vm) = &mut self.vm
            && let Some(machine) = &vm.machine
        {
            let gone = machine.asked_back();
            forget(&mut vm.config, &gone);
            vm.places = machine.places();
            vm.places.retain(|id, _| !gone.contains(id));
        }
    }

    pub(super) fn change(
        &mut self,
        verb: &'static str,
        change: impl FnOnce(&mut VmConfig) -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        let vm = self.vm()?;
        if vm.machine.is_some() {
            let is = state_name(vm.state);
            return Err(RequestError::State {
                is,
                verb,
                remedy: "only disks are added while it runs, other devices before vm.boot or after vm.shutdown",
            });
        }
        vm.config = changed(&vm.config, change)?;
        Ok(())
    }
}

/// A configuration with a change, checked.
fn changed(
    config: &VmConfig,
    change: impl FnOnce(&mut VmConfig) -> Result<(), RequestError>,
) -> Result<VmConfig, RequestError> {
    let mut config = config.clone();
    change(&mut config)?;
    validate::check(&mut config).map_err(|e| match e {
        ConfigError::DuplicateId(id) => RequestError::Duplicate(id),
        e => e.into(),
    })?;
    Ok(config)
}

/// These disks are gone.
fn forget(config: &mut VmConfig, gone: &[String]) {
    let stays = |disk: &DiskConfig| !disk.id.as_ref().is_some_and(|id| gone.contains(id));
    config.disks.retain(stays);
}

fn remove_device(config: &mut VmConfig, id: &str) -> Result<(), RequestError> {
    let count =
        |c: &VmConfig| c.disks.len() + c.net.len() + c.fs.len() + usize::from(c.vsock.is_some());
    let before = count(config);
    config.disks.retain(|d| d.id.as_deref() != Some(id));
    config.net.retain(|n| n.id.as_deref() != Some(id));
    config.fs.retain(|f| f.id.as_deref() != Some(id));
    config.vsock.take_if(|v| v.id.as_deref() == Some(id));
    if before == count(config) {
        Err(RequestError::NoDevice(id.to_owned()))
    } else {
        Ok(())
    }
}
