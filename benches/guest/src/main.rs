//! A guest payload that runs natively on any KVM, also on a software one that emulates ring 0.
//!
//! It is a static PVH ELF. It enters ring 3 after a few instructions and does everything else there: prints on
//! COM1, finds and drives devices, waits for interrupts, and reports each task of its command line
//! (`run=task[:argument…],…`) as a line `ok NAME key=value …` or `fail NAME reason=…`. See `tasks/mod.rs` for
//! the tasks and `off.rs` for the ways to end (`off=…`).

#![no_std]
#![no_main]

mod acpi;
mod apic;
mod boot;
mod clock;
mod histogram;
mod interrupts;
mod line;
mod machine;
mod memory;
mod off;
mod pci;
mod port;
mod random;
mod serial;
mod start;
mod tasks;
mod virtio;

use machine::Machine;

/// Ring 3 starts here. `start_info` is EBX of the PVH entry.
extern "C" fn ring3_main(start_info: u64) -> ! {
    interrupts::install();
    serial::enable_fifo();
    // The entry code has printed the first letter.
    serial::print(b"kerry-payload: hello\n");
    let mut machine = match Machine::new(start_info) {
        Ok(machine) => machine,
        Err(failure) => {
            say!("fail start reason={}", failure.reason());
            off::power_off_blindly()
        }
    };
    tasks::run(&mut machine);
    off::end(&mut machine)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    match info.location() {
        Some(location) => {
            say!(
                "fail panic at={}:{} reason={}",
                location.file(),
                location.line(),
                info.message()
            )
        }
        None => say!("fail panic reason={}", info.message()),
    }
    say!("skerry-payload: done ok=0 fail=1");
    off::power_off_blindly()
}
