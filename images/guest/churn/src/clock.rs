//! A timer under load: it fires some hundred times a second, and the monotonic clock never goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::load::Wrong;

/// How long the timer runs each time. Where every instruction is emulated, a guest that a timer wakes each
/// millisecond does little else.
const TICK: Duration = Duration::from_millis(4);

/// What the timer's thread has seen.
#[derive(Default)]
struct Seen {
    ticks: AtomicU64,
    /// By how many nanoseconds the clock went back; 0 if it never did.
    back: AtomicU64,
    over: AtomicBool,
}

/// A thread with a timer.
pub struct Clock {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

impl Clock {
    /// Starts the timer.
    pub fn start() -> Self {
        let seen = Arc::new(Seen::default());
        let theirs = seen.clone();
        Self {
            seen,
            thread: Some(std::thread::spawn(move || tick(&theirs))),
        }
    }

    /// How often the timer fired, unless the clock went back.
    pub fn ticks(&self) -> Result<u64, Wrong> {
        match self.seen.back.load(Ordering::Relaxed) {
            0 => Ok(self.seen.ticks.load(Ordering::Relaxed)),
            by => Err(Wrong::Other(format!("the clock went back by {by} ns"))),
        }
    }
}

fn tick(seen: &Seen) {
    let mut last = Instant::now();
    while !seen.over.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
        let now = Instant::now();
        let back = last.saturating_duration_since(now).as_nanos() as u64;
        seen.back.fetch_max(back, Ordering::Relaxed);
        seen.ticks.fetch_add(1, Ordering::Relaxed);
        last = now;
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.seen.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_fires_and_a_clock_that_went_back_is_told() {
        let clock = Clock::start();
        let before = clock.ticks().expect("forward");
        while clock.ticks().expect("forward") < before + 3 {
            std::thread::yield_now();
        }
        clock.seen.back.store(7, Ordering::Relaxed);
        let wrong = clock.ticks().expect_err("it went back").to_string();
        assert!(wrong.contains("back by 7 ns"), "{wrong}");
    }
}
