//! Disks that another process serves: QEMU's storage daemon is the back end.

use std::path::Path;

use skerry_tests::back_end::BackEnd;
use skerry_tests::disk;
use skerry_tests::vmm::{Builder, SHORT};
use skerry_vmm_api::endpoints::Operation;

const SIZE: u64 = 16 << 20;

fn on_socket(tasks: &str, socket: &Path, options: &str) -> Builder {
    let option = format!("vhost_user=on,socket={}{options}", socket.display());
    Builder::payload(tasks).flag("--disk", option)
}

#[test]
fn a_disk_is_exact_in_the_guest_and_in_the_back_ends_file() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
    for queues in [1, 4] {
        disk::create(&image, SIZE);
        let _back_end = BackEnd::start(&image, &socket, queues);
        let tasks = "run=blk-verify,blk-sum,blk-discard,reset-dev,blk-verify:0:5,blk-sum";
        let exit = on_socket(tasks, &socket, &format!(",num_queues={queues}")).run();
        exit.all_ok(6);
        let mut sums = exit
            .serial
            .iter()
            .rev()
            .filter(|l| l.starts_with("ok blk-sum"));
        let last = sums.next().expect("a sum");
        assert!(last.contains(&disk::checksum(&image)), "{last}");
        std::fs::remove_file(&socket).ok();
    }
}

#[test]
fn pauses_and_moves_between_workers_lose_nothing() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
    disk::create(&image, SIZE);
    let _back_end = BackEnd::start(&image, &socket, 2);
    let tasks = "run=blk-churn:0:3:fresh=zero:depth=16,blk-sum";
    let vmm = on_socket(tasks, &socket, ",num_queues=2")
        .flag("--worker", "name=other")
        .with_api()
        .start();
    vmm.expect_line("churn: running", SHORT);
    let api = vmm.api();
    for i in 0..30 {
        api.act(Operation::VmPause);
        api.act(Operation::VmResume);
        let worker = if i % 2 == 0 { "other" } else { "io" };
        api.with(async |c| c.move_queues("_disk0", None, worker).await)
            .expect("vm.move-queues");
    }
    api.act(Operation::VmPowerButton);
    let exit = vmm.wait(SHORT);
    exit.all_ok(2);
    assert_eq!(exit.value("blk-sum", "fnv1a"), disk::checksum(&image));
}

#[test]
fn a_back_end_that_dies_needs_a_reset_and_its_successor_serves() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
    disk::create(&image, SIZE);
    let first = BackEnd::start(&image, &socket, 1);
    let vmm = on_socket("run=blk-survive,blk-verify", &socket, "").start();
    vmm.expect_line("survive: ready", SHORT);
    // The successor listens where the driver's reset will look.
    std::fs::remove_file(&socket).expect("the socket");
    let _second = BackEnd::start(&image, &socket, 1);
    drop(first);
    vmm.expect_line("survive: needs reset", SHORT);
    let exit = vmm.wait(SHORT);
    exit.all_ok(2);
    assert!(exit.errors.contains("went away"), "{exit}");
}

#[test]
fn a_back_end_that_dies_for_good_leaves_the_guest_alive() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
    disk::create(&image, SIZE);
    let first = BackEnd::start(&image, &socket, 1);
    let vmm = on_socket("run=blk-survive,mem", &socket, "")
        .with_api()
        .start();
    vmm.expect_line("survive: ready", SHORT);
    vmm.api().act(Operation::VmPause);
    drop(first);
    vmm.api().act(Operation::VmResume);
    vmm.expect_line("survive: needs reset", SHORT);
    vmm.expect_line("fail blk-survive", SHORT);
    vmm.expect_line("ok mem", SHORT);
    let exit = vmm.wait(SHORT);
    assert!(exit.errors.contains("start it before"), "{exit}");
}

#[test]
fn back_ends_that_are_not_there_or_not_what_they_should_be_are_refused() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let socket = folder.path().join("socket");
    let refused = |options: &str, words: &[&str]| {
        on_socket("run=mem", &socket, options)
            .run()
            .refused(1, words);
    };
    refused(
        "",
        &["no vhost-user back end listens", "start it before the VM"],
    );
    refused(",path=/dev/null", &["_disk0", "path", "leave it out"]);
    refused(",direct=on", &["direct"]);
    // One that accepts and says nothing is given up after a while.
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    refused("", &["GET_FEATURES"]);
    drop(listener);
    std::fs::remove_file(&socket).expect("the socket");
    let image = folder.path().join("image");
    disk::create(&image, SIZE);
    let _back_end = BackEnd::start(&image, &socket, 1);
    refused(",num_queues=4", &["serves 1 queues and not 4"]);
    let vmm = Builder::payload("run=mem");
    let bare = vmm.flag("--disk", "vhost_user=on").run();
    bare.refused(1, &["_disk0", "socket=PATH"]);
    let alone = Builder::payload("run=mem")
        .flag("--disk", "socket=/x")
        .run();
    alone.refused(1, &["vhost_user=on"]);
}
