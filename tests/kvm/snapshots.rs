//! A machine is kept in a snapshot, its monitor dies, and another one goes on from there.

use skerry_tests::disk::{self, qemu_img};
use skerry_tests::steady::{DISK, MODES, Steady, finish, reconnects, started, works};
use skerry_tests::vmm::{Builder, SHORT};
use skerry_tests::{Tap, eventually};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::{DiskJobState, VmState};
use skerry_vmm_api::snapshots::{AfterSnapshot, DiskOverlay, VmSnapshot};

#[test]
fn a_loaded_machine_goes_on_in_another_process() {
    for mode in MODES {
        let steady = Steady::new();
        steady.boot_and_keep("snap");
        let exit = finish(started(
            steady.restore_aside("snap", &format!("mode={mode}")),
        ));
        assert_eq!(reconnects(&exit), 1, "{exit}");
    }
}

#[test]
fn so_it_does_with_layers_queues_and_a_network() {
    for mode in MODES {
        let (steady, tap) = (Steady::new(), Tap::new());
        let words = format!(":net=0:ip={}:peer={}", tap.guest(), tap.host());
        let vmm = started(
            steady
                .boot_on(&steady.layered(), &words)
                .flag("--net", format!("tap={}", tap.name)),
        );
        steady.keep(&vmm.api(), "snap");
        drop(vmm);
        let vmm = started(steady.restore_aside("snap", &format!("mode={mode}")));
        let api = vmm.api();
        eventually("the host answers", SHORT, || {
            (api.counters()["_net0"]["rx_frames"] > 2).then_some(())
        });
        let exit = finish(vmm);
        assert_eq!(reconnects(&exit), 1, "{exit}");
    }
}

#[test]
fn so_it_does_with_two_cpus_a_polling_worker_and_a_disk_past_the_page_cache() {
    for mode in MODES {
        let steady = Steady::new();
        let disk = format!(
            "path={},direct=on,worker=io",
            steady.path("base.img").display()
        );
        let vmm = started(
            steady
                .boot_after("cpus:2,", &disk, "")
                .flag("--cpus", "boot=2")
                .flag("--worker", "name=io,poll-max-ns=inf"),
        );
        steady.keep(&vmm.api(), "snap");
        drop(vmm);
        let vmm = started(steady.restore_aside("snap", &format!("mode={mode}")));
        let config = vmm.api().info().config;
        assert_eq!(config.cpus.boot_vcpus, 2);
        assert!(config.disks[0].direct, "{:?}", config.disks);
        finish(vmm);
    }
}

#[test]
fn a_hundred_generations_are_each_made_of_the_one_before() {
    const GENERATIONS: usize = 100;
    let steady = Steady::new();
    let mut vmm = started(steady.boot(""));
    for generation in 0..GENERATIONS {
        let (api, name) = (vmm.api(), format!("snap{generation}"));
        // Each adds a layer, and a disk has at most 64.
        if generation % 25 == 24 {
            let job = api.expect_job(&api.stream(DISK, None), SHORT);
            assert_eq!(job.state, DiskJobState::Done, "{job:?}");
        }
        steady.keep(&api, &name);
        drop(vmm);
        let layers = steady.folder(&format!("layers{generation}"));
        let mode = MODES[generation % MODES.len()];
        let options = format!("mode={mode},overlay_dir={}", layers.display());
        vmm = started(steady.restore(&name, &options));
        std::fs::remove_dir_all(steady.path(&name)).expect("a snapshot");
    }
    let exit = finish(vmm);
    assert_eq!(reconnects(&exit), GENERATIONS as u64, "{exit}");
}

#[test]
fn one_snapshot_is_restored_many_times() {
    let steady = Steady::new();
    steady.boot_and_keep("snap");
    for mode in MODES.iter().cycle().take(20) {
        let vmm = started(steady.restore_aside("snap", &format!("mode={mode}")));
        let exit = finish(vmm);
        assert_eq!(reconnects(&exit), 1, "{exit}");
    }
}

#[test]
fn a_running_vm_goes_on_with_new_layers_on_its_disks() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    let top = |name: &str| {
        assert_eq!(api.info().state, VmState::Running);
        let disk = api.info().config.disks.remove(0);
        assert_eq!(disk.path, steady.path(name));
        disk.backing
    };
    let info = steady.keep(&api, "one");
    assert!(
        info.memory_bytes > 8 << 20 && info.paused_bytes < info.memory_bytes,
        "{info:?}"
    );
    assert_eq!(top("base-one.qcow2").len(), 1);
    works(&vmm);
    // Where it was asked for, and all of memory in the pause.
    let own = DiskOverlay {
        id: DISK.into(),
        path: steady.path("mine"),
    };
    let info = api.keep(&VmSnapshot {
        overlays: vec![own],
        live: false,
        ..steady.full("two")
    });
    assert!(
        info.memory_bytes > 8 << 20 && info.paused_bytes == info.memory_bytes,
        "{info:?}"
    );
    assert_eq!(top("mine").len(), 2);
    works(&vmm);
    finish(vmm);
    for image in ["base-one.qcow2", "mine"] {
        qemu_img(&["check", "-q", "-f", "qcow2"], &[&steady.path(image)], &[]);
    }
    for name in ["one", "two"] {
        finish(started(steady.restore_aside(name, "verify=on")));
        // That would change what is below the new layers.
        let words = ["went on after it", "overlay_dir=DIR"];
        steady.restore(name, "in_place=on").run().refused(1, &words);
    }
}

#[test]
fn a_paused_vm_stays_paused() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    api.act(Operation::VmPause);
    steady.keep(&api, "snap");
    assert_eq!(api.info().state, VmState::Paused);
    api.act(Operation::VmResume);
    works(&vmm);
    finish(vmm);
    // So does one that is restored, if that is asked for.
    let vmm = steady.restore_aside("snap", "resume=off").start();
    let api = vmm.api();
    assert_eq!(api.info().state, VmState::Paused);
    api.act(Operation::VmResume);
    works(&vmm);
    finish(vmm);
}

#[test]
fn a_stopped_vms_disks_go_on_once() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    let before = steady.names();
    api.keep(&VmSnapshot {
        after: AfterSnapshot::Stop,
        ..steady.full("snap")
    });
    assert_eq!(api.info().state, VmState::Shutdown);
    drop(vmm);
    let mut after = before;
    after.push("snap".into());
    after.retain(|name| name != "vsock");
    after.sort_unstable();
    assert_eq!(steady.names(), after, "no layer is made");
    let vmm = started(steady.restore("snap", "in_place=on"));
    assert_eq!(
        vmm.api().info().config.disks[0].path,
        steady.path("base.img")
    );
    finish(vmm);
    // They are not what the guest's memory knows any more, neither by themselves nor below others.
    let words = ["went on without it", "snap"];
    steady
        .restore("snap", "in_place=on")
        .run()
        .refused(1, &words);
    steady.restore_aside("snap", "").run().refused(1, &words);
}

#[test]
fn a_restored_vm_reboots_and_is_kept_again() {
    let steady = Steady::new();
    steady.boot_and_keep("snap");
    for mode in MODES {
        let layers = steady.folder(&format!("layers-{mode}"));
        let options = format!("mode={mode},overlay_dir={}", layers.display());
        let vmm = started(steady.restore("snap", &options));
        let api = vmm.api();
        api.act(Operation::VmReboot);
        vmm.expect_line("# steady: ready", SHORT);
        works(&vmm);
        steady.keep(&api, mode);
        finish(vmm);
        finish(started(steady.restore_aside(mode, "")));
    }
}

#[test]
fn what_a_snapshot_needs_is_found_from_anywhere() {
    let steady = Steady::new();
    std::fs::rename(steady.path("base.img"), steady.path("disk")).expect("renamed");
    let vmm = started(steady.boot_on("path=disk", "").within(&steady.path("")));
    steady.keep(&vmm.api(), "snap");
    assert!(steady.path("disk-snap.qcow2").exists());
    drop(vmm);
    finish(
        steady
            .restore_aside("snap", "")
            .within("/".as_ref())
            .start(),
    );
}

#[test]
fn many_in_a_row_have_room_for_their_names() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    for i in 0..10 {
        let name = format!("every-hour-in-the-year-2026-{i:02}");
        steady.keep(&api, &name);
        let disk = api.info().config.disks.remove(0);
        assert_eq!(disk.path, steady.path(&format!("base-{name}.qcow2")));
    }
    assert_eq!(api.layers(DISK), 11);
    finish(vmm);
}

#[test]
fn a_disk_that_is_only_read_stays_as_it_is() {
    let steady = Steady::new();
    let read = steady.path("read.img");
    disk::create(&read, 1 << 20);
    let option = format!("path={},readonly=on", read.display());
    let vmm = started(steady.boot("").flag("--disk", option));
    steady.keep(&vmm.api(), "snap");
    drop(vmm);
    for mode in MODES {
        let vmm = started(steady.restore_aside("snap", &format!("mode={mode}")));
        let disk = vmm.api().info().config.disks.remove(1);
        assert!(disk.readonly && disk.path == read && disk.backing.is_empty());
        finish(vmm);
    }
}

#[test]
fn a_snapshot_that_cannot_be_is_refused_and_leaves_nothing() {
    use Operation::{VmShutdown, VmSnapshot as Snapshot};
    let steady = Steady::new();
    let body = |snapshot: &VmSnapshot| serde_json::to_string(snapshot).expect("JSON");
    let good = body(&steady.full("snap"));
    let none = Builder::api_only().start();
    none.api().refused(Snapshot, &good, 404, &["vm.create"]);
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    steady.folder("there");
    let before = steady.names();
    let refused = |snapshot: &VmSnapshot, status: u16, words: &[&str]| {
        api.refused(Snapshot, &body(snapshot), status, words);
        assert_eq!(steady.names(), before);
    };
    refused(&steady.full("there"), 409, &["there is there already"]);
    refused(
        &steady.full("no/folder"),
        500,
        &["no/folder", "No such file"],
    );
    let full = steady.full("snap");
    let url = "/var/lib/snap".to_owned();
    let strange = VmSnapshot {
        destination_url: url,
        ..full.clone()
    };
    refused(&strange, 400, &["`/var/lib/snap`", "file:///"]);
    let over = |id: &str, path: &str| VmSnapshot {
        overlays: vec![DiskOverlay {
            id: id.into(),
            path: steady.path(path),
        }],
        ..full.clone()
    };
    refused(&over("data", "new"), 404, &["`data`"]);
    refused(&over(DISK, "base.img"), 500, &["base.img", "there already"]);
    refused(&over(DISK, "no/layer"), 500, &["no/layer", "No such file"]);
    works(&vmm);
    api.act(VmShutdown);
    api.refused(Snapshot, &good, 405, &["shut down"]);
}
