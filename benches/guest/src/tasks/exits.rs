//! What leaving the guest costs, by the way it is left.

use super::{Arguments, put};
use crate::clock::now;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::port;
use crate::virtio::PATIENCE_MS;
use crate::virtio::blk::{Blk, Operation};

const ROUNDS: u64 = 2000;
const REQUESTS: u64 = 500;
/// The 16550's line status register.
const LINE_STATUS: u16 = 0x3fd;

/// `exit-costs[:i]`: nanoseconds of a doorbell (`doorbell`), of a register of a device (`mmio`), of the serial
/// port's status (`pio`), and of a small read whose end is polled for or announced by an interrupt (`polled`,
/// `interrupt`).
pub fn costs(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let index = arguments.number(0)?.unwrap_or(0) as usize;
    let clock = machine.clock;
    let ns = |ticks: u64, rounds: u64| ticks * 1_000_000 / clock.khz() / rounds;
    let mut blk = Blk::open(machine, index, 0)?;
    let begun = now();
    for _ in 0..ROUNDS {
        blk.queue()?.queue.kick();
    }
    put(
        report,
        format_args!("doorbell={}", ns(now() - begun, ROUNDS)),
    );
    let begun = now();
    for _ in 0..ROUNDS {
        core::hint::black_box(blk.device.needs_reset());
    }
    put(report, format_args!("mmio={}", ns(now() - begun, ROUNDS)));
    let begun = now();
    for _ in 0..ROUNDS {
        core::hint::black_box(port::read8(LINE_STATUS));
    }
    put(report, format_args!("pio={}", ns(now() - begun, ROUNDS)));
    drop(blk);
    let buffer = machine.memory.allocate(512, 512)?;
    for (name, poll) in [("polled", true), ("interrupt", false)] {
        machine.options.poll = poll;
        let mut blk = Blk::open(machine, index, 0)?;
        let begun = now();
        for _ in 0..REQUESTS {
            let deadline = clock.deadline_ms(PATIENCE_MS);
            blk.queue()?
                .request(Operation::READ, 0, &[buffer.into()], deadline)?
                .check("read")?;
        }
        put(
            report,
            format_args!("{name}={}", ns(now() - begun, REQUESTS)),
        );
    }
    Ok(())
}
