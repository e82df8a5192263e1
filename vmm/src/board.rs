//! What a CPU's accesses reach: the buses, the IOAPIC, and where functions are mapped.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use parking_lot::Mutex;
use skerry_devices::bus::{Bus, Slot};
use skerry_devices::legacy::IoApic;
use skerry_devices::pci::Bar;
use skerry_devices::virtio::transport::VirtioPci;

/// The machine as its CPUs see it.
pub struct Board {
    /// Port space.
    pub ports: Bus,
    /// Physical memory that is not RAM.
    pub memory_bus: Bus,
    ioapic: Arc<IoApic>,
    vm: Arc<VmFd>,
    functions: Mutex<BTreeMap<Slot, Mapped>>,
}

struct Mapped {
    function: Arc<VirtioPci>,
    at: Option<Bar>,
}

impl Board {
    /// An empty board.
    pub fn new(vm: Arc<VmFd>, ioapic: Arc<IoApic>) -> Board {
        Board {
            ports: Bus::new(),
            memory_bus: Bus::new(),
            ioapic,
            vm,
            functions: Mutex::default(),
        }
    }

    /// Adds a function and maps it where its BAR is.
    pub fn add(&self, slot: Slot, function: Arc<VirtioPci>) {
        self.functions
            .lock()
            .insert(slot, Mapped { function, at: None });
        self.change_layout(slot);
    }

    /// Takes away the function in `slot`, and what it is mapped by.
    pub fn remove(&self, slot: Slot) -> Option<Arc<VirtioPci>> {
        let mapped = self.functions.lock().remove(&slot)?;
        if let Some(bar) = mapped.at {
            self.unmap(&mapped.function, bar);
        }
        Some(mapped.function)
    }

    /// The function in `slot`.
    pub fn function(&self, slot: Slot) -> Option<Arc<VirtioPci>> {
        self.functions.lock().get(&slot).map(|m| m.function.clone())
    }

    /// All functions, by slot.
    pub fn functions(&self) -> Vec<(Slot, Arc<VirtioPci>)> {
        let functions = self.functions.lock();
        functions
            .iter()
            .map(|(slot, m)| (*slot, m.function.clone()))
            .collect()
    }

    /// A CPU ended a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }

    /// Maps the function in `slot` where its BAR says, and its doorbells with it.
    pub fn change_layout(&self, slot: Slot) {
        let mut functions = self.functions.lock();
        let Some(mapped) = functions.get_mut(&slot) else {
            return;
        };
        let wanted = mapped.function.bar();
        if wanted == mapped.at {
            return;
        }
        if let Some(old) = mapped.at.take() {
            self.unmap(&mapped.function, old);
        }
        let Some(bar) = wanted else { return };
        match self
            .memory_bus
            .insert(bar.address, bar.size, mapped.function.clone())
        {
            Ok(()) => {
                mapped.at = Some(bar);
                self.doorbells(&mapped.function, bar.address, true);
            }
            // A guest that sizes a BAR without switching decoding off comes through here.
            Err(e) => log::debug!("{}: {e}", mapped.function.name()),
        }
    }

    fn unmap(&self, function: &VirtioPci, bar: Bar) {
        self.memory_bus.remove(bar.address);
        self.doorbells(function, bar.address, false);
    }

    fn doorbells(&self, function: &VirtioPci, base: u64, on: bool) {
        for (offset, kick) in function.doorbells() {
            let address = IoEventAddress::Mmio(base + offset);
            let done = if on {
                self.vm.register_ioevent(kick, &address, NoDatamatch)
            } else {
                self.vm.unregister_ioevent(kick, &address, NoDatamatch)
            };
            if let Err(e) = done {
                // Then a doorbell comes through the bus, which is slower and works.
                log::debug!("{}: doorbell at {:#x}: {e}", function.name(), base + offset);
            }
        }
    }
}
