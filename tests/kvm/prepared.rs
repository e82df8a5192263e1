//! A host's clones of snapshots: what each has of its own, what is refused, and monitors that wait for them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use skerry_tests::disk::checksum;
use skerry_tests::host::{Host, kill};
use skerry_tests::steady::{Steady, names, works};
use skerry_tests::vmm::{Builder, SHORT};
use skerry_tests::{Api, Tap, eventually};

/// A guest that checks itself and its disk, kept in the snapshot `snap`. `words` are more of its task.
fn kept(words: &str, flags: &[(&str, String)]) -> Steady {
    let steady = Steady::new();
    let disk = format!("path={}", steady.path("base.img").display());
    let socket = format!("cid=3,socket={}", steady.path("vsock").display());
    let task = format!("run=steady:disk=0:say=20{words} off=acpi");
    let mut builder = Builder::payload_with_memory(&task, "size=64M")
        .flag("--disk", disk)
        .flag("--vsock", socket)
        .with_api();
    for (name, value) in flags {
        builder = builder.flag(name, value);
    }
    let vmm = builder.start();
    works(&vmm);
    steady.keep(&vmm.api(), "snap");
    steady
}

fn clone(name: &str, snapshot: &Path, more: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{snapshot: {}}}\n\
         {more}---\n",
        snapshot.display()
    )
}

fn folder(host: &Host, name: &str) -> PathBuf {
    let object = host.object("vm", name);
    let uid = object["metadata"]["uid"].as_str().expect("a uid");
    host.state().join("vms").join(uid)
}

/// Waits until a guest has checked itself so often.
fn checks(host: &Host, name: &str, rounds: usize) {
    eventually(&format!("{name} checks itself"), SHORT, || {
        let said = host.must(&["logs", &format!("vm/{name}")]);
        assert!(!said.contains("fail "), "{said}");
        (said.matches("# steady: round=").count() >= rounds).then_some(())
    });
}

fn waiting(host: &Host, count: usize) -> Vec<i32> {
    eventually("monitors wait", SHORT, || {
        let folders = names(&host.state().join("warm"));
        let listen = folders.iter().filter(|name| {
            let folder = host.state().join("warm").join(name);
            folder.join("api.sock").exists()
        });
        let all = host.waited();
        (folders.len() == count && listen.count() == count && all.len() >= count).then_some(all)
    })
}

#[test]
fn each_clone_has_layers_and_sockets_of_its_own_and_begins_as_its_snapshot_each_time() {
    let (mut host, steady) = (Host::start(), kept("", &[]));
    let files = ["snap/state", "snap/memory", "base.img"].map(|name| steady.path(name));
    let sums = || files.each_ref().map(|file| checksum(file));
    let before = sums();
    let snapshot = steady.path("snap");
    let both = clone("one", &snapshot, "") + &clone("two", &snapshot, "");
    let manifest = host.manifest(&both);
    host.must(&["apply", "--wait", "-f", &manifest]);
    let mut cids = Vec::new();
    for name in ["one", "two"] {
        checks(&host, name, 2);
        let folder = folder(&host, name);
        let config = Api::connect(&folder.join("api.sock")).info().config;
        assert_eq!(config.disks[0].path, folder.join("layers/_disk0.qcow2"));
        let vsock = config.vsock.expect("a vsock");
        assert_eq!(vsock.socket, folder.join("vsock"));
        cids.push(vsock.cid);
    }
    assert_ne!(cids[0], cids[1]);
    // The agent dies, and then a clone: it begins again, on disks as they were.
    let monitors = host.monitors();
    host.kill();
    host.up();
    assert_eq!(host.monitors(), monitors);
    monitors.iter().for_each(|id| kill(*id));
    for name in ["one", "two"] {
        let rounds = host.must(&["logs", &format!("vm/{name}")]);
        let rounds = rounds.matches("# steady: round=").count();
        host.until("vm", name, SHORT, |s| {
            s["phase"] == "Running" && s["restarts"] == 1
        });
        checks(&host, name, rounds + 2);
    }
    host.must(&["delete", "-f", &manifest]);
    assert!(host.monitors().is_empty());
    assert!(names(&host.state().join("vms")).is_empty());
    assert_eq!(sums(), before, "what they were made of changed");
}

#[test]
fn what_does_not_fit_its_snapshot_says_what_to_write() {
    let (host, steady) = (Host::start(), kept("", &[]));
    let snapshot = steady.path("snap");
    let cases = [
        (
            "none",
            clone("none", &steady.path("none"), ""),
            "directory of a snapshot",
        ),
        (
            "memory",
            clone("memory", &snapshot, "").replace("64Mi", "128Mi"),
            "write `memory: 64Mi`",
        ),
        (
            "cpus",
            clone("cpus", &snapshot, "  cpus: 2\n"),
            "write `cpus: 1`",
        ),
        (
            "pages",
            clone("pages", &snapshot, "  hugepages: true\n"),
            // The host has no such pages for it, either.
            "huge",
        ),
        (
            "network",
            clone("network", &snapshot, "  networks: [{network: default}]\n"),
            "has no network: leave `networks` out",
        ),
    ];
    for (name, manifest, words) in cases {
        host.must(&["apply", "-f", &host.manifest(&manifest)]);
        let says = |s: &Value| s["conditions"].to_string().contains(words);
        host.until("vm", name, SHORT, says);
        assert!(host.monitors().is_empty(), "{name}");
        host.must(&["delete", "vm", name]);
    }
    let disks = "  disks: [{name: data, size: 4Mi}]\n";
    let said = host.skerry(&["apply", "-f", &host.manifest(&clone("x", &snapshot, disks))]);
    assert!(
        !said.good && said.errors.contains("disks of its snapshot"),
        "{said:?}"
    );
    assert!(names(&host.state().join("vms")).is_empty());
}

#[test]
fn a_clone_with_a_network_has_a_port_of_its_own() {
    let tap = Tap::new();
    let flags = [("--net", format!("tap={},mac=52:54:00:00:00:01", tap.name))];
    let (host, steady) = (Host::apart(), kept("", &flags));
    let snapshot = steady.path("snap");
    host.must(&["apply", "-f", &host.manifest(&clone("bare", &snapshot, ""))]);
    host.until("vm", "bare", SHORT, |s| {
        s["conditions"]
            .to_string()
            .contains("networks: [{network: default}]")
    });
    let networks = "  networks: [{network: default}]\n";
    let manifest = clone("one", &snapshot, networks) + &clone("two", &snapshot, networks);
    host.must(&["apply", "--wait", "-f", &host.manifest(&manifest)]);
    let ports: Vec<_> = ["one", "two"]
        .iter()
        .map(|name| {
            checks(&host, name, 2);
            let address = host.object("vm", name)["status"]["addresses"][0].clone();
            let socket = folder(&host, name).join("api.sock");
            let net = Api::connect(&socket).info().config.net.remove(0);
            (address, net.tap, net.mac)
        })
        .collect();
    let (one, two) = (&ports[0], &ports[1]);
    assert!(one.0.is_string() && one.0 != two.0, "{ports:?}");
    assert!(one.1 != two.1 && one.1 != tap.name, "{ports:?}");
    assert!(one.2 != two.2 && one.2.is_some(), "{ports:?}");
    for name in ["bare", "one", "two"] {
        host.must(&["delete", "vm", name]);
    }
}

#[test]
fn a_clone_whose_guest_powers_off_has_ended_well_whoever_its_monitor_was() {
    let steady = kept(":rounds=200", &[]);
    for warm in [0, 1] {
        let host = Host::warm(warm);
        waiting(&host, warm);
        let ends = clone("ends", &steady.path("snap"), "  restartPolicy: Never\n");
        host.must(&["apply", "-f", &host.manifest(&ends)]);
        let ended = host.until_phase("vm", "ends", "Succeeded");
        assert_eq!(ended["status"]["lastEnd"], "the guest shut down");
        host.must(&["delete", "vm/ends"]);
        assert!(names(&host.state().join("vms")).is_empty());
    }
}

#[test]
fn monitors_wait_become_clones_and_are_found_again() {
    let (mut host, steady) = (Host::warm(2), kept("", &[]));
    let first = waiting(&host, 2);
    let manifest = host.manifest(&clone("one", &steady.path("snap"), ""));
    host.must(&["apply", "--wait", "-f", &manifest]);
    checks(&host, "one", 2);
    assert!(host.monitors().is_empty(), "one was started for it");
    // Another waits in its place.
    let all = waiting(&host, 2);
    let clones: Vec<_> = first.iter().filter(|id| all.contains(id)).collect();
    assert_eq!((all.len(), clones.len()), (3, 2));
    // The agent dies. The next one has the clone, and waits with others.
    host.kill();
    host.up();
    let one = host.object("vm", "one");
    assert_eq!(
        (&one["status"]["phase"], &one["status"]["restarts"]),
        (&"Running".into(), &0.into())
    );
    let next = eventually("those that waited are gone", SHORT, || {
        let next = host.waited();
        let old = next.iter().filter(|id| all.contains(id)).count();
        (next.len() == 3 && old == 1).then_some(next)
    });
    // Who waits and dies is nobody's clone.
    waiting(&host, 2);
    let clone_id = next.iter().find(|id| all.contains(id)).copied();
    next.iter()
        .filter(|id| Some(**id) != clone_id)
        .for_each(|id| kill(*id));
    host.must(&[
        "apply",
        "--wait",
        "-f",
        &host.manifest(&clone("two", &steady.path("snap"), "")),
    ]);
    checks(&host, "two", 2);
    waiting(&host, 2);
    host.must(&["delete", "vm", "one"]);
    host.must(&["delete", "vm", "two"]);
    // It ends in order: nobody waits any more.
    host.down();
    assert!(host.waited().is_empty() && host.monitors().is_empty());
    assert!(names(&host.state().join("warm")).is_empty());
    assert!(names(&host.state().join("vms")).is_empty());
}

#[test]
fn a_monitor_that_was_taken_by_an_agent_that_died_before_it_said_what_for_is_replaced() {
    let (mut host, steady) = (Host::warm(1), kept("", &[]));
    host.must(&[
        "apply",
        "--wait",
        "-f",
        &host.manifest(&clone("one", &steady.path("snap"), "")),
    ]);
    waiting(&host, 1);
    let home = folder(&host, "one");
    host.kill();
    let before = host.waited().into_iter().chain(host.monitors());
    let taken = host
        .state()
        .join("warm")
        .join(&names(&host.state().join("warm"))[0]);
    let lock = |folder: &Path| std::fs::canonicalize(folder.join("lock")).expect("a lock");
    let holds = |id: &i32, lock: &Path| {
        std::fs::read_link(format!("/proc/{id}/fd/0")).is_ok_and(|path| path == lock)
    };
    let before: Vec<i32> = before.collect();
    let clone_id = before.iter().find(|id| holds(id, &lock(&home)));
    kill(*clone_id.expect("it runs"));
    std::fs::remove_dir_all(&home).expect("removed");
    std::fs::rename(&taken, &home).expect("taken");
    host.up();
    checks(&host, "one", 2);
    let empty = before
        .iter()
        .find(|id| Some(*id) != clone_id)
        .expect("one waited");
    assert!(!host.waited().contains(empty), "it goes on without a VM");
    host.must(&["delete", "vm", "one"]);
    assert!(names(&host.state().join("vms")).is_empty());
}
