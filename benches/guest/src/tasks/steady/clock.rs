//! Time goes on: the TSC never goes back or leaps, and the local APIC's timer fires.

use super::waited_for;
use crate::apic::Apic;
use crate::clock::{Clock, now};
use crate::failure;
use crate::interrupts::Vector;
use crate::line::Outcome;
use crate::machine::{Machine, SOURCE_TIMER};
use crate::virtio::queue::wait_for_count;

/// The TSC: it goes forward, and doesn't leap.
pub struct Ticks {
    clock: Clock,
    last: u64,
    round: Option<u64>,
}

impl Ticks {
    /// Takes the first look.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            last: now(),
            round: None,
        }
    }

    /// Fails when the TSC is behind where it was at the last look.
    pub fn look(&mut self) -> Outcome {
        let time = now();
        if time < self.last {
            return Err(failure!("tsc-went-back from={:#x} to={time:#x}", self.last));
        }
        self.last = time;
        Ok(())
    }

    /// Looks, and fails when more than a minute has gone by since the last round began.
    pub fn begin_round(&mut self) -> Outcome {
        const LEAP_MS: u64 = 60_000;
        self.look()?;
        let before = self.round.replace(self.last).unwrap_or(self.last);
        let ms = (self.last - before) / self.clock.khz();
        if ms > LEAP_MS {
            return Err(failure!(
                "tsc-leapt ms={ms} from={before:#x} to={:#x}",
                self.last
            ));
        }
        Ok(())
    }
}

/// The local APIC's timer, in turns by TSC deadline and by count.
pub struct Timer {
    apic: Apic,
    vector: Vector,
    clock: Clock,
    /// Interrupts before it was armed.
    before: u32,
    by_deadline: bool,
}

impl Timer {
    /// Takes the local APIC, and the timer's vector.
    pub fn new(machine: &mut Machine) -> Outcome<Self> {
        let vector = machine.vector(SOURCE_TIMER)?;
        Ok(Self {
            apic: machine.apic()?,
            vector,
            clock: machine.clock,
            before: vector.count(),
            by_deadline: false,
        })
    }

    /// Lets it fire in about a millisecond.
    pub fn arm(&mut self) -> Outcome {
        const TICKS: u32 = 1_000_000;
        self.before = self.vector.count();
        self.by_deadline = !self.by_deadline
            && self
                .apic
                .start_deadline(self.vector, now() + self.clock.khz())?;
        if !self.by_deadline {
            self.apic.start_timer(self.vector, TICKS)?;
        }
        Ok(())
    }

    /// Waits until it has fired.
    pub fn wait(&self) -> Outcome {
        const TIMER_MS: u64 = 10_000;
        let what = if self.by_deadline {
            "timer-by-deadline"
        } else {
            "timer-by-count"
        };
        let patience = self.clock.patience_ms(TIMER_MS);
        wait_for_count(self.vector, self.before, patience).map_err(waited_for(what))
    }
}
