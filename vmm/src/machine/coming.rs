//! Disks that come to a running machine, and those that the guest is asked to give back.

use std::sync::Arc;

use skerry_devices::bus::Slot;
use skerry_vmm_api::config::DiskConfig;
use skerry_vmm_api::requests::PciDeviceInfo;

use super::{Machine, MachineError, bdf};
use crate::assembly::disk_device;
use crate::disks::DiskError;
use crate::slots::{Decoded, Places, Slots};

impl Machine {
    /// Puts a disk of a checked configuration into a free slot, and tells the guest that it may look.
    pub fn add_disk(&mut self, disk: &DiskConfig) -> Result<PciDeviceInfo, MachineError> {
        self.workers.revive();
        let id = disk.id.clone().unwrap_or_default();
        let (device, worker) = disk_device(disk, &mut self.disks, &self.workers)?;
        let board = &self.queues.0;
        let made = self
            .slots
            .function(board, &id, device, worker, Decoded::Later);
        let (slot, function) = match made {
            Ok(made) => made,
            Err(e) => {
                self.disks.remove(&id);
                return Err(e);
            }
        };
        self.slots.put(board, slot, Arc::new(function));
        self.slots.hotplug.came(slot);
        self.legacy.events.pci_changed();
        Ok(PciDeviceInfo { id, bdf: bdf(slot) })
    }

    /// Asks the guest to give a disk back, also once more. It is the guest's to do so; false if there is no
    /// such device.
    pub fn ask_back(&mut self, id: &str) -> Result<bool, DiskError> {
        let Some(slot) = self.slot_of(id) else {
            return Ok(false);
        };
        self.disks.check_idle(id)?;
        self.slots.hotplug.ask_back(slot);
        self.legacy.events.pci_changed();
        Ok(true)
    }

    /// Takes away what the guest has given back; the names.
    pub fn take_ejected(&mut self) -> Vec<String> {
        if self.disks.are_let_go() {
            // They cannot be closed, since nothing may be written to them.
            return Vec::new();
        }
        let mut names = Vec::new();
        for slot in self.slots.hotplug.take_ejected() {
            let Some(function) = self.queues.0.remove(slot) else {
                continue;
            };
            // Its driver has stopped it before, if it is a good one.
            function.reset();
            let name = function.name().to_owned();
            drop(function);
            self.disks.remove(&name);
            log::info!("the guest has given `{name}` back");
            names.push(name);
        }
        names
    }

    /// What the guest was asked for and has not given back yet, or what is not taken away yet.
    pub fn asked_back(&self) -> Vec<String> {
        let name = |slot: Slot| self.board().function(slot);
        let asked = self.slots.hotplug.asked_back();
        let functions = asked.into_iter().filter_map(name);
        functions.map(|f| f.name().to_owned()).collect()
    }

    /// Which slot each device is in.
    pub fn places(&self) -> Places {
        Slots::places(self.board())
    }

    fn slot_of(&self, id: &str) -> Option<Slot> {
        let functions = self.board().functions();
        let found = functions.iter().find(|(_, f)| f.name() == id);
        found.map(|(slot, _)| *slot)
    }
}
