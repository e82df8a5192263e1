//! `pci`: what is on the bus, whether both ways to configuration space agree, and whether virtio devices
//! describe themselves properly.

use core::fmt::Write;

use super::{Arguments, put};
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::pci::{Bus, Function, MsiX, Space};
use crate::virtio::{Place, Transport, pci as virtio_pci};
use crate::{failure, say};

const PORT_REGISTERS: u16 = 256;
const BARS: u8 = 6;

/// `pci`: enumerates bus 0 by ECAM and by ports.
pub fn pci(machine: &mut Machine, _: &Arguments, report: &mut Line) -> Outcome {
    let by_ports = Bus::scan(Space::Ports);
    let ecam = machine.acpi().ok().and_then(|acpi| acpi.ecam);
    let space = machine.configuration_space()?;
    let bus = match ecam {
        Some(_) => Bus::scan(space),
        None => Bus::scan(Space::Ports),
    };
    let count = bus.functions().count();
    if count != by_ports.functions().count() {
        let other = by_ports.functions().count();
        return Err(failure!("ecam-and-ports-differ ecam={count} ports={other}"));
    }
    let mut virtio = 0;
    for (function, twin) in bus.functions().zip(by_ports.functions()) {
        compare(function, twin)?;
        let mut line = Line::new();
        describe(machine, function, &mut line)?;
        if virtio_pci::kind(function).is_some() {
            virtio += 1;
            check_virtio(machine, function, &mut line)?;
        }
        say!("# pci {}{}", function.address, line.as_str());
    }
    put(
        report,
        format_args!("functions={count} virtio={virtio} ecam={}", ecam.is_some()),
    );
    Ok(())
}

fn compare(function: Function, twin: Function) -> Outcome {
    for register in (0..PORT_REGISTERS).step_by(4) {
        let (one, other) = (function.read32(register), twin.read32(register));
        if one != other {
            return Err(failure!(
                "ecam-and-ports-differ function={} register={register:#x} ecam={one:#x} ports={other:#x}",
                function.address
            ));
        }
    }
    Ok(())
}

fn describe(_: &mut Machine, function: Function, line: &mut Line) -> Outcome {
    put(
        line,
        format_args!("{:04x}:{:04x}", function.vendor, function.device),
    );
    put(line, format_args!("class={:06x}", function.class >> 8));
    let mut index = 0;
    while index < BARS {
        let mut step = 1;
        if let Some(bar) = function.bar(index) {
            if !bar.size.is_power_of_two() || bar.address & (bar.size - 1) != 0 {
                return Err(failure!(
                    "bad-bar function={} bar={index} address={:#x} size={:#x}",
                    function.address,
                    bar.address,
                    bar.size
                ));
            }
            put(
                line,
                format_args!("bar{index}={:#x}+{:#x}", bar.address, bar.size),
            );
            if bar.wide {
                step = 2;
            }
        }
        index += step;
    }
    Ok(())
}

fn check_virtio(machine: &mut Machine, function: Function, line: &mut Line) -> Outcome {
    if let Some(kind) = virtio_pci::kind(function) {
        put(line, format_args!("virtio={kind}"));
    }
    for (id, register) in function.capabilities() {
        if id == virtio_pci::CAPABILITY_VENDOR {
            check_capability(function, register)?;
        }
    }
    let transport = Transport::open(machine, Place::Pci(function))?;
    if let Transport::Pci(transport) = &transport {
        put(line, format_args!("queues={}", transport.queues()));
    }
    put(
        line,
        format_args!("offered={:#x}", transport.device_features()),
    );
    put(
        line,
        format_args!("msix={}", vectors(function, &mut machine.memory)?),
    );
    Ok(())
}

fn vectors(function: Function, memory: &mut Memory) -> Outcome<u16> {
    Ok(MsiX::new(function, memory)?.map_or(0, MsiX::entries))
}

/// A virtio capability's area lies inside of its BAR.
fn check_capability(function: Function, register: u16) -> Outcome {
    const PCI_CONFIG: u8 = 5;
    let kind = function.read8(register + 3);
    let bar = function.read8(register + 4);
    if kind == 0 || kind >= PCI_CONFIG {
        return Ok(());
    }
    let mut failed = Line::new();
    let (offset, length) = (
        function.read32(register + 8),
        function.read32(register + 12),
    );
    match function.bar(bar) {
        None => write!(failed, "no-bar"),
        Some(bar) if u64::from(offset) + u64::from(length) > bar.size => {
            write!(failed, "outside-of-bar")
        }
        Some(_) => Ok(()),
    }
    .map_err(|_| failure!("formatting"))?;
    match failed.as_str() {
        "" => Ok(()),
        why => Err(failure!(
            "capability-{why} function={} kind={kind} bar={bar}",
            function.address
        )),
    }
}
