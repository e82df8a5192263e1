//! Tasks on the machine itself: memory, processors, timers, COM1, the RTC, the power button, passing time.

use core::fmt::Write;
use core::sync::atomic::Ordering;

use super::{Arguments, put};
use crate::apic::Trigger;
use crate::boot;
use crate::clock::{Deadline, now};
use crate::interrupts::Vector;
use crate::line::{Line, Outcome};
use crate::machine::{Machine, SOURCE_TIMER};
use crate::start::Range;
use crate::virtio::PATIENCE_MS;
use crate::virtio::queue::wait_for_count;
use crate::{failure, port, say, serial};

/// `mem`: sums up RAM and touches the first and the last page of each range.
pub fn memory(machine: &mut Machine, _: &Arguments, report: &mut Line) -> Outcome {
    let (mut total, mut count) = (0, 0);
    for index in 0..machine.start.ranges().len() {
        let range = machine.start.ranges()[index];
        say!(
            "# mem {:#x}..{:#x} type={}",
            range.address,
            range.address + range.size,
            range.kind
        );
        if range.kind != Range::RAM {
            continue;
        }
        total += range.size;
        count += 1;
        let first = range.address.next_multiple_of(4096);
        let last = (range.address + range.size).saturating_sub(4096) & !4095;
        for page in [first, last] {
            let word = machine.memory.mmio(page, 8)?;
            let before = word.read32(0);
            word.write32(0, !before);
            let seen = word.read32(0);
            word.write32(0, before);
            if seen != !before {
                return Err(failure!("not-ram address={page:#x}"));
            }
        }
    }
    put(report, format_args!("bytes={total} ranges={count}"));
    Ok(())
}

/// Where the trampoline is copied to: RAM that no monitor needs once its tables were read.
const TRAMPOLINE_PAGE: u8 = 8;
const TRAMPOLINE_BYTES: usize = 128;
const INIT_MS: u64 = 1;
const SECOND_STARTUP_MS: u64 = 200;

/// `cpus[:n]`: starts every processor that MADT enables, one by one, and compares APIC IDs.
pub fn processors(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let expected = arguments.number(0)?;
    let apic = machine.apic()?;
    let own = apic.id()?;
    let count = machine.acpi()?.apic_ids().len();
    // SAFETY: addresses of linker symbols.
    let code = unsafe {
        let length =
            (&raw const boot::trampoline_end).offset_from(&raw const boot::trampoline) as usize;
        core::slice::from_raw_parts(&raw const boot::trampoline, length)
    };
    let page = machine
        .memory
        .mmio(u64::from(TRAMPOLINE_PAGE) << 12, TRAMPOLINE_BYTES as u64)?;
    let mut before = [0; TRAMPOLINE_BYTES];
    for (offset, byte) in before.iter_mut().enumerate() {
        *byte = page.read8(offset as u64);
    }
    for (offset, byte) in code.iter().enumerate() {
        page.write8(offset as u64, *byte);
    }
    let mut outcome = Ok(());
    for index in 0..count {
        let id = machine.acpi()?.apic_ids()[index];
        if id != own && outcome.is_ok() {
            outcome = start_processor(machine, id);
        }
    }
    for (offset, byte) in before.iter().enumerate() {
        page.write8(offset as u64, *byte);
    }
    outcome?;
    if let Some(expected) = expected
        && expected != count as u64
    {
        return Err(failure!("wrong-number cpus={count} expected={expected}"));
    }
    put(
        report,
        format_args!("cpus={count} apic={} boot={own}", apic.name()),
    );
    Ok(())
}

fn start_processor(machine: &mut Machine, id: u32) -> Outcome {
    let apic = machine.apic()?;
    // SAFETY: the counters are aligned words of .bss that live as long as the program.
    let (started, last_id) = unsafe { (&boot::processors_started, &boot::processor_id) };
    let before = started.load(Ordering::Acquire);
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    apic.send_init(id)?;
    machine.clock.sleep_ms(INIT_MS);
    apic.send_startup(id, TRAMPOLINE_PAGE)?;
    let second = machine.clock.deadline_ms(SECOND_STARTUP_MS);
    let mut sent_twice = false;
    while started.load(Ordering::Acquire) == before {
        if !sent_twice && second.passed() {
            apic.send_startup(id, TRAMPOLINE_PAGE)?;
            sent_twice = true;
        }
        if deadline.passed() {
            return Err(failure!("processor-not-started id={id}"));
        }
        core::hint::spin_loop();
    }
    let found = last_id.load(Ordering::Acquire);
    if found != id & 0xff {
        return Err(failure!("apic-id-mismatch madt={id} cpuid={found}"));
    }
    Ok(())
}

/// `timer`: the local APIC's timer, once by count and once by TSC deadline.
pub fn timer(machine: &mut Machine, _: &Arguments, report: &mut Line) -> Outcome {
    const TICKS: u32 = 1_000_000;
    const DEADLINE_MS: u64 = 5;
    let apic = machine.apic()?;
    let vector = machine.vector(SOURCE_TIMER)?;
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    let before = vector.count();
    let started = now();
    apic.start_timer(vector, TICKS)?;
    wait_for_count(vector, before, deadline)?;
    put(
        report,
        format_args!(
            "apic={} oneshot_us={}",
            apic.name(),
            machine.clock.us_since(started)
        ),
    );
    if apic.timer()? != 0 {
        return Err(failure!("one-shot-still-counts"));
    }
    let before = vector.count();
    let started = now();
    if apic.start_deadline(vector, started + DEADLINE_MS * machine.clock.khz())? {
        wait_for_count(vector, before, deadline)?;
        let us = machine.clock.us_since(started);
        if us < DEADLINE_MS * 1000 {
            return Err(failure!("deadline-too-early us={us}"));
        }
        put(report, format_args!("deadline_us={us}"));
    }
    apic.stop_timer()
}

/// A line from COM1, without its end.
fn read_line(line: &mut Line, deadline: Deadline) -> Outcome {
    loop {
        match serial::receive() {
            Some(b'\r' | b'\n') => return Ok(()),
            Some(byte) => {
                // Writing to a line cannot fail.
                let _ = line.write_char(char::from(byte));
            }
            None if deadline.passed() => return Err(failure!("timeout")),
            None => core::hint::spin_loop(),
        }
    }
}

fn seconds(machine: &Machine, arguments: &Arguments, otherwise: u64) -> Outcome<Deadline> {
    let seconds = arguments.number(0)?.unwrap_or(otherwise);
    Ok(machine.clock.deadline_ms(seconds * 1000))
}

/// `serial-echo[:seconds]`: reads a line from COM1 and gives it back.
pub fn serial_echo(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let deadline = seconds(machine, arguments, 30)?;
    say!("# serial-echo: waiting for a line");
    let mut line = Line::new();
    read_line(&mut line, deadline)?;
    put(report, format_args!("text={}", line.as_str()));
    Ok(())
}

/// `serial-irq`: COM1's transmitter-empty interrupt through the IOAPIC.
pub fn serial_interrupt(machine: &mut Machine, _: &Arguments, report: &mut Line) -> Outcome {
    const INTERRUPT_ENABLE: u16 = serial::COM1 + 1;
    const INTERRUPT_ID: u16 = serial::COM1 + 2;
    const MODEM_CONTROL: u16 = serial::COM1 + 4;
    const TRANSMITTER_EMPTY: u8 = 2;
    const OUT2: u8 = 8;
    let (gsi, _) = machine
        .acpi()
        .map_or((4, 0), |acpi| acpi.legacy_interrupt(4));
    let vector = machine.gsi_vector(gsi, Trigger::Edge, false)?;
    let before = vector.count();
    let modem = port::read8(MODEM_CONTROL);
    port::write8(MODEM_CONTROL, modem | OUT2);
    port::write8(INTERRUPT_ENABLE, TRANSMITTER_EMPTY);
    let arrived = wait_for_count(vector, before, machine.clock.deadline_ms(PATIENCE_MS));
    let cause = port::read8(INTERRUPT_ID);
    port::write8(INTERRUPT_ENABLE, 0);
    port::write8(MODEM_CONTROL, modem);
    arrived?;
    put(report, format_args!("gsi={gsi} cause={cause:#x}"));
    Ok(())
}

const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;

fn cmos(register: u8) -> u8 {
    port::write8(CMOS_INDEX, register);
    port::read8(CMOS_DATA)
}

fn wait_for_rtc(deadline: Deadline) -> Outcome {
    const UPDATE_IN_PROGRESS: u8 = 0x80;
    while cmos(0x0a) & UPDATE_IN_PROGRESS != 0 {
        if deadline.passed() {
            return Err(failure!("update-never-ends"));
        }
    }
    Ok(())
}

/// `rtc`: date and time of the CMOS clock.
pub fn rtc(machine: &mut Machine, _: &Arguments, report: &mut Line) -> Outcome {
    const BINARY: u8 = 4;
    wait_for_rtc(machine.clock.deadline_ms(PATIENCE_MS))?;
    let binary = cmos(0x0b) & BINARY != 0;
    let mut fields = [0x32, 9, 8, 7, 4, 2, 0].map(|register| {
        let value = cmos(register);
        if binary {
            value
        } else {
            (value >> 4) * 10 + (value & 15)
        }
    });
    // A monitor without a century register answers 0 there.
    if !(19..=21).contains(&fields[0]) {
        fields[0] = 20;
    }
    let [century, year, month, day, hour, minute, second] = fields;
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return Err(failure!("nonsense fields={fields:?}"));
    }
    put(
        report,
        format_args!(
            "time={century:02}{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        ),
    );
    Ok(())
}

/// `tsc`: the TSC's frequency as assumed, and as measured by one second of the RTC.
pub fn tsc(machine: &mut Machine, _: &Arguments, report: &mut Line) -> Outcome {
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    let next_second = || {
        let second = cmos(0);
        while cmos(0) == second {
            if deadline.passed() {
                return Err(failure!("rtc-stands-still"));
            }
        }
        Ok(now())
    };
    let first = next_second()?;
    let khz = (next_second()? - first) / 1000;
    put(
        report,
        format_args!("assumed_khz={} measured_khz={khz}", machine.clock.khz()),
    );
    Ok(())
}

/// `spin:ms`: passes time in ring 3.
pub fn spin(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let ms = arguments.number(0)?.unwrap_or(1000);
    machine.clock.sleep_ms(ms);
    put(report, format_args!("ms={ms}"));
    Ok(())
}

const TICK_MS: u64 = 100;

/// `ticker:n`: prints `tick K` every 100 ms.
pub fn ticker(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let count = arguments.number(0)?.unwrap_or(10);
    for tick in 1..=count {
        machine.clock.sleep_ms(TICK_MS);
        say!("tick {tick}");
    }
    put(report, format_args!("ticks={count}"));
    Ok(())
}

/// `heartbeat`: as `ticker`, until a byte arrives on COM1.
pub fn heartbeat(machine: &mut Machine, _: &Arguments, report: &mut Line) -> Outcome {
    let mut ticks = 0;
    while serial::receive().is_none() {
        machine.clock.sleep_ms(TICK_MS);
        ticks += 1;
        say!("tick {ticks}");
    }
    put(report, format_args!("ticks={ticks}"));
    Ok(())
}

/// `wait-power-button[:seconds]`: Skerry's event device reports it by GSI 9 and port 0x608.
pub fn power_button(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let interrupts = wait_for_power_button(machine, arguments.number(0)?)?;
    put(report, format_args!("interrupts={interrupts}"));
    Ok(())
}

/// Waits for the power button, for ever or for so many seconds. Gives the number of interrupts that it took.
pub fn wait_for_power_button(machine: &mut Machine, seconds: Option<u64>) -> Outcome<u32> {
    let mut button = PowerButton::listen(machine)?;
    let deadline = seconds.map(|seconds| machine.clock.deadline_ms(seconds * 1000));
    say!("# waiting for the power button");
    while !button.is_pressed() {
        if deadline.is_some_and(Deadline::passed) {
            return Err(failure!("timeout"));
        }
        core::hint::spin_loop();
    }
    Ok(button.interrupts())
}

/// The power button, for tasks that work until it is pressed.
pub struct PowerButton {
    vector: Vector,
    first: u32,
    /// Interrupts after which the events were read; none before they were.
    seen: Option<u32>,
}

impl PowerButton {
    /// Routes its interrupt here.
    pub fn listen(machine: &mut Machine) -> Outcome<Self> {
        const GSI: u32 = 9;
        let vector = machine.gsi_vector(GSI, Trigger::Edge, false)?;
        Ok(Self {
            vector,
            first: vector.count(),
            seen: None,
        })
    }

    /// True once for each press. Cheap: the events are read only after an interrupt, and at the first call, since
    /// one may have come before the interrupt was routed.
    pub fn is_pressed(&mut self) -> bool {
        const EVENTS: u16 = 0x608;
        const POWER_BUTTON: u8 = 1;
        let count = self.vector.count();
        if self.seen == Some(count) {
            return false;
        }
        self.seen = Some(count);
        let events = port::read8(EVENTS);
        events != 0xff && events & POWER_BUTTON != 0
    }

    /// Interrupts that have come.
    pub fn interrupts(&self) -> u32 {
        self.vector.count() - self.first
    }
}
