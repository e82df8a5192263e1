//! Snapshots that are sent to somebody who keeps them, and guests that go on whatever becomes of those.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use skerry_snapshot::{Chain, Directory};
use skerry_tests::receiver::{Bad, Manners, Receiver, skerry, unix};
use skerry_tests::steady::{DISK, MODES, Steady, finish, reconnects, started, works};
use skerry_tests::tcp::{certificate, free_port, listened_on};
use skerry_tests::vmm::{SHORT, assert_gone};
use skerry_tests::{Api, eventually};
use skerry_vmm_api::client::ClientError;
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{AfterSnapshot, VmSnapshot, VmSnapshotInfo};

/// Asks for a full snapshot that goes to `url`.
fn to(steady: &Steady, url: &str) -> VmSnapshot {
    VmSnapshot {
        destination_url: url.to_owned(),
        ..steady.full("unused")
    }
}

fn send(api: &Api, snapshot: &VmSnapshot) -> Result<VmSnapshotInfo, ClientError> {
    api.with(async |c| c.snapshot(snapshot).await)
}

/// Keeps a guest in the snapshot `name`, by way of a Unix socket.
fn keep_over(steady: &Steady, api: &Api, name: &str, more: &VmSnapshot) -> VmSnapshotInfo {
    let socket = steady.path("receive.sock");
    let receiver = Receiver::at(&socket, &steady.path(name), &[]);
    let info = send(
        api,
        &VmSnapshot {
            destination_url: unix(&socket),
            ..more.clone()
        },
    );
    let info = info.expect("vm.snapshot");
    assert_eq!(receiver.id(), info.id);
    assert_gone(&socket);
    info
}

fn verified(steady: &Steady, name: &str) {
    let path = steady.path(name).display().to_string();
    let output = skerry(&["snapshot", "verify", &path]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_loaded_guest_goes_on_from_where_it_was_received() {
    let steady = Steady::new();
    let vmm = started(steady.boot_on(&steady.layered(), ""));
    let api = vmm.api();
    let info = keep_over(&steady, &api, "snap", &steady.full("unused"));
    assert!(
        info.memory_bytes > 8 << 20 && info.paused_bytes < info.memory_bytes,
        "{info:?}"
    );
    // It goes on here, with a layer that is called after the snapshot.
    let disk = api.info().config.disks.remove(0);
    assert_eq!(disk.path, steady.path(&format!("top-{}.qcow2", info.id)));
    works(&vmm);
    finish(vmm);
    verified(&steady, "snap");
    for mode in MODES {
        let exit = finish(started(
            steady.restore_aside("snap", &format!("mode={mode},verify=on")),
        ));
        assert_eq!(reconnects(&exit), 1, "{exit}");
    }
}

#[test]
fn so_it_does_when_all_is_copied_in_the_pause_or_it_is_stopped() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    let paused = VmSnapshot {
        live: false,
        ..steady.full("unused")
    };
    let info = keep_over(&steady, &api, "paused", &paused);
    assert_eq!(info.memory_bytes, info.paused_bytes);
    works(&vmm);
    let stopped = VmSnapshot {
        after: AfterSnapshot::Stop,
        ..steady.full("unused")
    };
    keep_over(&steady, &api, "stopped", &stopped);
    assert_eq!(api.info().state, VmState::Shutdown);
    drop(vmm);
    for name in ["paused", "stopped"] {
        verified(&steady, name);
        finish(started(steady.restore_aside(name, "")));
    }
}

#[test]
fn over_tcp_both_sides_show_certificates_of_one_authority() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    let (trusted, foreign) = (
        certificate(steady.folder("trusted")),
        certificate(steady.folder("foreign")),
    );
    let before = steady.names();
    let receiver = |port: u16| {
        let url = format!("tcp:127.0.0.1:{port}");
        let tls = trusted.display().to_string();
        let receiver = Receiver::start(&url, &steady.path("snap"), &["--tls-dir", &tls]);
        listened_on(port);
        (receiver, url)
    };
    let request = |url: &str, tls: Option<&Path>| VmSnapshot {
        tls_dir: tls.map(Path::to_owned),
        ..to(&steady, url)
    };
    let (stranger, url) = receiver(free_port());
    let body = serde_json::to_string(&request(&url, None)).expect("JSON");
    let words = ["tls_dir", "insecure"];
    api.refused(Operation::VmSnapshot, &body, 400, &words);
    send(&api, &request(&url, Some(&foreign))).expect_err("it is of another authority");
    assert!(!stranger.end().status.success());
    assert_eq!(steady.names(), before);
    works(&vmm);
    let (receiver, url) = receiver(free_port());
    let info = send(&api, &request(&url, Some(&trusted))).expect("vm.snapshot");
    assert_eq!(receiver.id(), info.id);
    works(&vmm);
    finish(vmm);
    verified(&steady, "snap");
    for mode in MODES {
        finish(started(
            steady.restore_aside("snap", &format!("mode={mode}")),
        ));
    }
}

#[test]
fn diffs_are_sent_after_what_they_build_on() {
    let steady = Steady::new();
    let vmm = started(steady.boot(":mem=24:dirty=1"));
    let api = vmm.api();
    let tracked = VmSnapshot {
        track_dirty: true,
        ..steady.full("unused")
    };
    let first = keep_over(&steady, &api, "full", &tracked);
    works(&vmm);
    // It does not know where that one is.
    let body = serde_json::to_string(&steady.diff("here")).expect("JSON");
    api.refused(
        Operation::VmSnapshot,
        &body,
        400,
        &[&first.id, "went over a connection"],
    );
    let socket = steady.path("receive.sock");
    let diff = VmSnapshot {
        destination_url: unix(&socket),
        ..steady.diff("unused")
    };
    let before = steady.names();
    let receiver = Receiver::at(&socket, &steady.path("diff"), &[]);
    let refused = send(&api, &diff).expect_err("it has no parent").to_string();
    assert!(
        refused.contains(&first.id) && refused.contains("--parent"),
        "{refused}"
    );
    assert!(!receiver.end().status.success());
    assert_eq!(steady.names(), before);
    works(&vmm);
    let parent = steady.path("full").display().to_string();
    let receiver = Receiver::at(&socket, &steady.path("diff"), &["--parent", &parent]);
    let info = send(&api, &diff).expect("vm.snapshot");
    assert_eq!(receiver.id(), info.id);
    assert!(
        info.memory_bytes < first.memory_bytes / 2,
        "{info:?} after {first:?}"
    );
    works(&vmm);
    drop(vmm);
    for name in ["full", "diff"] {
        verified(&steady, name);
    }
    for mode in MODES {
        let options = format!("mode={mode},verify=on");
        finish(steady.restore_aside("diff", &options).start());
    }
}

/// A snapshot that comes to nothing: why, while the guest goes on as it was. How long that took.
fn comes_to_nothing(manners: Manners, live: bool, words: &[&str]) -> Duration {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let (api, elsewhere) = (vmm.api(), steady.folder("elsewhere"));
    let before = steady.names();
    let bad = Bad::start(&elsewhere, manners);
    let begun = Instant::now();
    let request = VmSnapshot {
        live,
        ..to(&steady, &bad.url)
    };
    let error = send(&api, &request)
        .expect_err("nobody keeps it")
        .to_string();
    let took = begun.elapsed();
    for word in words {
        assert!(error.contains(word), "`{word}` is not in {error}");
    }
    bad.end();
    assert_eq!(api.info().state, VmState::Running);
    assert_eq!(steady.names(), before, "a layer is left");
    assert_eq!(api.layers(DISK), 1);
    works(&vmm);
    // And the next one is whole.
    keep_over(&steady, &api, "snap", &steady.full("unused"));
    drop(vmm);
    finish(started(steady.restore_aside("snap", "verify=on")));
    took
}

#[test]
fn one_that_is_refused_says_why() {
    let why = "the shelf is full";
    comes_to_nothing(Manners::Refuse(why), true, &["refused", why]);
    comes_to_nothing(Manners::RefuseAfter(1 << 20, why), true, &["refused", why]);
}

#[test]
fn one_whose_receiver_is_gone_comes_to_nothing() {
    comes_to_nothing(Manners::HangUp(1 << 20), true, &["cannot send"]);
    comes_to_nothing(Manners::HangUp(1 << 20), false, &["cannot send"]);
}

/// How long a receiver may be silent, and a little more.
const SILENCE: std::ops::Range<u64> = 28..50;

#[test]
fn a_receiver_that_takes_no_more_is_given_up() {
    let took = comes_to_nothing(Manners::FallSilent(1 << 20), true, &["timed out"]);
    assert!(SILENCE.contains(&took.as_secs()), "{took:?}");
}

#[test]
fn it_is_so_in_the_pause_as_well() {
    let took = comes_to_nothing(Manners::FallSilent(1 << 20), false, &["timed out"]);
    assert!(SILENCE.contains(&took.as_secs()), "{took:?}");
}

#[test]
fn a_receiver_that_never_says_that_it_is_durable_is_given_up() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    let bad = Bad::start(&steady.folder("elsewhere"), Manners::SayNothing);
    let error = send(&api, &to(&steady, &bad.url)).expect_err("nobody keeps it");
    assert!(error.to_string().contains("timed out"), "{error}");
    bad.end();
    // Its pause was over: the guest goes on with the new layer.
    assert_eq!(api.layers(DISK), 2);
    works(&vmm);
    keep_over(&steady, &api, "snap", &steady.full("unused"));
    finish(vmm);
    finish(started(steady.restore_aside("snap", "verify=on")));
}

#[test]
fn one_that_works_on_it_for_ever_does_not_keep_the_monitor() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    let bad = Bad::start(&steady.folder("elsewhere"), Manners::WorkForEver);
    let sending = api.begin(Operation::VmSnapshot, &to(&steady, &bad.url));
    eventually("its pause is over", SHORT, || {
        (api.layers(DISK) == 2).then_some(())
    });
    works(&vmm);
    vmm.terminate();
    let (status, body) = sending.answer().expect("an answer");
    assert!(status >= 400, "{body}");
    assert_eq!(vmm.wait(SHORT).code, Some(0));
    bad.end();
}

#[test]
fn a_receiver_that_is_killed_or_asked_to_end_leaves_the_guest_alone() {
    for signal in [Signal::KILL, Signal::TERM] {
        let steady = Steady::new();
        let vmm = steady.boot_large(1).start();
        vmm.expect_line("waiting for the power button", SHORT);
        let api = vmm.api();
        let before = steady.names();
        let socket = steady.path("receive.sock");
        let mut receiver = Receiver::at(&socket, &steady.path("snap"), &[]);
        let begun = api.begin(Operation::VmSnapshot, &to(&steady, &unix(&socket)));
        eventually("it is being received", SHORT, || {
            steady.path("snap.partial").exists().then_some(())
        });
        receiver.signal(signal);
        assert!(!receiver.end().status.success());
        let (status, body) = begun.answer().expect("an answer");
        assert!(status >= 400, "{body}");
        if signal == Signal::KILL {
            std::fs::remove_dir_all(steady.path("snap.partial")).expect("what it left");
        }
        assert_eq!(steady.names(), before);
        assert_eq!(api.layers(DISK), 1);
        keep_over(&steady, &api, "snap", &steady.full("unused"));
        let whole = Chain::open(&Directory::new(steady.path("snap")));
        whole.and_then(|chain| chain.verify()).expect("whole");
        api.act(Operation::VmPowerButton);
        assert_eq!(vmm.wait(SHORT).code, Some(0));
    }
}

#[test]
fn a_receiver_that_is_asked_to_end_while_it_waits_takes_its_socket_with_it() {
    let steady = Steady::new();
    let socket = steady.path("receive.sock");
    for signal in [Signal::INT, Signal::TERM] {
        let mut receiver = Receiver::at(&socket, &steady.path("snap"), &[]);
        receiver.signal(signal);
        let output = receiver.end();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("cancelled"), "{errors}");
        assert_gone(&socket);
    }
}

#[test]
fn a_vm_that_ends_meanwhile_leaves_nothing_anywhere() {
    let ways: [fn(&skerry_tests::Vmm, &Api); 3] = [
        |vmm, _| vmm.terminate(),
        |_, api| api.act(Operation::VmmShutdown),
        |_, api| api.act(Operation::VmPowerButton),
    ];
    for end in ways {
        let steady = Steady::new();
        let vmm = steady.boot_large(1).start();
        vmm.expect_line("waiting for the power button", SHORT);
        let (api, before) = (vmm.api(), steady.names());
        let socket = steady.path("receive.sock");
        let receiver = Receiver::at(&socket, &steady.path("snap"), &[]);
        let begun = api.begin(Operation::VmSnapshot, &to(&steady, &unix(&socket)));
        eventually("it is being received", SHORT, || {
            steady.path("snap.partial").exists().then_some(())
        });
        end(&vmm, &api);
        let (status, body) = begun.answer().expect("an answer");
        assert!(status == 409 && body.contains("the VM ended"), "{body}");
        assert_eq!(vmm.wait(SHORT).code, Some(0));
        assert!(!receiver.end().status.success());
        assert_eq!(steady.names(), before);
    }
}

#[test]
fn what_is_in_the_way_is_told_to_who_asked() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    let nowhere = r#"{"destination_url": "unix:/nobody/listens/here"}"#;
    let words = ["cannot reach", "unix:/nobody/listens/here"];
    api.refused(Operation::VmSnapshot, nowhere, 500, &words);
    steady.folder("there");
    let before = steady.names();
    let socket = steady.path("receive.sock");
    let receiver = Receiver::at(&socket, &steady.path("there"), &[]);
    let body = serde_json::to_string(&to(&steady, &unix(&socket))).expect("JSON");
    let words = ["refused", "there is there already"];
    api.refused(Operation::VmSnapshot, &body, 400, &words);
    assert!(!receiver.end().status.success());
    assert_eq!(steady.names(), before);
    works(&vmm);
    finish(vmm);
}
