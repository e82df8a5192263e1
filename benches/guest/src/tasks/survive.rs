//! A device that gives up: its driver notices, resets it, and finds its disk as it was.

use super::{Arguments, put};
use crate::clock::now;
use crate::failure;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::random::Random;
use crate::say;
use crate::virtio::blk::{Blk, Operation, SECTOR};

use super::sweep::{compare, fill};
use crate::random::pattern;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
const SEED: u64 = 0x5afe;
/// How long the device may take to give up.
const WAIT_MS: u64 = 30_000;

/// `blk-survive[:i]`: writes, then reads at random until the device needs a reset (`# survive: ready` says
/// that it does so), resets it, and compares what is on the disk.
pub fn survive(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let index = arguments.number(0)?.unwrap_or(0) as usize;
    let buffer = machine.memory.allocate(BLOCK, 4096)?;
    let sectors = BLOCK as u64 / SECTOR;
    let mut blk = Blk::open(machine, index, 0)?;
    for block in 0..BLOCKS {
        // SAFETY: no request uses the buffer.
        fill(unsafe { buffer.words() }, SEED, block * sectors);
        blk.request(machine, Operation::WRITE, block * sectors, &[buffer.into()])?
            .check("write")?;
    }
    say!("# survive: ready");
    let started = now();
    let mut random = Random::new(1);
    let mut reads = 0u64;
    while !blk.device.needs_reset() {
        if machine.clock.us_since(started) > WAIT_MS * 1000 {
            return Err(failure!("it-never-gave-up reads={reads}"));
        }
        let queue = blk.queue()?;
        let sector = random.below(BLOCKS) * sectors;
        if queue.in_flight() == 0
            && queue
                .submit(Operation::READ, sector, &[buffer.into()])
                .is_some()
        {
            queue.queue.publish();
        }
        let patience = machine.clock.deadline_ms(20);
        while !patience.passed() {
            if let Some(completion) = queue.complete()? {
                completion.status.check("read")?;
                reads += 1;
                break;
            }
        }
    }
    say!("# survive: needs reset");
    blk.device.reset()?;
    drop(blk);
    let mut blk = Blk::open(machine, index, 0)?;
    for block in 0..BLOCKS {
        buffer.fill(0xa5);
        blk.request(machine, Operation::READ, block * sectors, &[buffer.into()])?
            .check("read")?;
        // SAFETY: its only request has completed.
        compare(unsafe { buffer.words() }, block * sectors, |index| {
            pattern(SEED, index)
        })?;
    }
    put(report, format_args!("reads={reads}"));
    Ok(())
}
