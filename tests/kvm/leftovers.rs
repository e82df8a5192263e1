//! Nothing is left behind: sockets, locks, processes.

use skerry_tests::vmm::{Builder, SHORT, assert_gone};
use skerry_tests::{Tap, disk, eventually};

#[test]
fn sockets_go_and_locks_end_with_the_monitor() {
    let disk = tempfile::NamedTempFile::new().expect("a file");
    disk::create(disk.path(), 1 << 20);
    let folder = tempfile::TempDir::new().expect("a folder");
    let (api, vsock) = (folder.path().join("api"), folder.path().join("vsock"));
    let tap = Tap::new();
    // Twice with the same disk, tap and sockets: the first one has let go of all of them.
    for _ in 0..2 {
        let vmm = Builder::payload("run=blk-info off=spin")
            .flag("--disk", format!("path={}", disk.path().display()))
            .flag("--net", format!("tap={}", tap.name))
            .flag("--vsock", format!("cid=3,socket={}", vsock.display()))
            .flag("--api-socket", format!("path={}", api.display()))
            .start();
        vmm.expect_line("done", SHORT);
        eventually("the API listens", SHORT, || api.exists().then_some(()));
        vmm.terminate();
        assert_eq!(vmm.wait(SHORT).code, Some(0));
        assert_gone(&api);
        assert_gone(&vsock);
    }
}

#[test]
fn a_killed_monitors_sockets_are_taken_over() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (api, vsock) = (folder.path().join("api"), folder.path().join("vsock"));
    for _ in 0..2 {
        let vmm = Builder::payload("off=spin")
            .flag("--vsock", format!("cid=3,socket={}", vsock.display()))
            .flag("--api-socket", format!("path={}", api.display()))
            .start();
        vmm.expect_line("done", SHORT);
        eventually("the API listens", SHORT, || api.exists().then_some(()));
        // Dropping kills it, which leaves the sockets' files.
    }
    assert!(vsock.exists());
}

#[test]
fn a_failed_start_leaves_nothing() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (api, vsock) = (folder.path().join("api"), folder.path().join("vsock"));
    let exit = Builder::payload("off=acpi")
        .flag("--vsock", format!("cid=3,socket={}", vsock.display()))
        .flag("--api-socket", format!("path={}", api.display()))
        .flag("--disk", "path=/does/not/exist")
        .run();
    exit.refused(1, &["/does/not/exist"]);
    assert_gone(&api);
    assert_gone(&vsock);
}
