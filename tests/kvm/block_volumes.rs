//! Volumes: they stay when VMs go, one VM at a time has each, and what was kept of them comes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use skerry_tests::host::{Host, kill};
use skerry_tests::random::Random;
use skerry_tests::vmm::SHORT;
use skerry_tests::{eventually, given};

fn vm(name: &str, volumes: &[&str], tasks: &str) -> String {
    let disks: String = volumes
        .iter()
        .map(|volume| format!("{{name: {volume}, volume: {volume}}},"))
        .collect();
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"run={tasks} off=wait-power-button\"}}\n\
         \x20 disks: [{disks}]\n---\n",
        given("SKERRY_PAYLOAD").display()
    )
}

fn volume(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\nkind: Volume\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )
}

fn snapshot(name: &str, of: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: {name}}}\nspec: {{volume: {of}}}\n---\n"
    )
}

fn apply(host: &Host, manifest: &str) {
    host.must(&["apply", "-f", &host.manifest(manifest)]);
}

/// Waits until a VM has said something.
fn says(host: &Host, name: &str, words: &str) {
    eventually(&format!("{name} says {words:?}"), SHORT, || {
        let said = host.skerry(&["logs", &format!("vm/{name}")]);
        assert!(!said.out.contains("fail "), "{}", said.out);
        said.out.contains(words).then_some(())
    });
}

fn conditions(status: &Value, words: &str) -> bool {
    status["conditions"].to_string().contains(words)
}

fn is_gone(host: &Host, kind: &str, name: &str) {
    eventually(&format!("{kind} {name} is gone"), SHORT, || {
        (!host.skerry(&["get", kind, name]).good).then_some(())
    });
}

/// The folders of volumes and of snapshots.
fn folders(host: &Host) -> Vec<PathBuf> {
    ["volumes", "volume-snapshots"]
        .iter()
        .flat_map(|part| inside(&host.state().join(part)))
        .collect()
}

fn inside(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

/// QEMU's tool finds nothing wrong with any layer, and nothing is there but layers.
fn all_clean(host: &Host) {
    for path in folders(host).iter().flat_map(|folder| inside(folder)) {
        if path.ends_with("layers.json") {
            continue;
        }
        let name = path.file_name().expect("a name").to_string_lossy();
        assert!(name.ends_with(".qcow2"), "{} is there", path.display());
        // What is below is judged by itself, and may have another folder by now.
        let alone = format!(
            r#"json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":"{}"}}}}"#,
            path.display()
        );
        let judged = Command::new("qemu-img")
            .args(["check", "-q", &alone])
            .output();
        let judged = judged.expect("qemu-img runs");
        // 3 is leaked space, which a killed monitor may leave.
        let code = judged.status.code();
        assert!(
            matches!(code, Some(0 | 3)),
            "{}: {judged:?}",
            path.display()
        );
    }
}

#[test]
fn a_volume_stays_when_its_vm_goes_and_one_vm_at_a_time_has_it() {
    let host = Host::start();
    let one = vm("one", &["data"], "blk-verify:0:7");
    apply(&host, &(volume("data", "size: 8Mi") + &one));
    says(&host, "one", "ok blk-verify");
    let attached =
        |to: &'static str| move |s: &Value| s["attachedTo"] == to && s["phase"] == "Attached";
    host.until("volume", "data", SHORT, attached("one"));
    // Another one waits, and knows for whom.
    apply(&host, &vm("two", &["data"], "blk-read-verify:0:7"));
    host.until("vm", "two", SHORT, |s| {
        s["phase"] == "Pending" && conditions(s, "attached to microvm `one`")
    });
    // Who is killed keeps it.
    host.monitors().into_iter().for_each(kill);
    host.until("vm", "one", SHORT, |s| {
        s["phase"] == "Running" && s["restarts"] == 1
    });
    host.until("volume", "data", SHORT, attached("one"));
    host.must(&["delete", "vm/one", "--grace", "0"]);
    says(&host, "two", "ok blk-read-verify");
    host.until("volume", "data", SHORT, attached("two"));
    // It goes when its VM has gone.
    host.must(&["delete", "volume/data", "--no-wait"]);
    host.until("volume", "data", SHORT, |s| {
        conditions(s, "InUse") && conditions(s, "`two`")
    });
    host.must(&["delete", "vm/two", "--grace", "0"]);
    is_gone(&host, "volume", "data");
    assert!(folders(&host).is_empty());
}

#[test]
fn a_volume_grows_under_its_vm_and_never_shrinks_and_is_given_back_at_its_end() {
    let host = Host::start();
    apply(
        &host,
        &(volume("data", "size: 8Mi") + &volume("more", "size: 4Mi")),
    );
    host.until("volume", "data", SHORT, |s| {
        s["size"] == "8Mi" && s["phase"] == "Available"
    });
    apply(&host, &volume("data", "size: 12Mi"));
    host.until("volume", "data", SHORT, |s| s["size"] == "12Mi");
    apply(&host, &vm("one", &["data"], "blk-info:0"));
    says(&host, "one", &format!("bytes={}", 12 << 20));
    apply(&host, &volume("data", "size: 16Mi"));
    host.until("volume", "data", SHORT, |s| s["size"] == "16Mi");
    let refused = host.skerry(&["apply", "-f", &host.manifest(&volume("data", "size: 8Mi"))]);
    assert!(
        !refused.good && refused.errors.contains("cannot be made smaller"),
        "{refused:?}"
    );
    // This guest listens to nobody: what it has not given back, its end gives back.
    apply(&host, &vm("one", &["more"], "blk-info:0"));
    host.until("volume", "more", SHORT, |s| s["attachedTo"] == "one");
    host.until("volume", "data", SHORT, |s| {
        s["attachedTo"] == "one" && conditions(s, "Detaching")
    });
    host.monitors().into_iter().for_each(kill);
    host.until("volume", "more", SHORT, |s| s["attachedTo"] == "one");
    host.until("volume", "data", SHORT, |s| s["phase"] == "Available");
    apply(&host, &vm("two", &["data"], "blk-info:0"));
    says(&host, "two", &format!("bytes={}", 16 << 20));
    for name in ["one", "two"] {
        host.must(&["delete", &format!("vm/{name}"), "--grace", "0"]);
    }
    all_clean(&host);
}

#[test]
fn volumes_come_to_a_vm_that_runs_and_go() {
    let host = Host::start();
    let two = volume("data", "size: 8Mi") + &volume("more", "size: 4Mi");
    apply(&host, &(two + &vm("one", &[], "hotplug")));
    says(&host, "one", "# hotplug: listening");
    let runs_on = || {
        let monitors = host.monitors();
        assert_eq!(monitors.len(), 1);
        monitors
    };
    let before = runs_on();
    apply(&host, &vm("one", &["data", "more"], "hotplug"));
    for name in ["data", "more"] {
        host.until("volume", name, SHORT, |s| {
            s["attachedTo"] == "one" && s["phase"] == "Attached" && !conditions(s, "NextStart")
        });
    }
    says(&host, "one", &format!("bytes={}", 8 << 20));
    says(&host, "one", &format!("bytes={}", 4 << 20));
    // What it has is kept in snapshots, and grows.
    apply(
        &host,
        &(snapshot("kept", "data") + &volume("more", "size: 6Mi")),
    );
    host.until("vs", "kept", SHORT, |s| s["phase"] == "Ready");
    host.until("volume", "more", SHORT, |s| s["size"] == "6Mi");
    apply(&host, &vm("one", &["more"], "hotplug"));
    host.until("volume", "data", SHORT, |s| s["phase"] == "Available");
    // Somebody else may have it at once.
    apply(&host, &vm("two", &["data"], "blk-read-verify:0:1"));
    says(&host, "two", "ok blk-read-verify");
    // And who wants it gets it, when that one has gone.
    apply(&host, &vm("one", &["more", "data"], "hotplug"));
    host.until("volume", "data", SHORT, |s| conditions(s, "Wanted"));
    host.must(&["delete", "vm/two", "--grace", "0"]);
    host.until("volume", "data", SHORT, |s| s["attachedTo"] == "one");
    assert_eq!(runs_on(), before, "it has run all the time");
    host.must(&["delete", "vm/one", "--grace", "0"]);
    all_clean(&host);
}

#[test]
fn what_was_kept_comes_back_whoever_is_killed_meanwhile() {
    let mut host = Host::start();
    apply(
        &host,
        &(volume("data", "size: 8Mi") + &vm("one", &["data"], "blk-verify:0:1")),
    );
    says(&host, "one", "ok blk-verify");
    // The first while its VM runs.
    apply(&host, &snapshot("first", "data"));
    host.until("vs", "first", SHORT, |s| {
        s["phase"] == "Ready" && s["size"] == "8Mi"
    });
    let churns = vm("one", &["data"], "blk-churn:0:3");
    apply(&host, &churns);
    host.monitors().into_iter().for_each(kill);
    says(&host, "one", "churn: running");
    // Others while it writes, and somebody is killed at any moment.
    let mut random = Random::new(11);
    for n in 0..6 {
        apply(&host, &snapshot(&format!("s{n}"), "data"));
        std::thread::sleep(std::time::Duration::from_millis(random.below(40)));
        host.kill();
        if n % 3 == 2 {
            host.monitors().into_iter().for_each(kill);
        }
        host.up();
        host.until("vs", &format!("s{n}"), SHORT, |s| s["phase"] == "Ready");
    }
    host.until_phase("vm", "one", "Running");
    // Its VM goes, and so does the volume: what was kept of it does not.
    host.must(&["delete", "vm/one", "--grace", "0"]);
    host.must(&["delete", "volume/data"]);
    let back = volume("back", "size: 16Mi, source: {volumeSnapshot: first}");
    let last = volume("last", "source: {volumeSnapshot: s5}");
    apply(&host, &(back + &last));
    apply(
        &host,
        &vm(
            "two",
            &["back", "last"],
            "blk-read-verify:0:1:limit=8388608,blk-sum:1",
        ),
    );
    says(&host, "two", "ok blk-read-verify");
    says(&host, "two", "ok blk-sum");
    host.must(&["delete", "vm/two", "--grace", "0"]);
    all_clean(&host);
    for gone in ["vs/first", "volume/back", "volume/last"] {
        host.must(&["delete", gone]);
    }
    for n in 0..6 {
        host.must(&["delete", &format!("vs/s{n}")]);
    }
    assert!(folders(&host).is_empty(), "{:?}", folders(&host));
}
