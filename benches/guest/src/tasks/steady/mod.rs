//! A machine that checks itself while it is paused, saved, restored and cloned: memory, disk, clock, timer, sockets
//! and network must go on exactly where they were.
//!
//! What is in memory says what must be on the disk, so both have to be from the same moment. Waits have
//! [`Patience`](crate::clock::Patience): the TSC may go on while the machine doesn't run.

mod clock;
mod disk;
mod memory;
mod network;
mod sockets;

use self::clock::{Ticks, Timer};
use self::disk::Disk;
use self::memory::{Pages, Words};
use self::network::Neighbour;
use self::sockets::Link;
use super::{Arguments, put};
use crate::clock::now;
use crate::line::{Failure, Line, Outcome};
use crate::machine::Machine;
use crate::random::Random;
use crate::{failure, say, serial};

/// What everything's content is made from.
const SEED: u64 = 0x57ea_d700;

/// `steady` with `mem=` (MiB, 8), `dirty=` (pages rewritten in a round, 16), `disk=`, `vsock=` (the host's port),
/// `net=` (with `ip=` and `peer=`), `rounds=`, `say=` (1): checks the machine round by round until `q` arrives on
/// COM1 or the rounds are over, then everything once more. A device that isn't named is left alone. Prints
/// `# steady: ready`, then `# steady: round=R reconnects=K` every so many rounds.
pub fn steady(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let rounds = arguments.number_of("rounds")?.unwrap_or(u64::MAX);
    let every = arguments.number_of("say")?.unwrap_or(1);
    let mut steady = Steady::new(machine, arguments)?;
    say!("# steady: ready");
    let started = now();
    let mut round = 0;
    let mut is_over = false;
    while !is_over {
        round += 1;
        let outcome = steady.round(round);
        if outcome.is_err() {
            put(report, format_args!("round={round}"));
        }
        outcome?;
        if round.is_multiple_of(every) {
            say!("# steady: round={round} reconnects={}", steady.reconnects());
        }
        is_over = round >= rounds || is_told_to_end();
    }
    steady.finish()?;
    put(
        report,
        format_args!("rounds={round} reconnects={}", steady.reconnects()),
    );
    put(
        report,
        format_args!(
            "pages={} blocks={} checksum={:#x} us={}",
            steady.pages.count(),
            steady.disk.as_ref().map_or(0, |disk| disk.blocks.count()),
            steady.pages.sum,
            machine.clock.us_since(started)
        ),
    );
    if let Some(neighbour) = &steady.neighbour {
        put(report, format_args!("answers={}", neighbour.answers));
    }
    Ok(())
}

/// True when `q` is among what has arrived on COM1.
fn is_told_to_end() -> bool {
    core::iter::from_fn(serial::receive).any(|byte| byte == b'q')
}

/// Says what a wait was for.
fn waited_for(what: &'static str) -> impl Fn(Failure) -> Failure {
    move |failure| failure!("{} of={what}", failure.reason())
}

/// Everything that is checked.
struct Steady {
    ticks: Ticks,
    timer: Timer,
    pages: Pages,
    words: Words,
    random: Random,
    dirty: u64,
    disk: Option<Disk>,
    link: Option<Link>,
    neighbour: Option<Neighbour>,
}

impl Steady {
    /// Sets everything up: the pages and blocks are filled, and the connection stands.
    fn new(machine: &mut Machine, arguments: &Arguments) -> Outcome<Self> {
        let mib = arguments.number_of("mem")?.unwrap_or(8).max(1) as usize;
        let disk = match arguments.number_of("disk")? {
            Some(index) => Some(Disk::new(machine, index as usize)?),
            None => None,
        };
        let link = match arguments.number_of("vsock")? {
            Some(port) => Some(Link::new(machine, port as u32)?),
            None => None,
        };
        let neighbour = match arguments.number_of("net")? {
            Some(index) => Some(Neighbour::new(machine, arguments, index as usize)?),
            None => None,
        };
        Ok(Self {
            timer: Timer::new(machine)?,
            pages: Pages::new(machine, mib << 20)?,
            words: Words::new(),
            random: Random::new(SEED),
            dirty: arguments.number_of("dirty")?.unwrap_or(16),
            disk,
            link,
            neighbour,
            ticks: Ticks::new(machine.clock),
        })
    }

    /// How often the connection to the host was made anew.
    fn reconnects(&self) -> u64 {
        self.link.as_ref().map_or(0, Link::reconnects)
    }

    /// One round. The timer and the disk have work while the rest is checked.
    fn round(&mut self, round: u64) -> Outcome {
        self.ticks.begin_round()?;
        self.timer.arm()?;
        if let Some(disk) = &mut self.disk {
            disk.begin_round()?;
        }
        self.ticks.look()?;
        self.memory(round)?;
        self.ticks.look()?;
        if let Some(link) = &mut self.link {
            link.round(round)?;
        }
        if let Some(neighbour) = &mut self.neighbour {
            neighbour.round(round)?;
        }
        self.ticks.look()?;
        if let Some(disk) = &mut self.disk {
            disk.end_round()?;
        }
        self.ticks.look()?;
        self.timer.wait()?;
        self.ticks.look()
    }

    fn memory(&mut self, round: u64) -> Outcome {
        const WINDOW: u64 = 64;
        const SUM_ROUNDS: u64 = 64;
        for _ in 0..self.dirty {
            let page = self.random.below(self.pages.count());
            self.pages.rewrite(page)?;
        }
        self.pages.verify_window(WINDOW)?;
        if round.is_multiple_of(SUM_ROUNDS) {
            self.pages.verify_table()?;
        }
        self.words.rewrite()
    }

    /// Waits for the disk and checks all that was checked in parts.
    fn finish(&mut self) -> Outcome {
        if let Some(disk) = &mut self.disk {
            disk.finish()?;
        }
        self.pages.verify_table()?;
        self.pages.verify_window(self.pages.count())?;
        self.words.verify()?;
        self.ticks.look()
    }
}
