//! Power cuts at any moment of seeded histories: what is left is sound, holds what was flushed, and
//! works on.
//!
//! SKERRY_CRASH_POINTS says how many cuts to try, SKERRY_SEED which history comes first.

mod history;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use history::History;
use history::left::judge;
use history::shape::Shape;
use skerry_images::io::sim::Dice;

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |n| n.parse().expect("a number"))
}

/// Runs one history with power cuts; how many.
fn cut_everywhere(seed: u64) -> u64 {
    let mut history = History::new(seed, Shape::roll(seed));
    let mut dice = Dice(seed ^ 0xdead);
    let requests = 10 + dice.below(50);
    let (mut begun, mut points) = (0, 0);
    // Large tables take long to check.
    let seldom = match history.shape.cluster_bits {
        9..=16 => 2,
        17..=18 => 8,
        _ => 40,
    };
    loop {
        if begun < requests && history.more() {
            begun += 1;
        }
        let more = history.step();
        if !more && begun == requests {
            break;
        }
        if !dice.one_in(seldom) {
            continue;
        }
        points += 1;
        let left = history.sim.disk.cut(&mut dice);
        let sizes = history.sizes();
        let judged = judge(left, &history.shape, &history.allowed, &sizes, &mut dice);
        if let Err(what) = judged {
            panic!("seed {seed}, cut {points}: {what}\n{}", history.story());
        }
    }
    assert_eq!(history.sim.live(), 0, "a task hangs\n{}", history.story());
    let size = history.allowed.len();
    history.read(0, size);
    history.settle();
    points
}

/// A thread that panics ends the others, too.
struct StopAll<'a>(&'a AtomicU64);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(u64::MAX / 2, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_power_cut_leaves_a_sound_image_with_all_that_was_flushed() {
    let wanted = number("SKERRY_CRASH_POINTS", 3000);
    let next = AtomicU64::new(number("SKERRY_SEED", 1));
    let done = AtomicU64::new(0);
    let started = Instant::now();
    let work = || {
        let _stop = StopAll(&done);
        while done.load(Ordering::Relaxed) < wanted {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let points = cut_everywhere(seed);
            let before = done.fetch_add(points, Ordering::Relaxed);
            if before / 50_000 != (before + points) / 50_000 {
                let seconds = started.elapsed().as_secs();
                println!("{} power cuts in {seconds} s", before + points);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    println!(
        "{} power cuts in {} histories, {:.1} s",
        done.load(Ordering::Relaxed),
        next.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64()
    );
}

#[test]
fn space_is_not_used_again_while_requests_use_it() {
    let first = number("SKERRY_SEED", 1);
    for seed in first..first + 150 {
        let mut history = History::new(seed, Shape::reuse(seed));
        let mut begun = 0;
        while begun < 100 {
            begun += u64::from(history.more());
            history.step();
        }
        history.settle();
    }
}
