//! Tasks on the machine itself: memory, and the power button.

use super::{Arguments, put};
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::start::Range;
use crate::{failure, say};

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

/// Waits for Skerry's GED to report the power button.
pub fn wait_for_power_button(_machine: &mut Machine, _seconds: Option<u64>) -> Outcome {
    Err(failure!("not-yet"))
}
