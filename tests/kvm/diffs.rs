//! Snapshots of what was written since the last one.

use skerry_snapshot::{Directory, merge};
use skerry_tests::Api;
use skerry_tests::steady::{MODES, Steady, finish, started, works};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::snapshots::VmSnapshot;

/// The guest writes little of what it has.
const FEW: &str = ":mem=24:dirty=1";

/// A full snapshot and three diffs of it, each of the one before; their names.
fn full_and_three(steady: &Steady) -> [&'static str; 4] {
    let names = ["full", "one", "two", "three"];
    let vmm = started(steady.boot(FEW));
    let api = vmm.api();
    let first = api.keep(&VmSnapshot {
        track_dirty: true,
        ..steady.full(names[0])
    });
    for name in &names[1..] {
        works(&vmm);
        let info = api.keep(&steady.diff(name));
        assert!(
            info.memory_bytes < first.memory_bytes / 2,
            "{info:?} after {first:?}"
        );
    }
    works(&vmm);
    names
}

/// A machine of this snapshot goes on in both modes.
fn goes_on(steady: &Steady, name: &str) {
    for mode in MODES {
        let options = format!("mode={mode},verify=on");
        finish(steady.restore_aside(name, &options).start());
    }
}

#[test]
fn a_full_one_and_each_of_three_diffs_go_on() {
    let steady = Steady::new();
    for name in full_and_three(&steady) {
        goes_on(&steady, name);
    }
}

#[test]
fn a_merged_one_goes_on_without_those_it_was_made_of() {
    let steady = Steady::new();
    let names = full_and_three(&steady);
    let (source, target) = (Directory::new(steady.path("three")), steady.path("merged"));
    merge(&source, &target, &()).expect("merged");
    for name in names {
        std::fs::remove_dir_all(steady.path(name)).expect("a snapshot");
    }
    goes_on(&steady, "merged");
}

#[test]
fn they_go_on_together_somewhere_else() {
    let steady = Steady::new();
    let elsewhere = steady.folder("elsewhere");
    for name in full_and_three(&steady) {
        std::fs::rename(steady.path(name), elsewhere.join(name)).expect("moved");
    }
    goes_on(&steady, "elsewhere/three");
}

#[test]
fn a_lazily_restored_vm_knows_what_it_wrote() {
    let steady = Steady::new();
    let vmm = started(steady.boot(FEW));
    let first = steady.keep(&vmm.api(), "full");
    drop(vmm);
    let layers = steady.folder("layers");
    let options = format!("mode=lazy,overlay_dir={}", layers.display());
    let vmm = started(steady.restore("full", &options));
    let api = vmm.api();
    // All three have what was written since the restore, whoever tracked it meanwhile.
    for (name, track_dirty) in [("one", false), ("two", false), ("three", true)] {
        works(&vmm);
        let info = api.keep(&VmSnapshot {
            track_dirty,
            ..steady.diff(name)
        });
        assert!(
            info.memory_bytes < first.memory_bytes / 2,
            "{info:?} after {first:?}"
        );
    }
    // From here on only what was written since.
    works(&vmm);
    let info = api.keep(&steady.diff("four"));
    assert!(
        info.memory_bytes < first.memory_bytes / 2,
        "{info:?} after {first:?}"
    );
    drop(vmm);
    for name in ["one", "two", "three", "four"] {
        goes_on(&steady, name);
    }
}

#[test]
fn so_does_one_that_was_copied_if_it_was_asked_to() {
    let steady = Steady::new();
    let vmm = started(steady.boot(FEW));
    steady.keep(&vmm.api(), "full");
    drop(vmm);
    let layers = steady.folder("layers");
    let options = format!("mode=copy,track_dirty=on,overlay_dir={}", layers.display());
    let vmm = started(steady.restore("full", &options));
    let api = vmm.api();
    let info = api.keep(&steady.diff("one"));
    assert!(info.memory_bytes < 12 << 20, "{info:?}");
    works(&vmm);
    api.keep(&steady.diff("two"));
    drop(vmm);
    goes_on(&steady, "one");
    goes_on(&steady, "two");
}

#[test]
fn a_full_one_of_a_lazily_restored_vm_has_all() {
    let steady = Steady::new();
    full_and_three(&steady);
    let layers = steady.folder("layers");
    let vmm = started(steady.restore("three", &format!("overlay_dir={}", layers.display())));
    let info = steady.keep(&vmm.api(), "again");
    assert!(info.memory_bytes > 24 << 20, "{info:?}");
    drop(vmm);
    for name in ["full", "one", "two", "three"] {
        std::fs::remove_dir_all(steady.path(name)).expect("a snapshot");
    }
    goes_on(&steady, "again");
}

fn refused(steady: &Steady, api: &Api) {
    let before = steady.names();
    let body = serde_json::to_string(&steady.diff("refused")).expect("JSON");
    let words = ["since a snapshot", "track_dirty=true"];
    api.refused(Operation::VmSnapshot, &body, 400, &words);
    assert_eq!(steady.names(), before);
}

#[test]
fn one_of_nothing_is_refused() {
    let steady = Steady::new();
    let vmm = started(steady.boot(FEW));
    let api = vmm.api();
    refused(&steady, &api);
    // Nobody was asked to track what comes after this one.
    steady.keep(&api, "full");
    refused(&steady, &api);
    finish(vmm);
    let vmm = started(steady.restore_aside("full", "mode=copy"));
    refused(&steady, &vmm.api());
    finish(vmm);
}
