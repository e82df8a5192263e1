//! The machine as this program knows it. What a task needs is discovered when it asks for it.

use crate::acpi::Acpi;
use crate::apic::{Apic, IoApic, Trigger};
use crate::clock::Clock;
use crate::failure;
use crate::interrupts::{Vector, Vectors};
use crate::line::Outcome;
use crate::memory::Memory;
use crate::pci::{Bus, Space};
use crate::start::Start;
use crate::virtio::mmio::{self, MmioTransport};
use crate::virtio::{Kind, Place, pci};

/// Source numbers of vectors, above those of MSI-X (function << 16 | entry).
const SOURCE_GSI: u32 = 0xffff_0000;
/// Source number of the local timer.
pub const SOURCE_TIMER: u32 = 0xfffe_0000;

/// How queues are driven: words of the command line, which a task's own arguments override.
#[derive(Clone, Copy)]
pub struct Options {
    /// `wait=poll`: look at the used ring instead of waiting for interrupts.
    pub poll: bool,
    /// `event-idx=off`: don't take that feature.
    pub event_idx: bool,
}

/// Everything the tasks work with.
pub struct Machine {
    pub start: Start,
    pub memory: Memory,
    pub clock: Clock,
    pub options: Options,
    vectors: Vectors,
    acpi: Option<Acpi>,
    apic: Option<Apic>,
    pub bus: Option<Bus>,
}

impl Machine {
    /// Takes over from the monitor.
    pub fn new(start_info: u64) -> Outcome<Self> {
        let start = Start::read(start_info)?;
        let memory = Memory::new(&start)?;
        let told = start.word("tsc-khz").and_then(|khz| khz.parse().ok());
        let options = Options {
            poll: start.word("wait") == Some("poll"),
            event_idx: start.word("event-idx") != Some("off"),
        };
        Ok(Self {
            start,
            memory,
            clock: Clock::new(told),
            options,
            vectors: Vectors::new(),
            acpi: None,
            apic: None,
            bus: None,
        })
    }

    /// The ACPI tables.
    pub fn acpi(&mut self) -> Outcome<&Acpi> {
        let acpi = match self.acpi.take() {
            Some(acpi) => acpi,
            None => Acpi::read(&self.start, &mut self.memory)?,
        };
        Ok(self.acpi.insert(acpi))
    }

    /// The local APIC, enabled at first use.
    pub fn apic(&mut self) -> Outcome<Apic> {
        if let Some(apic) = self.apic {
            return Ok(apic);
        }
        let apic = Apic::enable(self)?;
        self.apic = Some(apic);
        Ok(apic)
    }

    /// This processor's APIC ID.
    pub fn apic_id(&mut self) -> Outcome<u32> {
        self.apic()?.id()
    }

    /// The vector of an interrupt source, with interrupts let in.
    pub fn vector(&mut self, source: u32) -> Outcome<Vector> {
        self.apic()?;
        self.vectors
            .of(source)
            .ok_or_else(|| failure!("out-of-vectors"))
    }

    /// The vector of a global system interrupt, routed to this processor.
    pub fn gsi_vector(&mut self, gsi: u32, trigger: Trigger, active_low: bool) -> Outcome<Vector> {
        let vector = self.vector(SOURCE_GSI | gsi)?;
        let apic_id = self.apic_id()?;
        IoApic::new(self)?.route(gsi, vector, apic_id, trigger, active_low)?;
        Ok(vector)
    }

    /// Configuration space: ECAM if ACPI describes one, else the ports.
    pub fn configuration_space(&mut self) -> Outcome<Space> {
        match self.acpi().ok().and_then(|acpi| acpi.ecam) {
            Some(ecam) => Space::ecam(&mut self.memory, ecam),
            None => Ok(Space::Ports),
        }
    }

    /// PCI bus 0.
    pub fn bus(&mut self) -> Outcome<&Bus> {
        let bus = match self.bus.take() {
            Some(bus) => bus,
            None => Bus::scan(self.configuration_space()?),
        };
        Ok(self.bus.insert(bus))
    }

    /// The `index`th virtio device in the order of buses (PCI first) and addresses, and its kind.
    pub fn virtio(&mut self, index: usize) -> Outcome<Option<(Kind, Place)>> {
        let mut left = index;
        for function in self.bus()?.functions() {
            let Some(kind) = pci::kind(function) else {
                continue;
            };
            if left == 0 {
                return Ok(Some((kind, Place::Pci(function))));
            }
            left -= 1;
        }
        for place in mmio::places(&self.start) {
            let Place::Mmio { address, size, .. } = place else {
                continue;
            };
            let kind = MmioTransport::open(self.memory.mmio(address, size)?)?.kind();
            if kind == Kind(0) {
                continue;
            }
            if left == 0 {
                return Ok(Some((kind, place)));
            }
            left -= 1;
        }
        Ok(None)
    }

    /// Where the `index`th device of a kind is.
    pub fn find(&mut self, kind: Kind, index: usize) -> Outcome<Place> {
        let mut left = index;
        let mut number = 0;
        while let Some((found, place)) = self.virtio(number)? {
            if found == kind {
                if left == 0 {
                    return Ok(place);
                }
                left -= 1;
            }
            number += 1;
        }
        Err(failure!("no-device kind={kind} index={index}"))
    }
}
