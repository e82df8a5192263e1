//! The slots that functions are put into, at the start and while the guest runs: who is where, who comes, and
//! who is asked back.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skerry_devices::bus::Slot;
use skerry_devices::irq::MsiSource;
use skerry_devices::memory::GuestRam;
use skerry_devices::pci::{Hotplug, HotplugState, PciError, PciRoot, SLOTS};
use skerry_devices::virtio::VirtioDevice;
use skerry_devices::virtio::transport::{BAR_SIZE, VirtioPci};
use skerry_devices::worker::WorkerHandle;

use crate::arch::layout;
use crate::board::Board;
use crate::machine::{MachineError, system};

/// Which slot each device is in, by its name. A device stays where it is as long as it is there: what comes
/// and goes beside it does not move it, nor does a reboot or a restore.
pub type Places = BTreeMap<String, u8>;

/// What is kept of the slots.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsState {
    /// Who is where.
    pub places: Places,
    /// Who comes and goes.
    pub hotplug: HotplugState,
}

/// The slots of a machine's bus.
pub struct Slots {
    /// The bus.
    pub pci: Arc<PciRoot>,
    /// Where the guest hears who comes and goes.
    pub hotplug: Arc<Hotplug>,
    vectors: Arc<dyn MsiSource>,
    ram: GuestRam,
    /// Where devices were before.
    before: Places,
}

/// When a function's BAR is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// From the start: there is no firmware that would do it.
    AtOnce,
    /// When the guest that it comes to says so.
    Later,
}

impl Slots {
    /// Of an empty bus. Devices that were there `before` go where they were.
    pub fn new(vectors: Arc<dyn MsiSource>, ram: GuestRam, before: Places) -> Slots {
        let pci = Arc::new(PciRoot::new());
        Slots {
            hotplug: Arc::new(Hotplug::new(pci.clone())),
            pci,
            vectors,
            ram,
            before,
        }
    }

    /// Makes a function of a device, for a slot of its own. It is still to be [`put`](Self::put) there.
    pub fn function(
        &self,
        board: &Board,
        name: &str,
        device: Box<dyn VirtioDevice>,
        worker: WorkerHandle,
        decoded: Decoded,
    ) -> Result<(Slot, VirtioPci), MachineError> {
        let slot = self.slot_for(board, name)?;
        let bar = free_bar(board)?;
        let (ram, vectors) = (self.ram.clone(), self.vectors.clone());
        let function = VirtioPci::new(name, slot, device, bar, ram, vectors, worker);
        let function = function.map_err(system("make a device's doorbells"))?;
        Ok(match decoded {
            Decoded::AtOnce => (slot, function),
            Decoded::Later => (slot, function.switched_off()),
        })
    }

    /// Puts a function into its slot.
    pub fn put(&self, board: &Board, slot: Slot, function: Arc<VirtioPci>) {
        self.pci.insert(slot, function.clone());
        board.add(slot, function);
    }

    /// Who is where.
    pub fn places(board: &Board) -> Places {
        let functions = board.functions();
        let place = functions.iter().map(|(s, f)| (f.name().to_owned(), s.0));
        place.collect()
    }

    /// What is to be kept.
    pub fn save(&self, board: &Board) -> SlotsState {
        SlotsState {
            places: Slots::places(board),
            hotplug: self.hotplug.save(),
        }
    }

    fn slot_for(&self, board: &Board, name: &str) -> Result<Slot, PciError> {
        // One that was given back may still be on the board.
        let is_free = |slot: Slot| self.pci.is_free(slot) && board.function(slot).is_none();
        match self.before.get(name).map(|number| Slot(*number)) {
            Some(slot) if is_free(slot) => Ok(slot),
            Some(slot) => Err(PciError::Taken(slot.0)),
            None => self.pci.free_slot(|slot| {
                !is_free(slot) || self.before.values().any(|taken| *taken == slot.0)
            }),
        }
    }
}

/// A place for a BAR that no function's BAR is at, decoded or not.
fn free_bar(board: &Board) -> Result<u64, PciError> {
    let functions = board.functions();
    let taken: Vec<u64> = functions
        .iter()
        .filter_map(|(_, function)| function.bar_address())
        .map(|bar| bar.address)
        .collect();
    (0..SLOTS as u64)
        .map(|index| layout::PCI_WINDOW + index * BAR_SIZE)
        .find(|address| !taken.contains(address))
        .ok_or(PciError::Full)
}
