//! Machines that are made of one snapshot, and machines that wait for one.

use std::path::PathBuf;

use skerry_tests::disk::checksum;
use skerry_tests::steady::{Steady, works};
use skerry_tests::vmm::{Builder, SHORT};
use skerry_tests::vsock::EchoServer;
use skerry_tests::{Vmm, given};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::ConsoleMode;
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{RestoreMode, VmPrepare, VmRestore, VsockIdentity};

/// A monitor whose VM was made by the API, and which waits for more.
fn ends_well(mut vmm: Vmm) {
    vmm.type_text("q");
    vmm.expect_line("ok steady", SHORT);
    let api = vmm.api();
    api.expect_state(VmState::Shutdown, SHORT);
    api.act(Operation::VmmShutdown);
    assert_eq!(vmm.wait(SHORT).code, Some(0));
}

#[test]
fn ten_of_one_snapshot_run_side_by_side() {
    let steady = Steady::new();
    steady.boot_and_keep("snap");
    let files = ["snap/state", "snap/memory", "base.img"].map(|name| steady.path(name));
    let sums = || files.each_ref().map(|file| checksum(file));
    let before = sums();
    let modes = [RestoreMode::Lazy, RestoreMode::Copy, RestoreMode::Userfault];
    let monitors: Vec<(Vmm, EchoServer)> = (0..10)
        .map(|i| {
            let vmm = Builder::api_only().start();
            let socket = vmm.path("vsock");
            let echo = EchoServer::start(&socket, 5000);
            let restore = VmRestore {
                mode: modes[i % modes.len()],
                vsock: Some(VsockIdentity {
                    cid: Some(10 + i as u64),
                    socket: Some(socket),
                }),
                ..steady.again("snap", Some(&vmm.path("")))
            };
            vmm.api().restore(&restore);
            (vmm, echo)
        })
        .collect();
    for (i, (vmm, _)) in monitors.iter().enumerate() {
        works(vmm);
        let config = vmm.api().info().config;
        assert_eq!(config.vsock.map(|vsock| vsock.cid), Some(10 + i as u64));
        assert_eq!(config.disks[0].path, vmm.path("_disk0.qcow2"));
    }
    for (mut vmm, _echo) in monitors {
        vmm.type_text("q");
        let line = vmm.expect_line("ok steady", SHORT);
        assert!(line.contains(" reconnects=1 "), "{line}");
        vmm.api().act(Operation::VmmShutdown);
        assert_eq!(vmm.wait(SHORT).code, Some(0));
    }
    assert_eq!(sums(), before, "what they were made of changed");
}

/// A snapshot, a monitor without a VM, and a folder for layers.
fn waiting() -> (Steady, Vmm, PathBuf) {
    let steady = Steady::new();
    steady.boot_and_keep("snap");
    let layers = steady.folder("layers");
    (steady, Builder::api_only().start(), layers)
}

fn prepared(cpus: u32, memory: u64) -> VmPrepare {
    let mut prepare = VmPrepare::default();
    prepare.cpus.boot_vcpus = cpus;
    prepare.memory.size = memory;
    prepare
}

#[test]
fn a_prepared_vm_is_what_a_snapshot_is_restored_into() {
    let (steady, vmm, layers) = waiting();
    let api = vmm.api();
    // The second takes the first one's place.
    for _ in 0..2 {
        api.prepare(&prepared(1, 64 << 20));
        api.refused(Operation::VmInfo, "", 404, &["vm.create"]);
    }
    api.restore(&steady.again("snap", Some(&layers)));
    works(&vmm);
    let body = serde_json::to_string(&prepared(1, 64 << 20)).expect("JSON");
    api.refused(Operation::VmPrepare, &body, 409, &["vm.delete"]);
    ends_well(vmm);
}

#[test]
fn one_of_another_size_is_not_in_the_way() {
    for (cpus, memory) in [(2, 64 << 20), (1, 128 << 20)] {
        let (steady, vmm, layers) = waiting();
        let api = vmm.api();
        api.prepare(&prepared(cpus, memory));
        api.restore(&steady.again("snap", Some(&layers)));
        works(&vmm);
        ends_well(vmm);
    }
}

#[test]
fn a_prepared_vm_is_what_a_kernel_is_booted_into() {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    for (round, cpus) in [(1, 1), (2, 2)] {
        api.prepare(&prepared(1, 128 << 20));
        let mut config = VmConfig::default();
        config.memory.size = 128 << 20;
        config.cpus.boot_vcpus = cpus;
        config.payload.kernel = Some(given("SKERRY_PAYLOAD"));
        config.payload.cmdline = Some(format!("run=cpus:{cpus},mem off=spin"));
        config.serial.mode = ConsoleMode::Tty;
        config.console.mode = ConsoleMode::Off;
        api.create(&config);
        api.act(Operation::VmBoot);
        vmm.expect_nth_line("done ok=2 fail=0", round, SHORT);
        api.act(Operation::VmDelete);
    }
}

#[test]
fn one_that_cannot_be_is_refused() {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    for (cpus, memory, words) in [
        (65, 64 << 20, ["boot=65", "1 to 64"]),
        (1, 1024, ["size=1024", "memory"]),
    ] {
        let body = serde_json::to_string(&prepared(cpus, memory)).expect("JSON");
        api.refused(Operation::VmPrepare, &body, 400, &words);
    }
}

#[test]
fn a_vm_is_deleted_and_another_one_made_of_the_same_snapshot() {
    let (steady, vmm, _) = waiting();
    let api = vmm.api();
    for round in 0..5 {
        let layers = steady.folder(&format!("layers{round}"));
        api.restore(&steady.again("snap", Some(&layers)));
        works(&vmm);
        api.act(Operation::VmDelete);
    }
}
