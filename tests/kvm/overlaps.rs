//! What happens while a snapshot is being taken: each ends whole, or leaves nothing.

use skerry_tests::api::Begun;
use skerry_tests::steady::{DISK, Steady};
use skerry_tests::vmm::SHORT;
use skerry_tests::{Api, Vmm, eventually};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::VmSnapshot;

/// A guest with much memory, of which a snapshot `snap` has been begun.
struct Underway {
    /// What there was before.
    before: Vec<String>,
    vmm: Vmm,
    api: Api,
    begun: Begun,
    steady: Steady,
}

impl Underway {
    fn new(track_dirty: bool) -> Underway {
        let steady = Steady::new();
        let vmm = steady.boot_large(1).start();
        vmm.expect_line("waiting for the power button", SHORT);
        let api = vmm.api();
        let before = steady.names();
        let snapshot = VmSnapshot {
            track_dirty,
            ..steady.full("snap")
        };
        let begun = api.begin(Operation::VmSnapshot, &snapshot);
        eventually("it is being taken", SHORT, || {
            steady.path("snap.partial").exists().then_some(())
        });
        Underway {
            before,
            vmm,
            api,
            begun,
            steady,
        }
    }

    fn body(&self, name: &str) -> String {
        serde_json::to_string(&self.steady.full(name)).expect("JSON")
    }
}

/// Its end was an error that says so.
fn ended(begun: Begun) {
    let (status, body) = begun.answer().expect("an answer");
    assert_eq!(status, 409, "{body}");
    assert!(body.contains("the VM ended"), "{body}");
}

#[test]
fn other_snapshots_and_changes_of_disks_wait() {
    let underway = Underway::new(false);
    let Underway { api, steady, .. } = &underway;
    let other = underway.body("other");
    let same = underway.body("snap");
    let resize = format!(r#"{{"id":"{DISK}","desired_size":8388608}}"#);
    let stream = format!(r#"{{"id":"{DISK}"}}"#);
    let layer = format!(
        r#"{{"id":"{DISK}","path":"{}"}}"#,
        steady.path("layer").display()
    );
    for (operation, body) in [
        (Operation::VmSnapshot, &other),
        (Operation::VmSnapshot, &same),
        (Operation::VmResizeDisk, &resize),
        (Operation::VmDiskSnapshot, &layer),
        (Operation::VmDiskStream, &stream),
    ] {
        api.refused(operation, body, 409, &["a snapshot is under way"]);
    }
    assert_eq!(api.layers(DISK), 1);
    let Underway {
        vmm,
        api,
        begun,
        steady,
        ..
    } = underway;
    let (status, body) = begun.answer().expect("an answer");
    assert_eq!(status, 200, "{body}");
    steady.keep(&api, "other");
    assert_eq!(api.layers(DISK), 3);
    drop(vmm);
    for name in ["snap", "other"] {
        let vmm = steady.restore_aside(name, "verify=on").start();
        vmm.api().act(Operation::VmPowerButton);
        assert_eq!(vmm.wait(SHORT).code, Some(0));
    }
}

#[test]
fn a_vm_that_is_deleted_leaves_nothing() {
    let Underway {
        before,
        api,
        begun,
        steady,
        vmm: _vmm,
    } = Underway::new(false);
    api.act(Operation::VmDelete);
    ended(begun);
    assert_eq!(steady.names(), before);
    // And the monitor is as good as before.
    steady.boot_and_keep("snap");
    let layers = steady.folder("layers");
    api.restore(&steady.again("snap", Some(&layers)));
}

#[test]
fn a_vm_that_is_rebooted_leaves_nothing_and_is_kept_later() {
    let Underway {
        before,
        vmm,
        api,
        begun,
        steady,
    } = Underway::new(false);
    api.act(Operation::VmReboot);
    ended(begun);
    assert_eq!(steady.names(), before);
    vmm.expect_nth_line("waiting for the power button", 2, SHORT);
    steady.keep(&api, "snap");
}

#[test]
fn a_guest_that_powers_off_leaves_nothing() {
    let Underway {
        before,
        vmm,
        api,
        begun,
        steady,
    } = Underway::new(false);
    api.act(Operation::VmPowerButton);
    ended(begun);
    let exit = vmm.wait(SHORT);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert_eq!(steady.names(), before);
}

#[test]
fn a_monitor_that_is_asked_to_end_leaves_nothing() {
    let ways: [fn(&Vmm, &Api); 2] = [
        |vmm, _| vmm.terminate(),
        |_, api| api.act(Operation::VmmShutdown),
    ];
    for end in ways {
        let Underway {
            before,
            vmm,
            api,
            begun,
            steady,
        } = Underway::new(false);
        end(&vmm, &api);
        ended(begun);
        let exit = vmm.wait(SHORT);
        assert_eq!(exit.code, Some(0), "{exit}");
        assert_eq!(steady.names(), before);
    }
}

#[test]
fn a_vm_that_is_paused_meanwhile_stays_paused() {
    let Underway {
        vmm,
        api,
        begun,
        steady: _steady,
        ..
    } = Underway::new(false);
    api.act(Operation::VmPause);
    let (status, body) = begun.answer().expect("an answer");
    assert_eq!(status, 200, "{body}");
    assert_eq!(api.info().state, VmState::Paused);
    api.act(Operation::VmResume);
    api.act(Operation::VmPowerButton);
    assert_eq!(vmm.wait(SHORT).code, Some(0));
}

#[test]
fn nothing_builds_on_one_that_failed_at_last() {
    let Underway {
        api,
        begun,
        steady,
        vmm,
        ..
    } = Underway::new(true);
    // Somebody takes its name.
    steady.folder("snap");
    let (status, body) = begun.answer().expect("an answer");
    assert!(status >= 400 && body.contains("snap"), "{status} {body}");
    assert!(!steady.names().contains(&"snap.partial".into()));
    let diff = serde_json::to_string(&steady.diff("diff")).expect("JSON");
    api.refused(Operation::VmSnapshot, &diff, 400, &["track_dirty=true"]);
    // The guest has gone on, and the next one is whole.
    api.keep(&VmSnapshot {
        track_dirty: true,
        ..steady.full("full")
    });
    api.keep(&steady.diff("diff"));
    drop(vmm);
    let vmm = steady.restore_aside("diff", "").start();
    vmm.api().act(Operation::VmPowerButton);
    assert_eq!(vmm.wait(SHORT).code, Some(0));
}
