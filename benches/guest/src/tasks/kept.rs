//! Tasks for machines that are kept in snapshots and measured: one that is never silent, so that a restore
//! shows at once, and one that writes as much memory as it is told to.

use super::{Arguments, put};
use crate::clock::{Clock, now};
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::virtio::blk::Blk;
use crate::{interrupts, say, serial};

const PAGE: usize = 4096;

/// `tick`, with `mem=` (MiB that were touched, 0) and `disk=` (a disk that is in use): prints dots as fast as it
/// can until a byte arrives on COM1. `h` halts the machine as it is, after one more dot and `# tick: halted`; any
/// other byte ends the task. Prints `# tick: ready` before the first dot.
pub fn tick(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mib = arguments.number_of("mem")?.unwrap_or(0) as usize;
    let memory = machine.memory.allocate(mib << 20, PAGE as u64)?;
    touch(memory);
    let _disk = match arguments.number_of("disk")? {
        Some(index) => Some(Blk::open(machine, index as usize, 0)?),
        None => None,
    };
    say!("# tick: ready");
    let mut dots = 0u64;
    let byte = loop {
        serial::print(b".");
        dots += 1;
        if let Some(byte) = serial::receive() {
            break byte;
        }
    };
    if byte == b'h' {
        serial::print(b".\n# tick: halted\n");
        interrupts::halt();
    }
    put(report, format_args!("dots={dots}"));
    Ok(())
}

/// `rewrite`, with `mem=` (MiB, 64) and `touch=` (MiB that are written at first and never again, 0): does what
/// bytes on COM1 say. `w` writes all of `mem` once; `l` writes it again and again until the next byte; `s` does
/// nothing; `q` ends the task. After each but the last prints `# rewrite: rounds=R gap_us=G`: how often `mem` was
/// written, and the longest time since the last such line in which the guest stood still.
pub fn rewrite(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mib = arguments.number_of("mem")?.unwrap_or(64) as usize;
    let touched = arguments.number_of("touch")?.unwrap_or(0) as usize;
    touch(machine.memory.allocate(touched << 20, PAGE as u64)?);
    let memory = machine.memory.allocate(mib << 20, PAGE as u64)?;
    let mut writer = Writer {
        memory,
        rounds: 0,
        gaps: Gaps::new(machine.clock),
    };
    say!("# rewrite: ready");
    let mut next = None;
    loop {
        let byte = match next.take() {
            Some(byte) => byte,
            None => writer.listen(),
        };
        match byte {
            b'w' => writer.round(),
            b'l' => {
                // Whoever said so knows now that it is being written.
                writer.say();
                next = Some(writer.until_told());
                continue;
            }
            b'q' => break,
            _ => {}
        }
        writer.say();
    }
    put(report, format_args!("rounds={}", writer.rounds));
    Ok(())
}

/// Fills memory with what no two pages have in common.
fn touch(memory: Dma) {
    for page in 0..memory.size() / PAGE {
        let part = memory.part(page * PAGE, PAGE);
        part.fill(page as u8 | 1);
        part.write(0, page as u64 + 1);
    }
}

struct Writer {
    memory: Dma,
    rounds: u64,
    gaps: Gaps,
}

impl Writer {
    /// Writes every page whole, each time with something else.
    fn round(&mut self) {
        self.rounds += 1;
        for page in 0..self.memory.size() / PAGE {
            let part = self.memory.part(page * PAGE, PAGE);
            part.fill((page as u64 + self.rounds) as u8);
            part.write(0, self.rounds << 32 | page as u64);
            self.gaps.look();
        }
    }

    fn until_told(&mut self) -> u8 {
        loop {
            self.round();
            if let Some(byte) = serial::receive() {
                return byte;
            }
        }
    }

    fn listen(&mut self) -> u8 {
        loop {
            self.gaps.look();
            if let Some(byte) = serial::receive() {
                return byte;
            }
        }
    }

    fn say(&mut self) {
        let (rounds, us) = (self.rounds, self.gaps.take_us());
        say!("# rewrite: rounds={rounds} gap_us={us}");
        self.gaps.last = now();
    }
}

/// The longest time between two looks at the TSC.
struct Gaps {
    clock: Clock,
    last: u64,
    longest: u64,
}

impl Gaps {
    fn new(clock: Clock) -> Self {
        Self {
            clock,
            last: now(),
            longest: 0,
        }
    }

    fn look(&mut self) {
        let time = now();
        self.longest = self.longest.max(time.wrapping_sub(self.last));
        self.last = time;
    }

    fn take_us(&mut self) -> u64 {
        core::mem::take(&mut self.longest) * 1000 / self.clock.khz()
    }
}
