//! Snapshots of machines with networks and directories whose back ends answer what a test wants.

use skerry_tests::scripted::{ACKNOWLEDGING, PLAIN, Script, Scripted, WITH_STATE, request};
use skerry_tests::steady::{Steady, finish, names, started, works};
use skerry_tests::vmm::Builder;
use skerry_tests::{Api, Vmm};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::snapshots::{NetIdentity, RestoreMode, VmRestore};

/// VIRTIO_RING_F_EVENT_IDX, which the guest's driver takes.
const EVENT_IDX: u64 = 1 << 29;

/// What every back end here offers, unless a test is about just that.
const PLAIN_NET: Script = Script {
    features: PLAIN | EVENT_IDX,
    protocol: ACKNOWLEDGING,
    taken: 0,
};

/// A guest with a disk of its own and a network that a back end serves on the socket `net.sock`.
fn networked(steady: &Steady, script: Script) -> (Scripted, Vmm) {
    let socket = steady.path("net.sock");
    let back_end = Scripted::start(&socket, script);
    let disk = format!("path={}", steady.path("base.img").display());
    let net = format!("vhost_user=on,socket={}", socket.display());
    let vmm = started(steady.boot_on(&disk, ":net=0").flag("--net", net));
    (back_end, vmm)
}

fn refused(api: &Api, steady: &Steady, status: u16, words: &[&str]) {
    let before = steady.names();
    let body = serde_json::to_string(&steady.full("snap")).expect("JSON");
    api.refused(Operation::VmSnapshot, &body, status, words);
    assert_eq!(steady.names(), before);
}

#[test]
fn a_network_is_handed_over_as_it_stood() {
    let steady = Steady::new();
    let (before, vmm) = networked(&steady, PLAIN_NET);
    let features = before.sent(request::SET_FEATURES);
    steady.keep(&vmm.api(), "snap");
    works(&vmm);
    drop(finish(vmm));
    let layers = steady.folder("layers");
    let restore = |socket: &str| VmRestore {
        mode: RestoreMode::Userfault,
        net: vec![NetIdentity {
            id: "_net0".into(),
            vhost_socket: Some(steady.path(socket)),
            ..NetIdentity::default()
        }],
        ..steady.again("snap", Some(&layers))
    };
    // One that lacks what the driver uses.
    let less = Script {
        features: PLAIN,
        ..PLAIN_NET
    };
    let _less = Scripted::start(&steady.path("less.sock"), less);
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    let error = api.with(async |c| c.restore(&restore("less.sock")).await);
    let error = error.expect_err("a refusal").to_string();
    for word in ["_net0", "0x20000000", "start its back end with all"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(names(&layers), Vec::<String>::new());
    // It takes a queue's state that is not at its beginning, since nothing of it was done.
    let after = Scripted::start(&steady.path("other.sock"), PLAIN_NET);
    api.restore(&restore("other.sock"));
    works(&vmm);
    assert_eq!(after.sent(request::SET_FEATURES), features);
    assert_eq!(after.sent(request::SET_MEM_TABLE).len(), 1);
    assert_eq!(
        after.sent(request::SET_VRING_BASE),
        before.sent(request::SET_VRING_BASE)[..2]
    );
}

#[test]
fn requests_that_a_back_end_does_not_finish_are_in_the_way() {
    let steady = Steady::new();
    let hasty = Script {
        taken: 3,
        ..PLAIN_NET
    };
    let (_back_end, vmm) = networked(&steady, hasty);
    let words = ["_net0", "cannot be kept", "did not answer", "try again"];
    refused(&vmm.api(), &steady, 500, &words);
    works(&vmm);
    drop(finish(vmm));
}

#[test]
fn a_directory_whose_server_keeps_its_state_to_itself_is_not_kept() {
    for (protocol, status, words) in [
        (ACKNOWLEDGING, 400, ["DEVICE_STATE", "detach"]),
        (
            ACKNOWLEDGING | WITH_STATE,
            500,
            ["SET_DEVICE_STATE_FD", "cannot be kept"],
        ),
    ] {
        let steady = Steady::new();
        let socket = steady.path("fs.sock");
        let script = Script {
            protocol,
            ..PLAIN_NET
        };
        let _back_end = Scripted::start(&socket, script);
        let disk = format!("path={}", steady.path("base.img").display());
        let fs = format!("tag=home,socket={}", socket.display());
        let vmm = started(steady.boot_on(&disk, "").flag("--fs", fs));
        refused(&vmm.api(), &steady, status, &["_fs0"]);
        refused(&vmm.api(), &steady, status, &words);
        works(&vmm);
        drop(finish(vmm));
    }
}
