//! Tasks on disks that come and go while the machine runs, by Skerry's registers (port 0x610; GSI 9 and port
//! 0x608 say when to look). What ACPI's methods do for Linux is done here by hand.

use super::sweep::{self, Plan};
use super::{Arguments, disk, put};
use crate::apic::Trigger;
use crate::failure;
use crate::interrupts::Vector;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::pci::{Address, Function};
use crate::virtio::blk::{Blk, Operation, bit};
use crate::virtio::{Kind, Place, pci as virtio_pci};
use crate::{port, say};

const GSI: u32 = 9;
const EVENTS: u16 = 0x608;
const POWER_BUTTON: u8 = 1;
const PCI_CHANGED: u8 = 4;
const CAME: u16 = 0x610;
const ASKED: u16 = 0x614;
const EJECT: u16 = 0x618;
const BAR_BYTES: u64 = 0x8000;
/// Disks in use at once.
const DISKS: usize = 4;

/// `hotplug`, with `seed=` (1), `limit=` (bytes of each disk), `bars=` (an address: BARs are moved there, a
/// place for each slot) and `keep=on` (nothing is given back): until the power button is pressed, fills each
/// disk that comes with the seed's pattern and uses it until it is asked back; then reads it once more and gives
/// it back. Prints `# hotplug: listening`, `# hotplug: came slot=S bytes=B sum=X`, `# hotplug: gave slot=S`.
pub fn hotplug(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let plan = Plan {
        seed: arguments.number_of("seed")?.unwrap_or(1),
        depth: 8,
        limit: arguments.number_of("limit")?.unwrap_or(u64::MAX),
        odd: false,
    };
    let bars = arguments.number_of("bars")?;
    let keeps = arguments.value("keep") == Some("on");
    let mut guest = Guest {
        plan,
        bars,
        disks: [const { None }; DISKS],
        came: 0,
        gone: 0,
    };
    let mut events = Events {
        vector: machine.gsi_vector(GSI, Trigger::Edge, false)?,
        seen: None,
    };
    let empty = machine.memory.mark();
    say!("# hotplug: listening");
    loop {
        let happened = events.wait();
        if happened & PCI_CHANGED != 0 {
            let (came, asked) = (port::read32(CAME), port::read32(ASKED));
            for slot in slots(came) {
                guest.take(machine, slot)?;
            }
            for slot in slots(asked) {
                match keeps {
                    true => say!("# hotplug: keeps slot={slot}"),
                    false => guest.give_back(machine, slot)?,
                }
            }
        }
        if happened & POWER_BUTTON != 0 {
            break;
        }
        if guest.disks.iter().all(Option::is_none) {
            machine.memory.release(empty);
        }
    }
    put(
        report,
        format_args!("came={} gone={}", guest.came, guest.gone),
    );
    Ok(())
}

/// `eject:slots` (a bit each): gives back what nobody has asked for, and counts the functions that are there
/// before and after.
pub fn eject(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let bits = arguments.number(0)?.unwrap_or(u32::MAX.into()) as u32;
    let before = machine.bus()?.functions().count();
    for at in (0..16).step_by(4) {
        port::write32(CAME + at, bits);
    }
    for at in 0..12 {
        port::write8(CAME + at, bits as u8);
        port::write16(CAME + at, bits as u16);
        port::read8(CAME + at);
        port::read16(CAME + at);
    }
    machine.bus = None;
    let after = machine.bus()?.functions().count();
    put(report, format_args!("before={before} after={after}"));
    match before == after {
        true => Ok(()),
        false => Err(failure!("functions-went before={before} after={after}")),
    }
}

fn slots(bits: u32) -> impl Iterator<Item = u8> {
    (0..32).filter(move |slot| bits >> slot & 1 != 0)
}

/// The event register, read after its interrupt.
struct Events {
    vector: Vector,
    seen: Option<u32>,
}

impl Events {
    /// Waits until something has happened; at the first call it looks at once.
    fn wait(&mut self) -> u8 {
        loop {
            let count = self.vector.count();
            if self.seen != Some(count) {
                self.seen = Some(count);
                return port::read8(EVENTS);
            }
            core::hint::spin_loop();
        }
    }
}

struct Used {
    slot: u8,
    blk: Blk,
}

struct Guest {
    plan: Plan,
    bars: Option<u64>,
    disks: [Option<Used>; DISKS],
    came: u32,
    gone: u32,
}

impl Guest {
    fn take(&mut self, machine: &mut Machine, slot: u8) -> Outcome {
        let address = Address {
            device: slot,
            function: 0,
        };
        let space = machine.configuration_space()?;
        let Some(function) = Function::read(space, address) else {
            return Err(failure!("nobody-came slot={slot}"));
        };
        if virtio_pci::kind(function) != Some(Kind::BLOCK) {
            return Err(failure!("no-disk-came slot={slot}"));
        }
        if let Some(base) = self.bars {
            function.move_bar(0, base + u64::from(slot) * BAR_BYTES);
        }
        let Some(place) = self.disks.iter_mut().find(|place| place.is_none()) else {
            return Err(failure!("too-many-came slot={slot}"));
        };
        let mut blk = Blk::open_at(machine, Place::Pci(function), 0)?;
        sweep::run(machine, &mut blk, &self.plan, Operation::WRITE)?;
        if blk.device.has(bit::FLUSH) {
            blk.request(machine, Operation::FLUSH, 0, &[])?
                .check("flush")?;
        }
        let bytes = sweep::run(machine, &mut blk, &self.plan, Operation::READ)?.bytes;
        let sum = disk::sum_of_pattern(self.plan.seed, bytes);
        *place = Some(Used { slot, blk });
        self.came += 1;
        say!("# hotplug: came slot={slot} bytes={bytes} sum={sum:#018x}");
        Ok(())
    }

    /// A disk that isn't in use is given back, too.
    fn give_back(&mut self, machine: &mut Machine, slot: u8) -> Outcome {
        let is_meant = |used: &mut Used| used.slot == slot;
        let mut used = None;
        for place in &mut self.disks {
            used = used.or_else(|| place.take_if(is_meant));
        }
        if let Some(mut used) = used {
            sweep::run(machine, &mut used.blk, &self.plan, Operation::READ)?;
        }
        // Somebody else may be in its slot before this could be looked at.
        port::write32(EJECT, 1 << slot);
        self.gone += 1;
        say!("# hotplug: gave slot={slot}");
        Ok(())
    }
}
