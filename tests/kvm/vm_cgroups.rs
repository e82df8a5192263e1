//! The cgroups of VMs under a host: a share of CPUs and a bound of memory for each monitor, and nothing left.

use skerry_tests::host::{Host, vm_cgroups};
use skerry_tests::vmm::SHORT;
use skerry_tests::{eventually, given};

/// A number in one of a cgroup's files, of whichever version has it.
fn number(uid: &str, files: [&str; 2]) -> u64 {
    let all = vm_cgroups(uid);
    let mut paths = all
        .iter()
        .flat_map(|path| files.map(|file| path.join(file)));
    let text = paths.find_map(|path| std::fs::read_to_string(path).ok());
    let text = text.unwrap_or_else(|| panic!("none of {files:?} in {all:?}"));
    text.trim().parse().expect("a number")
}

#[test]
fn a_monitor_has_its_share_and_a_bound_and_leaves_no_cgroup() {
    let mut host = Host::start();
    let kernel = given("SKERRY_PAYLOAD").display().to_string();
    let manifest = |name: &str, tier: &str| {
        format!(
            "apiVersion: skerry.io/v1\nkind: MicroVM\nmetadata: {{name: {name}}}\n\
             spec:\n  memory: 64Mi\n  tier: {tier}\n\
             \x20 boot: {{kernel: {kernel}, cmdline: \"run=spin:1 off=wait-power-button\"}}\n---\n"
        )
    };
    let both = host.manifest(&(manifest("burst", "burst") + &manifest("dense", "dense")));
    host.must(&["apply", "--wait", "-f", &both]);
    let uids = ["burst", "dense"].map(|name| {
        let object = host.object("vm", name);
        object["metadata"]["uid"]
            .as_str()
            .expect("a uid")
            .to_owned()
    });
    let monitors = host.monitors();
    for uid in &uids {
        let memory = number(uid, ["memory.max", "memory.limit_in_bytes"]);
        assert_eq!(memory, (64 + 1 + 64) << 20);
        for cgroup in vm_cgroups(uid) {
            let inside = std::fs::read_to_string(cgroup.join("cgroup.procs")).expect("processes");
            let inside: Vec<i32> = inside
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect();
            assert!(
                inside.len() == 1 && monitors.contains(&inside[0]),
                "{}: {inside:?}",
                cgroup.display()
            );
        }
    }
    let weights = uids
        .each_ref()
        .map(|uid| number(uid, ["cpu.weight", "cpu.shares"]));
    assert_eq!(weights[0], 4 * weights[1]);
    // They stay with the VMs when the agent dies, and go with them.
    host.kill();
    host.up();
    assert!(uids.iter().all(|uid| !vm_cgroups(uid).is_empty()));
    host.must(&["delete", "-f", &both]);
    eventually("their cgroups go", SHORT, || {
        uids.iter()
            .all(|uid| vm_cgroups(uid).is_empty())
            .then_some(())
    });
}
