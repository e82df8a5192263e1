//! The monitor dies while it takes a snapshot: that is whole or not there, and the disks go on.

use std::time::Duration;

use skerry_snapshot::{Chain, Directory};
use skerry_tests::disk;
use skerry_tests::random::Random;
use skerry_tests::steady::{DISK, MODES, Steady, finish, started};
use skerry_tests::vmm::Builder;
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::snapshots::{DiskOverlay, VmSnapshot};

/// Kills the monitor so long after it was asked for a snapshot. Whether that is there.
fn die_after(wait: Duration, mode: &str) -> bool {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let _begun = vmm.api().begin(Operation::VmSnapshot, &steady.full("snap"));
    std::thread::sleep(wait);
    drop(vmm);
    let directory = Directory::new(steady.path("snap"));
    let is_there = directory.path().exists();
    let overlay = steady.path("base-snap.qcow2");
    let base = steady.path("base.img").display().to_string();
    let chain = if overlay.exists() {
        disk::check(&overlay);
        format!("path={},backing=[raw:{base}]", overlay.display())
    } else {
        assert!(!is_there, "a snapshot without its disk's new layer");
        format!("path={base}")
    };
    if is_there {
        let whole = Chain::open(&directory).and_then(|chain| chain.verify());
        whole.expect("what has its name is whole");
        finish(
            steady
                .restore_aside("snap", &format!("mode={mode}"))
                .start(),
        );
    }
    let exit = Builder::payload("run=blk-sum").flag("--disk", &chain).run();
    exit.all_ok(1);
    if steady.path("snap.partial").exists() {
        // What it left is in nobody's way.
        let vmm = started(steady.boot_on(&chain, ""));
        vmm.api().keep(&VmSnapshot {
            overlays: vec![DiskOverlay {
                id: DISK.into(),
                path: steady.path("next.qcow2"),
            }],
            ..steady.full("snap")
        });
        drop(vmm);
        assert!(!steady.path("snap.partial").exists());
        finish(
            steady
                .restore_aside("snap", &format!("mode={mode}"))
                .start(),
        );
    }
    is_there
}

#[test]
fn at_any_moment() {
    let mut random = Random::new(0x5eed);
    let mut whole = 0;
    for (round, mode) in (0..20).zip(MODES.iter().cycle()) {
        // Most are over by the later of them.
        let most = if round % 2 == 0 { 40_000 } else { 160_000 };
        let wait = Duration::from_micros(random.below(most));
        whole += u32::from(die_after(wait, mode));
    }
    println!("{whole} of 20 were whole");
}

#[test]
fn what_a_dead_one_left_of_a_layer_is_no_hindrance() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    std::fs::write(steady.path("base-snap.qcow2.new"), "half a layer").expect("a file");
    steady.keep(&vmm.api(), "snap");
    assert!(!steady.path("base-snap.qcow2.new").exists());
    finish(vmm);
}
