//! Rate limits: how many bytes and operations a device may move, by moments and not by a tick.
//!
//! A bucket keeps one number: the moment at which everything taken so far will have been earned (the
//! generic cell rate algorithm, ITU-T I.371). It is open while that moment is so near
//! that one unit is left of what a refill time earns, and whoever finds it closed knows exactly when it opens.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::worker::{Io, TimerWait, now};

/// A limit of one kind: `size` units in every refill time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units; at least 1. After a pause so many may be taken at once.
    pub size: u64,
    /// In how long so many are earned; at least 1 ms.
    pub refill: Duration,
    /// Units more, once.
    pub one_time_burst: u64,
}

#[derive(Debug)]
struct Bucket {
    size: u64,
    /// Nanoseconds.
    refill: u64,
    extra: u64,
    earned_at: u64,
}

impl Bucket {
    fn new(rate: Rate) -> Bucket {
        Bucket {
            size: rate.size.max(1),
            refill: u64::try_from(rate.refill.as_nanos())
                .unwrap_or(u64::MAX)
                .max(1),
            extra: rate.one_time_burst,
            earned_at: 0,
        }
    }

    /// For how long nothing may be taken; zero if it is open.
    fn closed_for(&self, now: u64) -> u64 {
        if self.extra > 0 {
            return 0;
        }
        // One unit must be there.
        let ahead = self.refill - self.refill / self.size;
        self.earned_at.saturating_sub(ahead).saturating_sub(now)
    }

    /// Takes units, also more than there are: what follows waits for longer.
    fn take(&mut self, units: u64, now: u64) {
        let gift = units.min(self.extra);
        self.extra -= gift;
        let price = u128::from(units - gift) * u128::from(self.refill) / u128::from(self.size);
        let price = u64::try_from(price).unwrap_or(u64::MAX);
        self.earned_at = self.earned_at.max(now).saturating_add(price);
    }
}

/// The limits of a device, shared by its queues.
#[derive(Debug)]
pub struct Limiter {
    buckets: Mutex<[Option<Bucket>; 2]>,
    /// A shorter wait is not worth it: what was not taken meanwhile is not lost.
    least_wait: u64,
}

impl Limiter {
    /// Limits on bytes, on operations, or on both; none without either.
    pub fn new(bytes: Option<Rate>, operations: Option<Rate>) -> Option<Arc<Limiter>> {
        const LEAST: u64 = 50_000;
        let buckets = [bytes, operations].map(|rate| rate.map(Bucket::new));
        let shortest = buckets.iter().flatten().map(|b| b.refill / 16).min()?;
        Some(Arc::new(Limiter {
            buckets: Mutex::new(buckets),
            least_wait: shortest.min(LEAST),
        }))
    }

    fn closed_for(&self, now: u64) -> Option<u64> {
        let buckets = self.buckets.lock();
        let waits = buckets.iter().flatten().map(|b| b.closed_for(now));
        let wait = waits.max().filter(|wait| *wait > 0)?;
        Some(wait.max(self.least_wait))
    }

    fn take(&self, bytes: u64, now: u64) {
        let mut buckets = self.buckets.lock();
        for (bucket, units) in buckets.iter_mut().zip([bytes, 1]) {
            if let Some(bucket) = bucket {
                bucket.take(units, now);
            }
        }
    }
}

/// One queue's view of its device's limits: asks before it takes a chain, pays afterwards, and waits
/// when there is nothing left.
#[derive(Default)]
pub(crate) struct Throttle {
    limiter: Option<Arc<Limiter>>,
    timer: TimerWait,
    closed: bool,
}

impl Throttle {
    pub fn new(limiter: Option<Arc<Limiter>>) -> Throttle {
        Throttle {
            limiter,
            ..Throttle::default()
        }
    }

    /// Whether another chain may be taken. If not, an operation with `tag` completes when it may: call
    /// [`fired`](Self::fired) then, and look again.
    #[inline]
    pub fn admits(&mut self, io: &mut Io<'_>, tag: u32) -> bool {
        let Some(limiter) = &self.limiter else {
            return true;
        };
        if self.closed {
            return false;
        }
        let Some(wait) = limiter.closed_for(now()) else {
            return true;
        };
        self.closed = true;
        self.timer.arm(io, tag, Duration::from_nanos(wait));
        false
    }

    /// Pays for a chain that moves so many bytes.
    #[inline]
    pub fn charge(&self, bytes: u64) {
        if let Some(limiter) = &self.limiter {
            limiter.take(bytes, now());
        }
    }

    /// Whether it is waited for the moment at which something may be taken again.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The moment has come.
    pub fn fired(&mut self) {
        self.timer.fired();
        self.closed = false;
    }

    /// Ends the wait.
    pub fn cancel(&mut self, io: &mut Io<'_>, tag: u32) {
        self.timer.cancel(io, tag);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(size: u64, ms: u64) -> Rate {
        Rate {
            size,
            refill: Duration::from_millis(ms),
            one_time_burst: 0,
        }
    }

    /// How many operations of `bytes` get through in `time`, by somebody who waits as told.
    fn through(limiter: &Limiter, bytes: u64, time: Duration) -> u64 {
        let start = 1_000_000_000;
        let (mut now, mut count) = (start, 0);
        while now < start + time.as_nanos() as u64 {
            match limiter.closed_for(now) {
                Some(wait) => now += wait,
                None => {
                    limiter.take(bytes, now);
                    count += 1;
                    now += 1_000;
                }
            }
        }
        count
    }

    #[test]
    fn ten_operations_in_ten_milliseconds_are_a_thousand_in_a_second() {
        let limiter = Limiter::new(None, Some(rate(10, 10))).unwrap();
        let count = through(&limiter, 4096, Duration::from_secs(1));
        assert!((1000..=1011).contains(&count), "{count}");
    }

    #[test]
    fn a_burst_is_the_bucket_and_once_the_extra() {
        let limiter = Limiter::new(
            None,
            Some(Rate {
                one_time_burst: 7,
                ..rate(10, 1000)
            }),
        )
        .unwrap();
        assert_eq!(through(&limiter, 1, Duration::from_millis(50)), 17);
        limiter.buckets.lock()[1].as_mut().unwrap().earned_at = 0;
        assert_eq!(through(&limiter, 1, Duration::from_millis(50)), 10);
    }

    #[test]
    fn the_narrower_of_two_limits_counts_and_one_request_may_exceed_a_bucket() {
        let limiter = Limiter::new(Some(rate(64 << 10, 100)), Some(rate(1000, 10))).unwrap();
        let bytes = 1 << 20;
        let count = through(&limiter, bytes, Duration::from_secs(16));
        // 640 KiB a second are ten requests of 1 MiB in 16 seconds.
        assert!((10..=11).contains(&count), "{count}");
    }

    proptest! {
        #[test]
        fn the_rate_is_kept_whatever_it_is(
            size in 1u64..1 << 40, ms in 1u64..100_000, bytes in 1u64..1 << 22,
        ) {
            let limiter = Limiter::new(Some(rate(size, ms)), None).unwrap();
            let (mut now, mut moved) = (5_000_000_000u64, 0u128);
            let start = now;
            for _ in 0..2000 {
                match limiter.closed_for(now) {
                    Some(wait) => now = now.saturating_add(wait),
                    None => {
                        limiter.take(bytes, now);
                        moved += u128::from(bytes);
                        now += 100;
                    }
                }
            }
            let earned = u128::from(now - start) * u128::from(size) / (u128::from(ms) * 1_000_000);
            // The bucket, one request beyond it, and what rounding gives away.
            let most = earned + u128::from(size) + u128::from(bytes) + earned / 1000 + 2000 * u128::from(size) / (u128::from(ms) * 1_000_000) + 2000;
            prop_assert!(moved <= most, "{moved} of {most}");
        }
    }
}
