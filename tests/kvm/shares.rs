//! Directories that VMs share: who serves them, and that none does longer than its VM.

use std::collections::BTreeSet;

use skerry_tests::host::{Host, kill, processes, vm_cgroups};
use skerry_tests::vmm::SHORT;
use skerry_tests::{eventually, given};

fn vm(shares: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"off=wait-power-button\"}}\n\
         \x20 shares: [{shares}]\n",
        given("SKERRY_PAYLOAD").display()
    )
}

/// The processes that serve a VM's shares.
fn servers(host: &Host, uid: &str) -> BTreeSet<i32> {
    let share = host.state().join("vms").join(uid).join("share-");
    let all = processes(&share).into_iter().filter(|id| {
        // The monitor has the socket's path, too.
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.starts_with(b"virtiofsd of ")
    });
    all.collect()
}

#[test]
fn a_share_is_served_as_long_as_its_vm_runs_whoever_is_killed() {
    let mut host = Host::apart();
    let data = host.path("shared/data");
    std::fs::create_dir_all(&data).expect("a folder");
    let data = data.display();
    let shares =
        format!("{{tag: data, source: {data}}}, {{tag: again, source: {data}, readOnly: true}}");
    host.must(&["apply", "-f", &host.manifest(&vm(&shares))]);
    let object = host.until_phase("vm", "web", "Running");
    let uid = object["metadata"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned();
    let first = servers(&host, &uid);
    // Each has one who waits for it outside of its namespaces.
    assert_eq!(first.len(), 4, "{first:?}");
    let groups = vm_cgroups(&uid);
    let inside = |id: &i32| {
        groups.iter().any(|group| {
            let all = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            all.lines().any(|line| line == id.to_string())
        })
    };
    assert!(first.iter().all(inside), "{first:?} in {groups:?}");
    // The agent's death ends nothing, and the next one knows them.
    host.kill();
    host.up();
    host.until_phase("vm", "web", "Running");
    assert_eq!(servers(&host, &uid), first);
    // A VM whose share nobody serves is started again, as its policy says.
    kill(*first.first().expect("one"));
    let restarted =
        |status: &serde_json::Value| status["restarts"] == 1 && status["phase"] == "Running";
    let object = host.until("vm", "web", SHORT, restarted);
    let why = object["status"]["lastEnd"].as_str().unwrap_or_default();
    assert!(why.starts_with("the server of the share "), "{why}");
    assert!(host.must(&["events"]).contains(why));
    let second = servers(&host, &uid);
    assert!(
        second.len() == 4 && second.is_disjoint(&first),
        "{second:?}"
    );
    host.must(&["delete", "vm/web", "--grace", "0"]);
    eventually("nothing is left", SHORT, || {
        host.left([&uid].into_iter()).is_empty().then_some(())
    });
    assert!(servers(&host, &uid).is_empty());
}

#[test]
fn what_the_host_does_not_share_is_refused_with_what_to_do() {
    let host = Host::apart();
    let inner = host.path("shared");
    std::fs::create_dir_all(&inner).expect("a folder");
    std::os::unix::fs::symlink("/etc", inner.join("link")).expect("a link");
    let link = inner.join("link");
    let shares = format!("{{tag: data, source: {}}}", link.display());
    host.must(&["apply", "-f", &host.manifest(&vm(&shares))]);
    let refused = |status: &serde_json::Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            message.contains("the host does not share") && message.contains("--share")
        })
    };
    let object = host.until("vm", "web", SHORT, refused);
    let uid = object["metadata"]["uid"].as_str().expect("a uid");
    assert!(servers(&host, uid).is_empty());
    host.must(&["delete", "vm/web", "--grace", "0"]);
    let two = "{tag: a, source: /a}, {tag: a, source: b}";
    let said = host.skerry(&["apply", "-f", &host.manifest(&vm(two))]);
    assert!(
        !said.good && said.errors.contains("another share has this tag"),
        "{said:?}"
    );
    assert!(
        said.errors.contains("it must be an absolute path"),
        "{said:?}"
    );
}
