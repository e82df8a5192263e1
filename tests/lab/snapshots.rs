//! Linux in snapshots: under a load that checks all that it does.

use std::path::Path;
use std::time::{Duration, Instant};

use skerry_tests::Api;
use skerry_tests::steady::MODES;
use skerry_vmm_api::snapshots::VmSnapshot;

use crate::loaded::{DISK, Loaded};

fn snapshot(api: &Api, path: &Path, kind: &str) {
    let request = serde_json::json!({
        "destination_url": format!("file://{}", path.display()),
        "type": kind,
        "track_dirty": true,
    });
    let request: VmSnapshot = serde_json::from_value(request).expect("a request");
    api.keep(&request);
}

#[test]
fn linux_goes_on_from_full_and_diff_snapshots_in_every_mode() {
    let (guest, vmm) = Loaded::start();
    let api = vmm.api();
    snapshot(&api, &guest.path("full"), "full");
    guest.works(&vmm);
    snapshot(&api, &guest.path("diff"), "diff");
    guest.works(&vmm);
    drop(vmm);
    for (from, mode) in [("full", "lazy"), ("diff", "copy"), ("diff", "userfault")] {
        let overlays = guest.path(&format!("{from}-{mode}"));
        let vmm = guest.restored(&guest.path(from), mode, &overlays);
        guest.works(&vmm);
        let lines = vmm.lines();
        let forked = lines
            .iter()
            .any(|line| line.contains("virtual machine fork"));
        println!("{from} {mode}: the kernel noticed that it was forked: {forked}");
        guest.ends_well(vmm, &overlays.join(format!("{DISK}.qcow2")), false);
    }
}

#[test]
fn linux_is_restored_again_and_again() {
    // Ten of them make a hundred restores: `cargo xtask soak --restores 100`.
    let restores = std::env::var("SKERRY_RESTORES").ok();
    let restores = restores.and_then(|n| n.parse().ok()).unwrap_or(20);
    const RESTORES: usize = 10;
    // Indices of modes. A copy reads all of memory twice, which is most of what it costs where every
    // instruction is emulated.
    const ORDER: [usize; 5] = [0, 2, 0, 2, 1];
    let (guest, mut vmm) = Loaded::start();
    let mut image = guest.path("data.qcow2");
    // What it took so far.
    let (mut kept, mut restored) = (Duration::ZERO, [Duration::ZERO; MODES.len()]);
    for generation in 0..usize::div_ceil(restores, RESTORES) {
        let from = guest.path(&format!("snap{generation}"));
        let begun = Instant::now();
        snapshot(&vmm.api(), &from, "full");
        kept += begun.elapsed();
        drop(vmm);
        let mut restore = |again: usize| {
            let layers = guest.path(&format!("layers{generation}-{again}"));
            let mode = ORDER[(generation + again) % ORDER.len()];
            let begun = Instant::now();
            let vmm = guest.restored(&from, MODES[mode], &layers);
            guest.works(&vmm);
            restored[mode] += begun.elapsed();
            (vmm, layers.join(format!("{DISK}.qcow2")))
        };
        // Each of them ends before the next one starts, and the last is what the next generation is made of.
        (1..RESTORES).for_each(|again| drop(restore(again)));
        (vmm, image) = restore(RESTORES);
        std::fs::remove_dir_all(&from).expect("a snapshot");
        println!(
            "generation {generation}: snapshots took {kept:?}, restores in {MODES:?} {restored:?}"
        );
    }
    guest.ends_well(vmm, &image, false);
}
