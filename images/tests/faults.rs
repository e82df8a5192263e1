//! Errors of the disk at any moment of seeded histories: nothing is damaged, and everything goes on
//! when the disk does.

mod history;

use history::History;
use history::left::judge;
use history::shape::Shape;
use skerry_images::io::sim::Dice;

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |n| n.parse().expect("a number"))
}

/// The disk works again: all that is acknowledged is there, and the image is sound.
fn recovers(mut history: History, dice: &mut Dice) {
    history.sim.faults = 0;
    history.sim.shorts = 0;
    history.settle();
    history.tolerant = false;
    history.flush();
    history.settle();
    let size = history.allowed.len();
    history.read(0, size);
    history.settle();
    let (port, stack) = (history.sim.port.clone(), history.stack.clone());
    let closed = Box::pin(async move { (stack.close(&port).await, None) });
    let (closed, _) = history.sim.finish(closed).expect("closing ends");
    if let Err(e) = closed {
        panic!("cannot close: {e}\n{}", history.story());
    }
    let left = history.sim.disk.cut(dice);
    let sizes = history.sizes();
    if let Err(what) = judge(left, &history.shape, &history.allowed, &sizes, dice) {
        panic!("{what}\n{}", history.story());
    }
}

fn shape(seed: u64) -> Shape {
    Shape {
        // What a failed change of snapshots leaves is for their own tests.
        snapshots: false,
        ..Shape::roll(seed)
    }
}

#[test]
fn errors_damage_nothing_and_are_over_when_they_are_over() {
    let first = number("SKERRY_SEED", 1);
    for seed in first..first + number("SKERRY_SEQUENCES", 150) {
        let mut dice = Dice(seed ^ 0xfa17);
        let mut history = History::new(seed, shape(seed));
        history.tolerant = true;
        history.sim.faults = 3 + dice.below(40);
        history.sim.shorts = if dice.one_in(2) { 4 } else { 0 };
        let requests = 10 + dice.below(40);
        let mut begun = 0;
        while begun < requests {
            begun += u64::from(history.more());
            if !history.step() {
                assert_eq!(history.sim.live(), 0, "a task hangs\n{}", history.story());
            }
            if dice.one_in(40) {
                let left = history.sim.disk.cut(&mut dice);
                let sizes = history.sizes();
                let judged = judge(left, &history.shape, &history.allowed, &sizes, &mut dice);
                if let Err(what) = judged {
                    panic!("{what}\n{}", history.story());
                }
            }
        }
        recovers(history, &mut dice);
    }
}

#[test]
fn transfers_that_are_cut_short_go_on() {
    for seed in 1..60 {
        let mut history = History::new(seed, shape(seed));
        history.sim.shorts = 2;
        let mut begun = 0;
        while begun < 30 {
            begun += u64::from(history.more());
            history.step();
        }
        recovers(history, &mut Dice(seed));
    }
}

#[test]
fn tasks_that_are_dropped_anywhere_leave_an_image_that_works() {
    let first = number("SKERRY_SEED", 1);
    for seed in first..first + number("SKERRY_SEQUENCES", 150) {
        let mut dice = Dice(seed ^ 0xd209);
        let mut history = History::new(seed, shape(seed));
        let mut steps = dice.below(150);
        while steps > 0 {
            history.more();
            history.step();
            steps -= 1;
        }
        history.abandon();
        recovers(history, &mut dice);
    }
}
