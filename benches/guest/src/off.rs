//! How the program ends: power off, reset, or not at all.

use crate::interrupts;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::{failure, port, say};

const I8042_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
/// Where pvpanic listens, and the event that says that the guest has panicked.
const PVPANIC: u16 = 0x505;
const PANICKED: u8 = 1;

/// Ends the program the way the word `off=` asks for.
pub fn end(machine: &mut Machine) -> ! {
    let mut way = [0; 32];
    let word = machine.start.word("off").unwrap_or("acpi").as_bytes();
    let length = word.len().min(way.len());
    way[..length].copy_from_slice(&word[..length]);
    let outcome = match &way[..length] {
        b"reset" => reset(machine),
        b"i8042" => Ok(()),
        b"triple" => interrupts::triple_fault(),
        b"hlt" => interrupts::halt(),
        b"spin" => loop {
            core::hint::spin_loop();
        },
        b"panic" => {
            port::write8(PVPANIC, PANICKED);
            interrupts::halt()
        }
        b"wait-power-button" => crate::tasks::platform::wait_for_power_button(machine, None)
            .and_then(|_| power_off(machine)),
        _ => power_off(machine),
    };
    if let Err(failure) = outcome {
        say!("# off: {}; trying the i8042", failure.reason());
    }
    reset_by_i8042()
}

/// The end of a program that cannot trust its own state any more.
pub fn power_off_blindly() -> ! {
    reset_by_i8042()
}

fn reset_by_i8042() -> ! {
    port::write8(I8042_COMMAND, PULSE_RESET);
    interrupts::halt()
}

/// ACPI's S5 (ACPI 6.5 §4.8.3.2 with fixed hardware, §4.8.3.7 without).
fn power_off(machine: &mut Machine) -> Outcome {
    const SLEEP_ENABLE: u8 = 1 << 5;
    const PM1_SLEEP_ENABLE: u16 = 1 << 13;
    let fixed = machine.acpi()?.fixed;
    let Some(sleep_type) = fixed.sleep_type else {
        return Err(failure!("no-s5"));
    };
    if let (true, Some(register)) = (fixed.hardware_reduced, fixed.sleep_control) {
        register.write8(&mut machine.memory, sleep_type << 2 | SLEEP_ENABLE)?;
    } else if let (false, Some(register)) = (fixed.hardware_reduced, fixed.pm1a_control) {
        register.write16(
            &mut machine.memory,
            u16::from(sleep_type) << 10 | PM1_SLEEP_ENABLE,
        )?;
    } else {
        return Err(failure!("no-sleep-register"));
    }
    machine.clock.sleep_ms(1000);
    Err(failure!("still-alive-after-s5"))
}

/// FADT's reset register, when there is one.
fn reset(machine: &mut Machine) -> Outcome {
    let Some((register, value)) = machine.acpi()?.fixed.reset else {
        return Ok(());
    };
    register.write8(&mut machine.memory, value)?;
    machine.clock.sleep_ms(1000);
    Err(failure!("still-alive-after-reset"))
}
