//! A machine is kept at any moment of its life, also while its guest starts CPUs, sets devices up and resets
//! them.

use std::time::{Duration, Instant};

use skerry_tests::random::Random;
use skerry_tests::steady::{MODES, Steady};
use skerry_tests::vmm::{Builder, SHORT};

/// They set devices up, work them, and reset them.
const TASKS: [&str; 10] = [
    "cpus:2",
    "timer",
    "blk-verify:0:1:limit=1000000",
    "reset-dev",
    "rng",
    "serial-irq",
    "msix-mask",
    "blk-discard",
    "blk-indirect",
    "blk-verify:0:2:limit=1000000:split=odd",
];

fn guest(steady: &Steady) -> Builder {
    let disk = format!("path={},num_queues=2", steady.path("base.img").display());
    Builder::payload_with_memory(&format!("run={}", TASKS.join(",")), "size=64M")
        .flag("--disk", disk)
        .flag("--cpus", "boot=2")
        .with_api()
}

#[test]
fn a_guest_goes_on_from_any_of_them() {
    let begun = Instant::now();
    let exit = guest(&Steady::new()).start().wait(SHORT);
    exit.all_ok(TASKS.len());
    let life = begun.elapsed().as_micros() as u64;
    let mut random = Random::new(0xa11);
    let mut kept = 0;
    for mode in MODES.iter().cycle().take(30) {
        let steady = Steady::new();
        let begun = Instant::now();
        let vmm = guest(&steady).start();
        let api = vmm.api();
        let moment = Duration::from_micros(random.below(life));
        std::thread::sleep(moment.saturating_sub(begun.elapsed()));
        let snapshot = steady.full("snap");
        if api.with(async |c| c.snapshot(&snapshot).await).is_err() {
            // It had ended already.
            assert!(!steady.path("snap").exists());
            vmm.wait(SHORT).all_ok(TASKS.len());
            continue;
        }
        drop(vmm);
        let exit = steady.restore_aside("snap", &format!("mode={mode}")).run();
        exit.all_ok(TASKS.len());
        kept += 1;
    }
    assert!(kept >= 10, "only {kept} were kept");
}
