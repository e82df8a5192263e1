//! Snapshots of machines whose disks another process serves, and machines made of those.

use std::path::{Path, PathBuf};

use skerry_tests::back_end::BackEnd;
use skerry_tests::receiver::{Receiver, unix};
use skerry_tests::steady::{DISK, Steady, finish, names, started, works};
use skerry_tests::vmm::{Builder, SHORT};
use skerry_tests::{Api, Vmm, disk};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{
    AfterSnapshot, DiskIdentity, DiskOverlay, FsIdentity, NetIdentity, RestoreMode, SnapshotKind,
    VmRestore, VmSendMigration, VmSnapshot,
};

/// The guest whose disk `base.img` a back end serves over `queues` queues.
fn served(steady: &Steady, queues: u16) -> (BackEnd, Vmm) {
    let socket = steady.path("disk.sock");
    let back_end = BackEnd::start(&steady.path("base.img"), &socket, queues);
    let option = format!(
        "vhost_user=on,socket={},num_queues={queues}",
        socket.display()
    );
    let vmm = started(steady.boot_on(&option, ""));
    (back_end, vmm)
}

/// Pauses the guest, freezes its disk as `frozen.img`, and keeps it in `snap`; it goes on then.
fn keep_frozen(steady: &Steady, api: &Api) {
    keep_frozen_as(steady, api, &steady.full("snap"));
}

/// The same as it is asked.
fn keep_frozen_as(steady: &Steady, api: &Api, snapshot: &VmSnapshot) {
    api.act(Operation::VmPause);
    std::fs::copy(steady.path("base.img"), steady.path("frozen.img")).expect("frozen");
    let info = api.keep(snapshot);
    assert_eq!(info.paused_bytes, info.memory_bytes, "{info:?}");
    assert_eq!(api.info().state, VmState::Paused);
    api.act(Operation::VmResume);
}

/// A back end of another copy of the frozen disk, and its socket.
fn successor(steady: &Steady, name: &str, queues: u16) -> (BackEnd, PathBuf) {
    let (image, socket) = (
        steady.path(&format!("{name}.img")),
        steady.path(&format!("{name}.sock")),
    );
    std::fs::copy(steady.path("frozen.img"), &image).expect("a copy");
    let back_end = BackEnd::start(&image, &socket, queues);
    (back_end, socket)
}

#[test]
fn a_loaded_machine_goes_on_in_another_process_on_another_back_end() {
    for queues in [1, 2] {
        let steady = Steady::new();
        let (back_end, vmm) = served(&steady, queues);
        keep_frozen(&steady, &vmm.api());
        works(&vmm);
        drop(finish(vmm));
        drop(back_end);
        for mode in ["copy", "userfault"] {
            let (_back_end, socket) = successor(&steady, mode, queues);
            let option = format!("mode={mode},disks=[{DISK}@{}]", socket.display());
            let vmm = started(steady.restore("snap", &option));
            let disk = vmm.api().info().config.disks.remove(0);
            assert_eq!(disk.vhost_socket, Some(socket));
            // It is as good a machine as any: it is paused, and kept and restored once more.
            let again = format!("{mode}-again");
            vmm.api().act(Operation::VmPause);
            let image = steady.path(&format!("{mode}.img"));
            std::fs::copy(image, steady.path("frozen-again.img")).expect("frozen");
            steady.keep(&vmm.api(), &again);
            vmm.api().act(Operation::VmResume);
            drop(finish(vmm));
            let socket = steady.path("again.sock");
            let image = steady.path("frozen-again.img");
            let _back_end = BackEnd::start(&image, &socket, queues);
            let option = format!("mode={mode},disks=[{DISK}@{}]", socket.display());
            drop(finish(started(steady.restore(&again, &option))));
            std::fs::remove_file(socket).expect("the socket");
        }
    }
}

#[test]
fn so_it_does_from_where_its_snapshot_was_received() {
    let steady = Steady::new();
    let (back_end, vmm) = served(&steady, 2);
    let socket = steady.path("receive.sock");
    let receiver = Receiver::at(&socket, &steady.path("snap"), &[]);
    let snapshot = VmSnapshot {
        destination_url: unix(&socket),
        ..steady.full("unused")
    };
    keep_frozen_as(&steady, &vmm.api(), &snapshot);
    receiver.id();
    works(&vmm);
    drop(finish(vmm));
    drop(back_end);
    for mode in ["copy", "userfault"] {
        let (_back_end, socket) = successor(&steady, mode, 2);
        let option = format!("mode={mode},disks=[{DISK}@{}]", socket.display());
        drop(finish(started(steady.restore("snap", &option))));
    }
}

#[test]
fn a_machine_that_ends_with_its_snapshot_goes_on_with_the_same_back_end() {
    let steady = Steady::new();
    let (_back_end, vmm) = served(&steady, 1);
    let api = vmm.api();
    let info = api.keep(&VmSnapshot {
        after: AfterSnapshot::Stop,
        ..steady.full("snap")
    });
    assert_eq!(info.paused_bytes, info.memory_bytes, "{info:?}");
    api.expect_state(VmState::Shutdown, SHORT);
    drop(vmm);
    drop(finish(started(steady.restore("snap", "mode=copy"))));
}

#[test]
fn a_disk_that_is_only_read_is_kept_while_the_guest_runs() {
    let steady = Steady::new();
    let (image, socket) = (steady.path("readonly.img"), steady.path("disk.sock"));
    disk::create(&image, 1 << 20);
    let back_end = BackEnd::start_readonly(&image, &socket, 1);
    let option = format!("vhost_user=on,socket={}", socket.display());
    let own = format!("path={}", steady.path("base.img").display());
    let vmm = started(steady.boot_on(&own, "").flag("--disk", option));
    let api = vmm.api();
    let all = steady.keep(&api, "snap");
    assert_eq!(all.paused_bytes, all.memory_bytes, "{all:?}");
    works(&vmm);
    // The one beside it has a new layer.
    assert_eq!(
        steady
            .names()
            .iter()
            .filter(|n| n.ends_with("qcow2"))
            .count(),
        1
    );
    drop(finish(vmm));
    drop(finish(started(
        steady.restore_aside("snap", "mode=userfault"),
    )));
    drop(back_end);
    // One that lets the guest write, all of a sudden, is another disk.
    std::fs::remove_file(&socket).expect("the socket");
    let _writable = BackEnd::start(&image, &socket, 1);
    let exit = steady.restore_aside("snap", "mode=copy").run();
    exit.refused(1, &["_disk1", "start", "the one before"]);
}

/// A monitor without a VM that is asked for what cannot be.
fn refuses(steady: &Steady, restore: &VmRestore, status: u16, words: &[&str]) {
    let vmm = Builder::api_only().start();
    let before = steady.names();
    let error = vmm
        .api()
        .with(async |c| c.restore(restore).await)
        .expect_err("a refusal");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in {text}");
    }
    assert!(Api::is_refusal(&error, status), "{text}");
    assert_eq!(steady.names(), before, "{text}");
}

#[test]
fn snapshots_that_would_be_wrong_are_refused_and_leave_nothing() {
    let steady = Steady::new();
    let (_back_end, vmm) = served(&steady, 1);
    let api = vmm.api();
    let before = steady.names();
    let refused = |snapshot: &VmSnapshot, words: &[&str]| {
        let body = serde_json::to_string(snapshot).expect("JSON");
        api.refused(Operation::VmSnapshot, &body, 400, words);
        assert_eq!(steady.names(), before);
    };
    let full = steady.full("snap");
    refused(&full, &[DISK, "vm.pause", "vm.resume", "after=stop"]);
    let tracked = VmSnapshot {
        track_dirty: true,
        ..full.clone()
    };
    refused(&tracked, &[DISK, "another process", "without track_dirty"]);
    api.act(Operation::VmPause);
    refused(&tracked, &[DISK, "without track_dirty"]);
    let diff = VmSnapshot {
        kind: SnapshotKind::Diff,
        ..full.clone()
    };
    refused(&diff, &[DISK, "a full snapshot"]);
    let layered = VmSnapshot {
        overlays: vec![DiskOverlay {
            id: DISK.into(),
            path: steady.path("layer.qcow2"),
        }],
        ..full
    };
    refused(&layered, &[DISK, "another process"]);
    api.act(Operation::VmResume);
    let send = VmSendMigration::to("unix:/nowhere");
    let body = serde_json::to_string(&send).expect("JSON");
    api.refused(
        Operation::VmSendMigration,
        &body,
        400,
        &[DISK, "vm.snapshot"],
    );
    works(&vmm);
    drop(finish(vmm));
}

#[test]
fn restores_that_would_be_wrong_are_refused_before_anything_is_touched() {
    let steady = Steady::new();
    let (back_end, vmm) = served(&steady, 2);
    keep_frozen(&steady, &vmm.api());
    drop(vmm);
    drop(back_end);
    std::fs::remove_file(steady.path("disk.sock")).expect("the socket");
    let socket = |name: &str| DiskIdentity {
        id: DISK.into(),
        vhost_socket: steady.path(name),
    };
    let good = |name: &str| VmRestore {
        mode: RestoreMode::Copy,
        disks: vec![socket(name)],
        ..steady.again("snap", None)
    };
    let (one, path) = successor(&steady, "one", 2);
    let lazy = VmRestore {
        mode: RestoreMode::Lazy,
        ..good("one.sock")
    };
    refuses(&steady, &lazy, 400, &[DISK, "mode=copy or mode=userfault"]);
    let tracked = VmRestore {
        track_dirty: true,
        ..good("one.sock")
    };
    refuses(&steady, &tracked, 400, &[DISK, "without track_dirty"]);
    let as_it_was = VmRestore {
        disks: Vec::new(),
        ..good("one.sock")
    };
    let words = [
        DISK,
        "disk.sock",
        "start its back end",
        "another one's socket",
    ];
    refuses(&steady, &as_it_was, 400, &words);
    refuses(
        &steady,
        &good("one.img"),
        400,
        &[DISK, "one.img is no socket"],
    );
    let mut wrong = good("one.sock");
    wrong.disks[0].id = "data".into();
    wrong.fs.push(FsIdentity {
        id: "home".into(),
        socket: path,
    });
    wrong.net.push(NetIdentity {
        id: "eth0".into(),
        vhost_socket: Some("/x".into()),
        ..NetIdentity::default()
    });
    wrong.overlays.push(DiskOverlay {
        id: DISK.into(),
        path: steady.path("layer.qcow2"),
    });
    let words = [
        "no disk `data`",
        "directory `home`",
        "network `eth0`",
        "its layers",
    ];
    refuses(&steady, &wrong, 400, &words);
    // A dry run says the same, and asks no back end: some serve one connection only.
    let vmm = Builder::api_only().start();
    let dry = |restore: VmRestore| {
        let dry_run = true;
        vmm.api()
            .restore(&VmRestore { dry_run, ..restore })
            .problems
    };
    let problems = dry(VmRestore {
        track_dirty: true,
        ..lazy
    });
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!(dry(as_it_was).len(), 1);
    assert_eq!(dry(good("one.sock")), Vec::<String>::new());
    drop(vmm);
    drop(one);
    // What only the back end can tell: it serves less than the one before.
    let (_less, _) = successor(&steady, "less", 1);
    refuses(
        &steady,
        &good("less.sock"),
        500,
        &["serves 1 queues and not 2"],
    );
    let (image, readonly) = (steady.path("frozen.img"), steady.path("readonly.sock"));
    let _readonly = BackEnd::start_readonly(&image, &readonly, 2);
    refuses(&steady, &good("readonly.sock"), 500, &[DISK, "one before"]);
    let (_two, _) = successor(&steady, "two", 2);
    let vmm = Builder::api_only().start();
    vmm.api().restore(&good("two.sock"));
    works(&vmm);
}

#[test]
fn a_back_end_that_is_gone_at_a_snapshot_is_named_and_the_guest_goes_on() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
    disk::create(&image, 16 << 20);
    let back_end = BackEnd::start(&image, &socket, 1);
    let option = format!("vhost_user=on,socket={}", socket.display());
    let vmm = Builder::payload("run=blk-survive,mem")
        .flag("--disk", option)
        .with_api()
        .start();
    vmm.expect_line("survive: ready", SHORT);
    drop(back_end);
    let before = names(folder.path());
    refuses_to_keep(&vmm.api(), &folder.path().join("snap"), "stop");
    assert_eq!(names(folder.path()), before);
    vmm.expect_line("survive: needs reset", SHORT);
    vmm.expect_line("ok mem", SHORT);
    vmm.wait(SHORT);
}

#[test]
fn a_back_end_that_is_gone_in_a_pause_is_named_and_its_successor_goes_on() {
    let steady = Steady::new();
    let (back_end, vmm) = served(&steady, 1);
    let api = vmm.api();
    api.act(Operation::VmPause);
    drop(back_end);
    std::fs::remove_file(steady.path("disk.sock")).expect("the socket");
    let before = steady.names();
    refuses_to_keep(&api, &steady.path("snap"), "continue");
    assert_eq!(steady.names(), before);
    assert_eq!(api.info().state, VmState::Paused);
    let _successor = BackEnd::start(&steady.path("base.img"), &steady.path("disk.sock"), 1);
    api.act(Operation::VmResume);
    works(&vmm);
    keep_frozen(&steady, &api);
    drop(finish(vmm));
}

fn refuses_to_keep(api: &Api, snap: &Path, after: &str) {
    let body = format!(
        r#"{{"destination_url": "file://{}", "after": "{after}"}}"#,
        snap.display()
    );
    let words = [DISK, "cannot be kept", "went away", "start it again"];
    api.refused(Operation::VmSnapshot, &body, 500, &words);
}
