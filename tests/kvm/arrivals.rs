//! A monitor that waits for a guest, or receives one, and is to do so no more.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use skerry_tests::api::Begun;
use skerry_tests::steady::{Steady, finish, names, started, works};
use skerry_tests::vmm::{Builder, SHORT, assert_gone};
use skerry_tests::{Api, Vmm, eventually};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{MigratedDisks, VmReceiveMigration, VmSendMigration};

/// What ends the wait.
type Way = fn(&Vmm, &Api);

const CANCEL: Way = |_, api| api.act(Operation::VmCancelMigration);
const WAYS: [Way; 3] = [
    CANCEL,
    |vmm, _| vmm.terminate(),
    |_, api| api.act(Operation::VmmShutdown),
];

/// A monitor that waits at `socket` for a guest and its disks.
fn waiting(socket: &Path, disks: &Path) -> (Vmm, Api, Begun) {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    let request = VmReceiveMigration {
        disk_dir: Some(disks.to_owned()),
        ..VmReceiveMigration::at(&format!("unix:{}", socket.display()))
    };
    let begun = api.begin(Operation::VmReceiveMigration, &request);
    eventually("the target listens", SHORT, || {
        socket.exists().then_some(())
    });
    (vmm, api, begun)
}

fn cancelled(begun: Begun) {
    let (status, body) = begun.answer().expect("an answer");
    assert!(status == 409 && body.contains("cancelled"), "{body}");
}

#[test]
fn one_that_waits_is_cancelled_or_ended_and_takes_its_socket_with_it() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let socket = folder.path().join("migration.sock");
    for end in WAYS {
        let (vmm, api, begun) = waiting(&socket, folder.path());
        end(&vmm, &api);
        cancelled(begun);
        assert_gone(&socket);
    }
    // Where it was cancelled the monitor is as good as before, and waits again.
    let (_vmm, api, begun) = waiting(&socket, folder.path());
    CANCEL(&_vmm, &api);
    cancelled(begun);
    api.refused(Operation::VmCancelMigration, "", 404, &["no VM"]);
    let request = VmReceiveMigration::at(&format!("unix:{}", socket.display()));
    let begun = api.begin(Operation::VmReceiveMigration, &request);
    eventually("the target listens", SHORT, || {
        socket.exists().then_some(())
    });
    CANCEL(&_vmm, &api);
    cancelled(begun);
}

fn signal(vmm: &Vmm, signal: Signal) {
    let pid = Pid::from_raw(vmm.pid() as i32).expect("a pid");
    kill_process(pid, signal).expect("it is our child");
}

#[test]
fn one_that_receives_is_ended_and_the_guest_stays_where_it_is() {
    for end in WAYS {
        let steady = Steady::new();
        let large = steady.path("large.img");
        std::fs::write(&large, vec![7; 384 << 20]).expect("a disk");
        let option = format!("path={},readonly=on", large.display());
        let source = started(steady.boot("").flag("--disk", option));
        let folder = steady.folder("target");
        let (socket, disks) = (steady.path("migration.sock"), folder.join("disks"));
        std::fs::create_dir(&disks).expect("a folder");
        let (vmm, api, begun) = waiting(&socket, &disks);
        let request = VmSendMigration {
            disks: MigratedDisks::Stream,
            ..VmSendMigration::to(&format!("unix:{}", socket.display()))
        };
        let sending = source.api().begin(Operation::VmSendMigration, &request);
        eventually("its disks come", SHORT, || {
            (!names(&disks).is_empty()).then_some(())
        });
        signal(&source, Signal::STOP);
        end(&vmm, &api);
        cancelled(begun);
        assert_gone(&socket);
        assert_eq!(names(&disks), Vec::<String>::new());
        signal(&source, Signal::CONT);
        let (status, body) = sending.answer().expect("an answer");
        assert!(status >= 400, "{body}");
        assert_eq!(source.api().info().state, VmState::Running);
        works(&source);
        finish(source);
    }
}
