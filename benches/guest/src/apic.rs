//! The local APIC (by MSRs as x2APIC, or by memory) and the IOAPIC. Intel SDM vol. 3, chapter 11.

use core::arch::x86_64::__cpuid;

use crate::failure;
use crate::interrupts::{self, Eoi, Vector};
use crate::line::Outcome;
use crate::machine::Machine;
use crate::memory::Mmio;
use crate::port;

const APIC_BASE: u32 = 0x1b;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const X2APIC_MSRS: u32 = 0x800;
const XAPIC: u64 = 0xfee0_0000;
const CPUID_X2APIC: u32 = 1 << 21;

const ID: u32 = 0x02;
const TASK_PRIORITY: u32 = 0x08;
const SPURIOUS: u32 = 0x0f;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVIDE: u32 = 0x3e;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const SPURIOUS_VECTOR: u32 = 0xff;
const MASKED: u32 = 1 << 16;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_INIT: u32 = 5 << 8;
const ICR_STARTUP: u32 = 6 << 8;
const TIMER_DIVIDE_BY_1: u32 = 0xb;
const TSC_DEADLINE: u32 = 2 << 17;
const TSC_DEADLINE_MSR: u32 = 0x6e0;
const CPUID_TSC_DEADLINE: u32 = 1 << 24;

/// The boot processor's local APIC.
#[derive(Clone, Copy)]
pub enum Apic {
    X2Apic,
    XApic(Mmio),
}

impl Apic {
    /// Enables it, as x2APIC when the processor offers that, and lets interrupts in.
    pub fn enable(machine: &mut Machine) -> Outcome<Self> {
        // The legacy PICs stay out of it.
        port::write8(0x21, 0xff);
        port::write8(0xa1, 0xff);
        let apic = match machine.start.word("apic") {
            Some("xapic") => None,
            _ => x2apic(),
        };
        let apic = match apic {
            Some(apic) => apic,
            None => Apic::XApic(machine.memory.mmio(XAPIC, 4096)?),
        };
        interrupts::install_devices(match apic {
            Apic::X2Apic => Eoi::X2Apic,
            Apic::XApic(_) => Eoi::XApic,
        });
        apic.write(SPURIOUS, SOFTWARE_ENABLE | SPURIOUS_VECTOR)?;
        apic.write(LVT_LINT0, MASKED)?;
        apic.write(TASK_PRIORITY, 0)?;
        interrupts::enable();
        Ok(apic)
    }

    /// `x2apic` or `xapic`.
    pub fn name(self) -> &'static str {
        match self {
            Apic::X2Apic => "x2apic",
            Apic::XApic(_) => "xapic",
        }
    }

    fn write(self, register: u32, value: u32) -> Outcome {
        match self {
            // SAFETY: the LAPIC's registers don't change how memory is addressed.
            Apic::X2Apic => unsafe { interrupts::write_msr(X2APIC_MSRS + register, value.into()) }
                .map_err(|_| failure!("x2apic-write-refused register={register:#x}")),
            Apic::XApic(registers) => {
                registers.write32(u64::from(register) * 16, value);
                Ok(())
            }
        }
    }

    fn read(self, register: u32) -> Outcome<u32> {
        match self {
            Apic::X2Apic => interrupts::read_msr(X2APIC_MSRS + register)
                .map(|value| value as u32)
                .map_err(|_| failure!("x2apic-read-refused register={register:#x}")),
            Apic::XApic(registers) => Ok(registers.read32(u64::from(register) * 16)),
        }
    }

    /// This processor's APIC ID.
    pub fn id(self) -> Outcome<u32> {
        let id = self.read(ID)?;
        Ok(match self {
            Apic::X2Apic => id,
            Apic::XApic(_) => id >> 24,
        })
    }

    fn command(self, destination: u32, command: u32) -> Outcome {
        match self {
            Apic::X2Apic => {
                let value = u64::from(destination) << 32 | u64::from(command);
                // SAFETY: an INIT or a start-up of another processor; the trampoline is in place.
                unsafe { interrupts::write_msr(X2APIC_MSRS + ICR, value) }
                    .map_err(|_| failure!("icr-write-refused"))
            }
            Apic::XApic(_) => {
                self.write(ICR_HIGH, destination << 24)?;
                self.write(ICR, command)?;
                for _ in 0..1000 {
                    if self.read(ICR)? & ICR_PENDING == 0 {
                        return Ok(());
                    }
                }
                Err(failure!("ipi-not-accepted destination={destination}"))
            }
        }
    }

    /// Resets another processor; it then waits for a start-up.
    pub fn send_init(self, apic_id: u32) -> Outcome {
        self.command(apic_id, ICR_INIT | ICR_ASSERT)
    }

    /// Starts another processor in real mode at `page * 4096`.
    pub fn send_startup(self, apic_id: u32, page: u8) -> Outcome {
        self.command(apic_id, ICR_STARTUP | ICR_ASSERT | u32::from(page))
    }

    /// Lets the timer send `vector` once, after so many ticks of its (unknown) clock.
    pub fn start_timer(self, vector: Vector, ticks: u32) -> Outcome {
        self.write(TIMER_DIVIDE, TIMER_DIVIDE_BY_1)?;
        self.write(LVT_TIMER, vector.number().into())?;
        self.write(TIMER_INITIAL, ticks)
    }

    /// Ticks left of [`start_timer`](Self::start_timer).
    pub fn timer(self) -> Outcome<u32> {
        self.read(TIMER_CURRENT)
    }

    /// Lets the timer send `vector` when the TSC reaches `tsc`. False when this processor has no TSC deadline.
    pub fn start_deadline(self, vector: Vector, tsc: u64) -> Outcome<bool> {
        if __cpuid(1).ecx & CPUID_TSC_DEADLINE == 0 {
            return Ok(false);
        }
        self.write(LVT_TIMER, TSC_DEADLINE | u32::from(vector.number()))?;
        // SAFETY: arms a timer, no more.
        Ok(unsafe { interrupts::write_msr(TSC_DEADLINE_MSR, tsc) }.is_ok())
    }

    /// Stops the timer.
    pub fn stop_timer(self) -> Outcome {
        self.write(LVT_TIMER, MASKED)
    }
}

/// Switches to x2APIC, if CPUID offers it and the MSR takes it.
fn x2apic() -> Option<Apic> {
    if __cpuid(1).ecx & CPUID_X2APIC == 0 {
        return None;
    }
    let base = interrupts::read_msr(APIC_BASE).ok()?;
    let wanted = base | APIC_BASE_ENABLE | APIC_BASE_X2APIC;
    if base != wanted {
        // SAFETY: changes only how the LAPIC is reached, and nothing reaches it yet.
        unsafe { interrupts::write_msr(APIC_BASE, wanted) }.ok()?;
    }
    let now = interrupts::read_msr(APIC_BASE).ok()?;
    (now & APIC_BASE_X2APIC != 0).then_some(Apic::X2Apic)
}

/// The IOAPIC.
#[derive(Clone, Copy)]
pub struct IoApic {
    registers: Mmio,
}

/// What a pin of the IOAPIC takes as an interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    Edge,
    Level,
}

impl IoApic {
    const SELECT: u64 = 0;
    const WINDOW: u64 = 0x10;
    const REDIRECTION: u32 = 0x10;
    const LEVEL: u32 = 1 << 15;
    const ACTIVE_LOW: u32 = 1 << 13;

    /// The one that MADT names.
    pub fn new(machine: &mut Machine) -> Outcome<Self> {
        let address = machine.acpi().map_or(0xfec0_0000, |acpi| acpi.ioapic);
        Ok(Self {
            registers: machine.memory.mmio(address, 0x20)?,
        })
    }

    fn write(self, register: u32, value: u32) {
        self.registers.write32(Self::SELECT, register);
        self.registers.write32(Self::WINDOW, value);
    }

    fn read(self, register: u32) -> u32 {
        self.registers.write32(Self::SELECT, register);
        self.registers.read32(Self::WINDOW)
    }

    /// Sends a pin's interrupts to `vector` of the processor `apic_id`.
    pub fn route(
        self,
        pin: u32,
        vector: Vector,
        apic_id: u32,
        trigger: Trigger,
        active_low: bool,
    ) -> Outcome {
        let mut low = u32::from(vector.number());
        if trigger == Trigger::Level {
            low |= Self::LEVEL;
        }
        if active_low {
            low |= Self::ACTIVE_LOW;
        }
        let register = Self::REDIRECTION + 2 * pin;
        self.write(register, MASKED);
        self.write(register + 1, apic_id << 24);
        self.write(register, low);
        match self.read(register) & 0xff {
            number if number == u32::from(vector.number()) => Ok(()),
            number => Err(failure!(
                "ioapic-pin-not-programmed pin={pin} vector={number:#x}"
            )),
        }
    }
}
