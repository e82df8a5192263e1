//! Virtio 1.x devices: finding them, negotiation, queues, reset. Virtio 1.3, chapters 3 and 4.

pub mod blk;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod queue;
pub mod vsock;

use crate::apic::Trigger;
use crate::clock::Clock;
use crate::failure;
use crate::interrupts::Vector;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::pci::{Function, MsiX};
use mmio::MmioTransport;
use pci::PciTransport;
use queue::{Doorbell, Queue, Rings, Wakeup};

/// How long a device may take for anything, in milliseconds.
pub const PATIENCE_MS: u64 = 5000;

/// A device's kind (virtio 1.3 chapter 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind(pub u16);

impl Kind {
    pub const NET: Kind = Kind(1);
    pub const BLOCK: Kind = Kind(2);
    pub const CONSOLE: Kind = Kind(3);
    pub const ENTROPY: Kind = Kind(4);
    pub const VSOCK: Kind = Kind(19);
}

impl core::fmt::Display for Kind {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        let name = match self.0 {
            1 => "net",
            2 => "blk",
            3 => "console",
            4 => "rng",
            5 => "balloon",
            19 => "vsock",
            number => return write!(f, "virtio-{number}"),
        };
        f.write_str(name)
    }
}

/// Feature bits that every device may offer (virtio 1.3 §6).
pub mod feature {
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Bits of the device status (virtio 1.3 §2.1).
mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
}

/// Where a device is.
#[derive(Clone, Copy)]
pub enum Place {
    Pci(Function),
    Mmio { address: u64, size: u64, gsi: u32 },
}

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        match self {
            Place::Pci(function) => write!(f, "pci-{}", function.address),
            Place::Mmio { address, .. } => write!(f, "mmio-{address:#x}"),
        }
    }
}

/// The registers, on either bus.
pub enum Transport {
    Pci(PciTransport),
    Mmio(MmioTransport),
}

macro_rules! on_either {
    ($self:ident, $transport:ident => $call:expr) => {
        match $self {
            Transport::Pci($transport) => $call,
            Transport::Mmio($transport) => $call,
        }
    };
}

impl Transport {
    /// Opens the registers at a place, whatever device it is.
    pub fn open(machine: &mut Machine, place: Place) -> Outcome<Self> {
        match place {
            Place::Pci(function) => {
                PciTransport::open(function, &mut machine.memory).map(Transport::Pci)
            }
            Place::Mmio { address, size, .. } => Ok(Transport::Mmio(MmioTransport::open(
                machine.memory.mmio(address, size)?,
            )?)),
        }
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        on_either!(self, transport => transport.status())
    }

    /// Sets the device status. 0 resets.
    pub fn set_status(&self, status: u8) {
        on_either!(self, transport => transport.set_status(status));
    }

    /// What the device offers.
    pub fn device_features(&self) -> u64 {
        on_either!(self, transport => transport.device_features())
    }

    /// What the driver takes.
    pub fn set_driver_features(&self, features: u64) {
        on_either!(self, transport => transport.set_driver_features(features));
    }

    /// The largest size of a queue; 0 when there is no such queue.
    pub fn queue_max(&self, index: u16) -> u16 {
        on_either!(self, transport => transport.queue_max(index))
    }

    /// Enables a queue. `entry` is its MSI-X vector.
    pub fn enable_queue(&self, index: u16, rings: &Rings, entry: Option<u16>) -> Outcome<Doorbell> {
        on_either!(self, transport => transport.enable_queue(index, rings, entry))
    }

    /// Reads a byte of the device's own configuration.
    pub fn config8(&self, offset: u64) -> u8 {
        on_either!(self, transport => transport.config().read8(offset))
    }

    /// Reads a word of the device's own configuration.
    pub fn config16(&self, offset: u64) -> u16 {
        on_either!(self, transport => transport.config().read16(offset))
    }

    /// Reads a double word of the device's own configuration.
    pub fn config32(&self, offset: u64) -> u32 {
        on_either!(self, transport => transport.config().read32(offset))
    }

    /// Reads two double words of the device's own configuration, consistently.
    pub fn config64(&self, offset: u64) -> u64 {
        loop {
            let before = on_either!(self, transport => transport.generation());
            let value =
                u64::from(self.config32(offset)) | u64::from(self.config32(offset + 4)) << 32;
            if before == on_either!(self, transport => transport.generation()) {
                return value;
            }
        }
    }

    /// Resets the device and waits until it says that it has.
    pub fn reset(&self, clock: Clock) -> Outcome {
        self.set_status(0);
        let deadline = clock.deadline_ms(PATIENCE_MS);
        while self.status() != 0 {
            if deadline.passed() {
                return Err(failure!("reset-timeout status={:#x}", self.status()));
            }
            core::hint::spin_loop();
        }
        Ok(())
    }
}

/// A device between negotiation and reset.
pub struct Device {
    pub place: Place,
    pub transport: Transport,
    /// What both sides agreed upon.
    pub features: u64,
    /// What the device offered.
    pub offered: u64,
    pub msix: Option<MsiX>,
    clock: Clock,
    poll: bool,
}

impl Device {
    /// Opens the `index`th device of a kind, and takes from its features what `wanted` names. EVENT_IDX and
    /// VERSION_1 are always wanted, the former unless the options say otherwise.
    pub fn open(machine: &mut Machine, kind: Kind, index: usize, wanted: u64) -> Outcome<Self> {
        let place = machine.find(kind, index)?;
        Self::open_at(machine, place, wanted)
    }

    /// Opens the device at a place.
    pub fn open_at(machine: &mut Machine, place: Place, wanted: u64) -> Outcome<Self> {
        let poll = machine.options.poll;
        let event_idx = if machine.options.event_idx {
            feature::EVENT_IDX
        } else {
            0
        };
        let clock = machine.clock;
        let transport = Transport::open(machine, place)?;
        transport.reset(clock)?;
        transport.set_status(status::ACKNOWLEDGE);
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let offered = transport.device_features();
        let features = offered & (wanted | event_idx | feature::VERSION_1);
        if features & feature::VERSION_1 == 0 {
            transport.set_status(status::FAILED);
            return Err(failure!("device-is-legacy features={offered:#x}"));
        }
        transport.set_driver_features(features);
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        if transport.status() & status::FEATURES_OK == 0 {
            return Err(failure!("features-refused features={features:#x}"));
        }
        let msix = match place {
            Place::Pci(function) if !poll => MsiX::new(function, &mut machine.memory)?,
            _ => None,
        };
        if let Some(msix) = msix {
            msix.enable();
        }
        Ok(Self {
            place,
            transport,
            features,
            offered,
            msix,
            clock,
            poll,
        })
    }

    /// True when both sides agreed upon this feature.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Allocates a queue of at most `size` descriptors, gives it an interrupt (unless polling is asked for) and
    /// enables it.
    pub fn queue(&self, machine: &mut Machine, index: u16, size: u16) -> Outcome<Queue> {
        let max = self.transport.queue_max(index);
        if max == 0 {
            return Err(failure!("no-queue index={index}"));
        }
        let rings = Rings::allocate(&mut machine.memory, max.min(size))?;
        let (entry, wakeup) = self.wakeup(machine, index)?;
        let doorbell = self.transport.enable_queue(index, &rings, entry)?;
        Ok(Queue::new(
            rings,
            index,
            doorbell,
            self.has(feature::EVENT_IDX),
            wakeup,
        ))
    }

    /// The MSI-X entry of a queue: one for itself if the table is large enough, behind entry 0 of the
    /// configuration.
    pub fn entry(&self, index: u16) -> Option<u16> {
        Some((index + 1).min(self.msix?.entries() - 1))
    }

    fn wakeup(&self, machine: &mut Machine, index: u16) -> Outcome<(Option<u16>, Wakeup)> {
        if self.poll {
            return Ok((None, Wakeup::Poll));
        }
        match (self.place, self.msix, &self.transport) {
            (Place::Pci(function), Some(msix), _) => {
                let entry = (index + 1).min(msix.entries() - 1);
                let source = u32::from(function.address.number()) << 16 | u32::from(entry);
                let vector = machine.vector(source)?;
                msix.route(entry, vector, machine.apic_id()?);
                Ok((
                    Some(entry),
                    Wakeup::Interrupt {
                        vector,
                        acknowledge: None,
                    },
                ))
            }
            (Place::Mmio { gsi, .. }, _, Transport::Mmio(transport)) => {
                let vector = machine.gsi_vector(gsi, Trigger::Edge, false)?;
                Ok((
                    None,
                    Wakeup::Interrupt {
                        vector,
                        acknowledge: Some(transport.acknowledge()),
                    },
                ))
            }
            _ => Ok((None, Wakeup::Poll)),
        }
    }

    /// The vector that a queue's interrupts arrive on, for tasks that look at it closely.
    pub fn vector(&self, machine: &mut Machine, index: u16) -> Outcome<Option<Vector>> {
        Ok(match self.wakeup(machine, index)?.1 {
            Wakeup::Interrupt { vector, .. } => Some(vector),
            Wakeup::Poll => None,
        })
    }

    /// The queues are ready: lets the device run.
    pub fn start(&self) -> Outcome {
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.transport.set_status(ready);
        match self.transport.status() {
            status if status & (status::NEEDS_RESET | status::FAILED) != 0 => {
                Err(failure!("device-failed status={status:#x}"))
            }
            _ => Ok(()),
        }
    }

    /// True when the device has given up.
    pub fn needs_reset(&self) -> bool {
        self.transport.status() & status::NEEDS_RESET != 0
    }

    /// Resets the device, whatever is in flight.
    pub fn reset(&self) -> Outcome {
        self.transport.reset(self.clock)
    }
}

impl Drop for Device {
    /// The memory of the queues is about to be given back.
    fn drop(&mut self) {
        // A device that won't reset has been reported, or will be by whoever opens it next.
        let _ = self.reset();
    }
}
