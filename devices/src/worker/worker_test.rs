//! Tests of workers: sources made of counters, real threads, real rings.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::*;

/// What a source saw, and the work that it is given.
#[derive(Default)]
struct Seen {
    work: AtomicU32,
    done: AtomicU32,
    kicks: AtomicU32,
    polled: AtomicBool,
    left: AtomicU32,
    stopped: AtomicBool,
    lost: Mutex<Option<String>>,
}

struct Counting {
    seen: Arc<Seen>,
    bell: Arc<EventFd>,
    kick: KickWait,
    pollable: bool,
    stopping: bool,
}

impl Counting {
    fn take(&self) -> bool {
        let n = self.seen.work.swap(0, Ordering::AcqRel);
        self.seen.done.fetch_add(n, Ordering::AcqRel);
        n > 0
    }
}

impl Source for Counting {
    fn start(&mut self, io: &mut Io<'_>) {
        self.take();
        self.kick.arm(io, KICK, &self.bell);
    }

    fn complete(&mut self, io: &mut Io<'_>, _tag: u32, _result: i32) {
        self.kick.fired();
        if !self.stopping {
            self.seen.kicks.fetch_add(1, Ordering::AcqRel);
            self.take();
            self.kick.arm(io, KICK, &self.bell);
        }
    }

    fn flush(&mut self, _io: &mut Io<'_>) {}

    fn stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.kick.cancel(io, KICK);
    }

    fn stopped(self: Box<Self>) {
        self.seen.stopped.store(true, Ordering::Release);
    }

    fn set_polled(&mut self, _io: &mut Io<'_>, polled: bool) -> bool {
        if self.pollable {
            self.seen.polled.store(polled, Ordering::Release);
            self.seen
                .left
                .fetch_add(u32::from(!polled), Ordering::AcqRel);
        }
        self.pollable
    }

    fn poll(&mut self, _io: &mut Io<'_>) -> bool {
        self.take()
    }

    fn lost(self: Box<Self>, why: &str, in_flight: bool) {
        *self.seen.lost.lock() = Some(why.to_owned());
        if in_flight {
            std::mem::forget(self);
        }
    }

    fn name(&self) -> Option<Arc<str>> {
        Some("counting/0".into())
    }
}

fn source(pollable: bool) -> (Arc<Seen>, Arc<EventFd>, Box<Counting>) {
    let (seen, bell) = (Arc::<Seen>::default(), Arc::new(EventFd::new(0).unwrap()));
    let source = Counting {
        seen: seen.clone(),
        bell: bell.clone(),
        kick: KickWait::default(),
        pollable,
        stopping: false,
    };
    (seen, bell, Box::new(source))
}

fn worker(max_ns: u64, cap: Option<u32>) -> Worker {
    let polling = PollSettings {
        max_ns,
        cap: Arc::new(PollCap::new(cap)),
    };
    let worker = Worker::start("test", polling, || Ok(())).unwrap();
    worker.wait_prepared().unwrap();
    worker
}

#[track_caller]
fn eventually(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !ready() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

const FOR_EVER: u64 = u64::MAX;

#[test]
fn a_worker_that_polls_for_ever_needs_no_bell_and_never_sleeps() {
    let worker = worker(FOR_EVER, None);
    let (seen, _bell, source) = source(true);
    let id = worker.handle().attach(source);
    let sleeps = worker.handle().stats().sleeps;
    for i in 1..=100 {
        seen.work.fetch_add(1, Ordering::AcqRel);
        eventually("the work is seen", || {
            seen.done.load(Ordering::Acquire) == i
        });
    }
    assert_eq!(seen.kicks.load(Ordering::Acquire), 0);
    assert!(worker.handle().stats().sleeps <= sleeps + 1);
    worker.handle().detach(id);
    eventually("it stops", || seen.stopped.load(Ordering::Acquire));
    // Without a source it does not spin.
    let before = worker.handle().stats().polled_ns;
    eventually("it sleeps", || worker.handle().stats().sleeps > sleeps);
    std::thread::sleep(Duration::from_millis(100));
    assert!(worker.handle().stats().polled_ns < before + 50_000_000);
}

#[test]
fn a_worker_that_never_polls_does_all_by_the_bell() {
    let worker = worker(0, None);
    let (seen, bell, source) = source(true);
    worker.handle().attach(source);
    for i in 1..=100 {
        seen.work.fetch_add(1, Ordering::AcqRel);
        bell.write(1).unwrap();
        eventually("the work is seen", || {
            seen.done.load(Ordering::Acquire) == i
        });
    }
    assert!(!seen.polled.load(Ordering::Acquire));
    // It may stay awake for a moment, waiting for the bell, but not look.
    assert_eq!(seen.left.load(Ordering::Acquire), 0);
}

#[test]
fn bells_that_follow_each_other_lead_to_polling_and_silence_ends_it() {
    let worker = worker(2_000_000, None);
    let (seen, bell, source) = source(true);
    worker.handle().attach(source);
    eventually("it is polled", || {
        seen.work.fetch_add(1, Ordering::AcqRel);
        bell.write(1).unwrap();
        seen.polled.load(Ordering::Acquire)
    });
    let report = worker.handle().report();
    assert_eq!(&*report[0].name, "counting/0");
    assert!(report[0].budget_ns > 0);
    eventually("it is not polled any more", || {
        !seen.polled.load(Ordering::Acquire)
    });
    // And the bell works again.
    let done = seen.done.load(Ordering::Acquire);
    seen.work.fetch_add(1, Ordering::AcqRel);
    bell.write(1).unwrap();
    eventually("the work is seen", || {
        seen.done.load(Ordering::Acquire) > done
    });
}

#[test]
fn an_idle_source_leaves_while_another_one_is_busy() {
    let worker = worker(1_000_000, None);
    let (busy, busy_bell, source_a) = source(true);
    let (idle, idle_bell, source_b) = source(true);
    worker.handle().attach(source_a);
    worker.handle().attach(source_b);
    let push = |seen: &Seen, bell: &EventFd| {
        seen.work.fetch_add(1, Ordering::AcqRel);
        bell.write(1).unwrap();
    };
    eventually("both are polled", || {
        push(&busy, &busy_bell);
        push(&idle, &idle_bell);
        busy.polled.load(Ordering::Acquire) && idle.polled.load(Ordering::Acquire)
    });
    eventually("the idle one leaves", || {
        push(&busy, &busy_bell);
        !idle.polled.load(Ordering::Acquire)
    });
}

#[test]
fn settings_change_while_it_runs() {
    let worker = worker(FOR_EVER, None);
    let (seen, bell, source) = source(true);
    worker.handle().attach(source);
    eventually("it is polled", || seen.polled.load(Ordering::Acquire));
    worker.handle().set_poll_max(0);
    eventually("it is not", || !seen.polled.load(Ordering::Acquire));
    seen.work.fetch_add(1, Ordering::AcqRel);
    bell.write(1).unwrap();
    eventually("the work is seen", || {
        seen.done.load(Ordering::Acquire) == 1
    });
    worker.handle().set_poll_max(FOR_EVER);
    eventually("it is again", || seen.polled.load(Ordering::Acquire));
}

#[test]
fn a_cap_bounds_polling_for_ever_and_work_is_still_seen() {
    let worker = worker(FOR_EVER, Some(10));
    let (seen, bell, source) = source(true);
    worker.handle().attach(source);
    eventually("the cap is reached", || worker.handle().stats().capped > 0);
    eventually("it is not polled", || !seen.polled.load(Ordering::Acquire));
    let start = (Instant::now(), worker.handle().stats().polled_ns);
    while start.0.elapsed() < Duration::from_millis(300) {
        let done = seen.done.load(Ordering::Acquire);
        seen.work.fetch_add(1, Ordering::AcqRel);
        bell.write(1).unwrap();
        eventually("the work is seen", || {
            seen.done.load(Ordering::Acquire) > done
        });
        std::thread::sleep(Duration::from_millis(1));
    }
    let spent = worker.handle().stats().polled_ns - start.1;
    let share = spent as f64 / start.0.elapsed().as_nanos() as f64;
    // A thread that lost the processor counts as polling.
    assert!(share < 0.3, "{share}");
}

#[test]
fn a_source_that_cannot_be_polled_is_served_by_events() {
    let worker = worker(FOR_EVER, None);
    let (seen, bell, source) = source(false);
    worker.handle().attach(source);
    for i in 1..=10 {
        seen.work.fetch_add(1, Ordering::AcqRel);
        bell.write(1).unwrap();
        eventually("the work is seen", || {
            seen.done.load(Ordering::Acquire) == i
        });
    }
}

#[test]
fn a_ring_that_breaks_is_told_to_all_sources_and_the_worker_starts_anew() {
    let mut worker = worker(0, None);
    let (seen, bell, source) = source(true);
    worker.handle().attach(source);
    eventually("it runs", || {
        bell.write(1).unwrap();
        seen.kicks.load(Ordering::Acquire) > 0
    });
    let ring = worker.handle.0.ring.load(Ordering::Acquire);
    let null = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: the descriptor stays open, and is no ring any more: every call on it fails.
    assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), ring) }, ring);
    eventually("it breaks", || {
        bell.write(1).unwrap();
        worker.handle().set_poll_max(0);
        !worker.handle().is_alive()
    });
    eventually("it says so", || seen.lost.lock().is_some());
    let why = seen.lost.lock().clone().unwrap();
    assert!(why.contains("I/O worker broke down"), "{why}");
    // What is attached now is refused at once.
    let (late, _bell, source) = self::source(true);
    worker.handle().attach(source);
    assert!(late.lost.lock().is_some());
    assert!(worker.handle().report().is_empty());

    worker.revive(|| Ok(())).unwrap();
    let (seen, bell, source) = self::source(true);
    worker.handle().attach(source);
    seen.work.fetch_add(1, Ordering::AcqRel);
    bell.write(1).unwrap();
    eventually("the work is seen", || {
        seen.done.load(Ordering::Acquire) == 1
    });
}
