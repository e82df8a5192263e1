//! How long is waited before something is tried again.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);
/// What worked for so long begins from the start.
const STEADY: Duration = Duration::from_secs(120);

/// Twice as long each time.
#[derive(Debug, Default)]
pub struct Backoff {
    next: Option<Duration>,
    until: Option<Instant>,
    worked_since: Option<Instant>,
}

impl Backoff {
    /// It did not work: waits, twice as long as the last time.
    pub fn failed(&mut self, now: Instant) {
        let steady = self
            .worked_since
            .take()
            .is_some_and(|since| now - since >= STEADY);
        let wait = self.next.filter(|_| !steady).unwrap_or(FIRST);
        self.until = Some(now + wait);
        self.next = Some((wait * 2).min(LONGEST));
    }

    /// It works, from now on.
    pub fn works(&mut self, now: Instant) {
        self.until = None;
        self.worked_since.get_or_insert(now);
    }

    /// Something else is tried: there is nothing to wait for.
    pub fn forget(&mut self) {
        *self = Backoff::default();
    }

    /// How long is still to be waited.
    pub fn left(&self, now: Instant) -> Duration {
        self.until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_twice_as_long_up_to_a_limit() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.left(now), Duration::ZERO);
        for wait in [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            backoff.failed(now);
            assert_eq!(backoff.left(now), Duration::from_millis(wait));
        }
        assert_eq!(backoff.left(now + LONGEST), Duration::ZERO);
    }

    #[test]
    fn what_worked_long_begins_again_and_what_did_not_goes_on() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        backoff.failed(now);
        backoff.works(now);
        assert_eq!(backoff.left(now), Duration::ZERO);
        backoff.failed(now + Duration::from_secs(1));
        assert_eq!(backoff.left(now + Duration::from_secs(1)), FIRST * 2);
        let later = now + Duration::from_secs(1);
        backoff.works(later);
        backoff.failed(later + STEADY);
        assert_eq!(backoff.left(later + STEADY), FIRST);
    }
}
