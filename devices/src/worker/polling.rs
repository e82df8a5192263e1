//! For how long a worker looks for work by itself, source by source, and how much of that a process may
//! do in vain.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    // Not by rustix: what it does at its first call, the sandbox forbids.
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the structure that it is given; with this clock it does not fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    // The clock starts near zero and lasts for centuries.
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}

/// A time that never passes.
pub(super) const FOREVER: u64 = u64::MAX;
/// A queue that was idle for so long leaves the poll set even if its worker may poll longer, unless it
/// may poll for ever.
const LEAST: u64 = 1_000;

/// One source's share of a worker's polling.
///
/// Work that comes sooner than the worker's maximum makes it long enough to have seen that; work that
/// comes later halves it, so a source that is mostly idle costs nothing in the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Nanoseconds that it is looked into after work.
    pub ns: u64,
    /// When it last had work.
    last: u64,
}

impl Budget {
    pub fn new(max: u64, now: u64) -> Budget {
        Budget {
            ns: if max == FOREVER { FOREVER } else { 0 },
            last: now,
        }
    }

    /// There was work.
    pub fn worked(&mut self, now: u64) {
        self.last = now;
    }

    /// The source was told of work at `now`, having slept: learns from how long that took. True if it
    /// is to be polled.
    pub fn woken(&mut self, max: u64, now: u64) -> bool {
        let idle = now.saturating_sub(self.last);
        self.last = now;
        self.ns = match max {
            0 => 0,
            FOREVER => FOREVER,
            // Twice as long as it would have taken: the next one may be a little later.
            _ if idle < max => self.ns.max(idle.saturating_mul(2)).clamp(LEAST, max),
            _ => (self.ns.min(max) / 2) / LEAST.div_ceil(2) * LEAST.div_ceil(2),
        };
        if self.ns < LEAST {
            self.ns = 0;
        }
        self.ns > 0
    }

    /// It has had no work for too long.
    pub fn is_spent(&self, now: u64) -> bool {
        self.ns != FOREVER && now.saturating_sub(self.last) >= self.ns
    }
}

/// How long a worker that waits to be told stays awake for it: about what falling asleep and being woken
/// costs. Whoever is told again within that time loses nothing by it, and gains the wake-up.
const LINGER: u64 = 6_000;
/// After so many times in vain it is not tried any more until something came soon again.
const TRUST: u32 = 4;

/// Whether a worker stays awake for a moment before it sleeps.
#[derive(Debug, Default)]
pub(super) struct Linger {
    trust: u32,
}

impl Linger {
    /// How many nanoseconds to stay awake; 0: sleep at once.
    pub fn time(&self) -> u64 {
        if self.trust > 0 { LINGER } else { 0 }
    }

    /// It took so long until something came, awake or asleep.
    pub fn learn(&mut self, waited: u64) {
        self.trust = match waited <= 2 * LINGER {
            true => TRUST,
            false => self.trust.saturating_sub(1),
        };
    }
}

/// What all workers of a process together may spend on polling in vain: a share of one CPU.
///
/// Spending moves a moment into the future, by as much as earning it takes; a moment that is too far
/// away means that there is nothing left. There is no clock that refills anything.
#[derive(Debug)]
pub struct PollCap {
    /// Percent of one CPU; 0 means that there is no cap.
    percent: AtomicU32,
    /// When everything spent will have been earned.
    earned_at: AtomicU64,
}

/// How far ahead may be spent, in nanoseconds of polling.
const AHEAD: u64 = 5_000_000;

impl PollCap {
    /// A cap of so many percent of one CPU; none without.
    pub fn new(percent: Option<u32>) -> PollCap {
        PollCap {
            percent: AtomicU32::new(percent.unwrap_or(0)),
            earned_at: AtomicU64::new(0),
        }
    }

    /// What `ns` of polling take to earn.
    fn price(percent: u32, ns: u64) -> u64 {
        ns.saturating_mul(100) / u64::from(percent)
    }

    /// Pays for `ns` of polling that brought nothing. False if there is nothing left.
    pub(super) fn spend(&self, ns: u64, now: u64) -> bool {
        let percent = self.percent.load(Ordering::Relaxed);
        if percent == 0 {
            return true;
        }
        let price = PollCap::price(percent, ns);
        let after = |at: u64| at.max(now).saturating_add(price);
        let update = |at| Some(after(at));
        let order = Ordering::Relaxed;
        let before = self.earned_at.fetch_update(order, order, update);
        after(before.unwrap_or(now)) <= now.saturating_add(PollCap::price(percent, AHEAD))
    }

    /// Whether polling may begin.
    pub(super) fn allows(&self, now: u64) -> bool {
        let percent = self.percent.load(Ordering::Relaxed);
        // Half of it must be there: who begins with next to nothing stops at once.
        percent == 0
            || self.earned_at.load(Ordering::Relaxed)
                <= now.saturating_add(PollCap::price(percent, AHEAD / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 32_000;

    #[test]
    fn work_that_comes_soon_is_waited_for_and_work_that_comes_late_is_not() {
        let mut budget = Budget::new(MAX, 0);
        assert!(budget.is_spent(0), "nothing is known yet");
        assert!(budget.woken(MAX, 10_000));
        assert_eq!(budget.ns, 20_000);
        assert!(!budget.is_spent(29_999) && budget.is_spent(30_000));
        budget.worked(29_000);
        assert!(!budget.is_spent(48_000));
        let mut now = 48_000;
        let mut halvings = 0;
        loop {
            now += 1_000_000;
            halvings += 1;
            if !budget.woken(MAX, now) {
                break;
            }
        }
        assert!((4..=6).contains(&halvings), "{halvings}");
        assert_eq!(budget.ns, 0);
        assert!(budget.woken(MAX, now + 5_000), "and it learns again");
    }

    #[test]
    fn one_late_request_among_many_does_not_end_polling() {
        let mut budget = Budget::new(MAX, 0);
        budget.woken(MAX, 15_000);
        assert!(budget.woken(MAX, 10_000_000));
        assert!(budget.ns >= 15_000);
    }

    #[test]
    fn the_two_ends_do_not_learn() {
        let mut pure = Budget::new(FOREVER, 0);
        assert!(!pure.is_spent(u64::MAX - 1));
        assert!(pure.woken(FOREVER, 1 << 40) && pure.ns == FOREVER);
        let mut events = Budget::new(0, 0);
        assert!(!events.woken(0, 10) && events.is_spent(10));
    }

    #[test]
    fn a_cap_leaves_its_share_and_no_more() {
        let cap = PollCap::new(Some(25));
        // Polls whenever it may, in steps of 10 us, for a second.
        let (mut now, mut spent, mut polling) = (1_000_000_000u64, 0, true);
        let end = now + 1_000_000_000;
        while now < end {
            now += 10_000;
            if polling {
                spent += 10_000;
                polling = cap.spend(10_000, now);
            } else {
                polling = cap.allows(now);
            }
        }
        let share = spent as f64 / 1e9;
        assert!((0.24..0.27).contains(&share), "{share}");
        assert!(PollCap::new(None).spend(u64::MAX, 0));
    }
}
