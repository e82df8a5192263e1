//! A host under `skerry up`: what is declared runs, whoever is killed, and nothing else is left.

use std::path::Path;
use std::time::Duration;

use skerry_stage::ADDRESSES;
use skerry_tests::Site;
use skerry_tests::containers::cgroups;
use skerry_tests::host::{Host, kill, processes};
use skerry_tests::together::Together;
use skerry_tests::vmm::SHORT;
use skerry_tests::{eventually, given};

fn vm(name: &str, kernel: &Path, tasks: &str, more: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: {name}, labels: {{app: test}}}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"{tasks}\"}}\n\
         \x20 disks: [{{name: data, size: 4Mi}}]\n\
         {more}---\n",
        kernel.display()
    )
}

const STAYS: &str = "run=blk-verify:0:1 off=wait-power-button";

fn payload() -> std::path::PathBuf {
    given("SKERRY_PAYLOAD")
}

#[test]
fn what_is_declared_runs_and_survives_the_death_of_its_monitor_and_of_the_agent() {
    let mut host = Host::start();
    let both = vm("one", &payload(), STAYS, "") + &vm("two", &payload(), STAYS, "");
    let manifest = host.manifest(&both);
    host.must(&["apply", "--wait", "-f", &manifest]);
    assert!(
        host.must(&["apply", "-f", &manifest])
            .contains("microvm/two unchanged")
    );
    let first = host.monitors();
    assert_eq!(first.len(), 2);
    // The agent dies: nothing else does, and the next one finds all of it.
    host.kill();
    assert_eq!(host.monitors(), first);
    host.up();
    let one = host.object("vm", "one");
    assert_eq!(
        (&one["status"]["phase"], &one["status"]["restarts"]),
        (&"Running".into(), &0.into())
    );
    assert_eq!(host.monitors(), first);
    // A monitor dies, which the new agent did not start: it runs again, on the same disk.
    first.iter().for_each(|id| kill(*id));
    for name in ["one", "two"] {
        host.until("vm", name, SHORT, |s| {
            s["phase"] == "Running" && s["restarts"] == 1
        });
    }
    let second = host.monitors();
    assert!(second.len() == 2 && second.iter().all(|id| !first.contains(id)));
    assert!(host.must(&["events"]).contains("Ended"));
    // Both die at once.
    host.kill();
    second.iter().for_each(|id| kill(*id));
    host.up();
    host.until_phase("vm", "two", "Running");
    host.until_phase("vm", "one", "Running");
    // All of it goes.
    host.must(&["delete", "-f", &manifest]);
    assert!(host.monitors().is_empty());
    let left = std::fs::read_dir(host.state().join("vms")).expect("a folder");
    assert_eq!(left.count(), 0);
}

#[test]
fn what_is_there_at_once_is_not_waited_for() {
    let host = Host::start();
    let tenant = "apiVersion: v1\nkind: Namespace\nmetadata: {name: quay}\n---\n";
    let manifest = host.manifest(&(tenant.to_owned() + &vm("web", &payload(), STAYS, "")));
    host.must(&["apply", "--wait", "-f", &manifest]);
    assert_eq!(host.object("vm", "web")["status"]["phase"], "Running");
    host.must(&["delete", "-f", &manifest]);
}

#[test]
fn what_is_deleted_and_declared_again_at_once_runs() {
    let host = Host::start();
    let manifest = host.manifest(&vm(
        "web",
        &payload(),
        "run=spin:1 off=wait-power-button",
        "",
    ));
    for _ in 0..15 {
        host.must(&["apply", "-f", &manifest]);
        host.must(&["delete", "vm/web", "--grace", "0"]);
        host.must(&["apply", "-f", &manifest]);
        host.until_phase("vm", "web", "Running");
        host.must(&["delete", "vm/web", "--grace", "0"]);
    }
    assert!(host.monitors().is_empty());
}

#[test]
fn a_monitor_that_does_not_listen_yet_is_waited_for_and_no_second_one_started() {
    let mut host = Host::start();
    host.must(&[
        "apply",
        "--wait",
        "-f",
        &host.manifest(&vm("web", &payload(), STAYS, "")),
    ]);
    let object = host.object("vm", "web");
    let uid = object["metadata"]["uid"].as_str().expect("a uid");
    let lock = host.state().join("vms").join(uid).join("lock");
    host.kill();
    host.monitors().into_iter().for_each(kill);
    // As one that the killed agent has just started: it holds the folder, and cannot be reached.
    let held = std::fs::File::open(&lock).expect("a lock");
    eventually("the killed one lets go", SHORT, || {
        rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()
    });
    host.up();
    let says = |s: &serde_json::Value| s["conditions"].to_string().contains("another monitor");
    host.until("vm", "web", SHORT, says);
    assert!(host.monitors().is_empty());
    drop(held);
    host.until("vm", "web", SHORT, |s| s["phase"] == "Running");
    assert_eq!(host.monitors().len(), 1);
    host.must(&["delete", "vm/web"]);
}

#[test]
fn the_stock_client_shows_changes_and_deletes() {
    let host = Host::start();
    let manifest = host.manifest(&vm("web", &payload(), STAYS, ""));
    let kubectl = |arguments: &[&str]| host.kubectl_must(arguments);
    assert!(kubectl(&["api-resources"]).contains("microvms"));
    assert!(
        kubectl(&["explain", "microvm.spec.disks"])
            .contains("Its name, of which there is one a VM")
    );
    assert!(kubectl(&["apply", "-f", &manifest]).contains("created"));
    kubectl(&["wait", "vm/web", "--for=condition=Ready", "--timeout=30s"]);
    let table = kubectl(&["get", "vms", "-o", "wide"]);
    assert!(
        table.contains("PHASE") && table.contains("Running"),
        "{table}"
    );
    assert!(
        kubectl(&["get", "vm", "-l", "app=test", "-o", "name"]).contains("microvm.skerry.io/web")
    );
    assert!(kubectl(&["get", "vm", "-l", "app!=test", "-o", "name"]).is_empty());
    assert!(kubectl(&["describe", "vm", "web"]).contains("Started"));
    assert!(kubectl(&["get", "events"]).contains("it runs on here"));
    // What would change is shown, and nothing changed.
    let other = host.manifest(&vm("web", &payload(), STAYS, "  cpus: 2\n"));
    let diff = host.kubectl(&["diff", "-f", &other]);
    assert!(!diff.good && diff.out.contains("+  cpus: 2"), "{diff:?}");
    assert_eq!(host.object("vm", "web")["metadata"]["generation"], 1);
    assert!(kubectl(&["apply", "-f", &other]).contains("configured"));
    assert_eq!(host.object("vm", "web")["metadata"]["generation"], 2);
    let off = r#"{"spec": {"running": false}}"#;
    kubectl(&["patch", "vm", "web", "--type", "merge", "-p", off]);
    kubectl(&[
        "wait",
        "vm/web",
        "--for=jsonpath={.status.phase}=Stopped",
        "--timeout=30s",
    ]);
    assert!(host.monitors().is_empty());
    let on = r#"[{"op": "replace", "path": "/spec/running", "value": true}]"#;
    kubectl(&["patch", "vm", "web", "--type", "json", "-p", on]);
    kubectl(&["wait", "vm/web", "--for=condition=Ready", "--timeout=30s"]);
    kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        &manifest,
    ]);
    assert!(kubectl(&["delete", "vm", "web"]).contains("deleted"));
    assert!(kubectl(&["get", "vms"]).is_empty());
    assert!(kubectl(&["get", "namespaces"]).contains("default"));
}

#[test]
fn what_cannot_be_is_refused_with_its_field() {
    let host = Host::start();
    let refused = |text: &str, words: &[&str]| {
        let manifest = host.manifest(text);
        for said in [
            host.skerry(&["apply", "-f", &manifest]),
            host.kubectl(&["apply", "-f", &manifest]),
        ] {
            assert!(!said.good, "{said:?}");
            for word in words {
                assert!(said.errors.contains(word), "`{word}` is not in {said:?}");
            }
        }
    };
    let good = vm("web", &payload(), STAYS, "");
    refused(
        &good.replace("memory: 64Mi", "memory: 64Xi"),
        &["spec.memory", "as in 512Mi"],
    );
    refused(
        &good.replace("memory: 64Mi", "memory: 1"),
        &["spec.memory", "16Mi"],
    );
    refused(
        &good.replace("  memory", "  memori"),
        &["memori", "unknown field"],
    );
    refused(
        &good.replace("size: 4Mi", "size: 4Mi, sice: 3"),
        &["spec.disks[0]", "sice"],
    );
    refused(
        &good.replace("name: web", "name: Web_"),
        &["metadata.name", "a-z"],
    );
    refused(
        &good.replace("name: web", "name: web, namespace: other"),
        &["other", "not found"],
    );
    let none = host.skerry(&["get", "pods"]);
    assert!(none.errors.contains("microvms, containers"), "{none:?}");
    let other = "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n";
    host.must(&["apply", "-f", &host.manifest(other)]);
    let there = good.replace("name: web", "name: web, namespace: other");
    host.must(&["apply", "-f", &host.manifest(&there)]);
    let full = host.skerry(&["delete", "ns", "other"]);
    assert!(
        !full.good && full.errors.contains("microvm other/web is there"),
        "{full:?}"
    );
    host.must(&["delete", "vm/web", "--namespace", "other"]);
    host.must(&["delete", "ns", "other"]);
    let gone = host.skerry(&["get", "vm", "nobody"]);
    assert!(gone.errors.contains("\"nobody\" not found"), "{gone:?}");
}

#[test]
fn what_does_not_start_says_why_and_starts_when_the_cause_goes_away() {
    let host = Host::start();
    let kernel = host.path("kernel");
    let manifest = host.manifest(&vm("web", &kernel, STAYS, ""));
    host.must(&["apply", "-f", &manifest]);
    let ready = |status: &serde_json::Value| {
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter()
            .find(|c| c["type"] == "Ready")
            .unwrap_or_default()
    };
    let failing = host.until_phase("vm", "web", "Failing");
    let message = ready(&failing["status"])["message"].to_string();
    assert!(
        message.contains("No such file") && message.contains("kernel"),
        "{message}"
    );
    assert!(host.must(&["describe", "vm", "web"]).contains("NotStarted"));
    // Something that is no kernel.
    std::fs::write(&kernel, "no kernel").expect("written");
    host.until("vm", "web", SHORT, |s| {
        !ready(s)["message"].to_string().contains("No such file")
    });
    std::fs::remove_file(&kernel).expect("removed");
    std::fs::copy(payload(), &kernel).expect("copied");
    host.until_phase("vm", "web", "Running");
    host.must(&["delete", "vm", "web"]);
}

#[test]
fn what_ends_is_started_again_as_its_policy_says() {
    let host = Host::start();
    let once = |name: &str, policy: &str| {
        vm(
            name,
            &payload(),
            "run=spin:1",
            &format!("  restartPolicy: {policy}\n"),
        )
    };
    // Several, as a guest may be quicker than the first question that its monitor is asked.
    let quick: Vec<String> = (0..6).map(|n| format!("never{n}")).collect();
    let mut all = once("failing", "OnFailure") + &once("always", "Always");
    all.extend(quick.iter().map(|name| once(name, "Never")));
    let manifest = host.manifest(&all);
    host.must(&["apply", "-f", &manifest]);
    for name in quick.iter().map(String::as_str).chain(["failing"]) {
        let ended = host.until_phase("vm", name, "Succeeded");
        assert_eq!(ended["status"]["restarts"], 0);
        let how = &ended["status"]["lastEnd"];
        assert_eq!(how, "the guest shut down", "{name}");
    }
    host.until("vm", "always", SHORT, |s| s["restarts"].as_u64() >= Some(2));
    host.must(&["delete", "-f", &manifest]);
}

#[test]
fn what_has_ended_for_good_keeps_nobody_out_and_needs_room_to_begin_again() {
    let host = Host::start();
    // As large as it may be beside nothing of its size.
    let memory = host.object("host", "here")["status"]["memory"].clone();
    let memory = memory.as_str().expect("an amount").to_owned();
    let large = |name: &str, tasks: &str| {
        vm(name, &payload(), tasks, "  restartPolicy: Never\n")
            .replace("memory: 64Mi", &format!("memory: {memory}"))
    };
    let manifest = host.manifest(&large("first", "run=spin:1"));
    host.must(&["apply", "-f", &manifest]);
    host.until_phase("vm", "first", "Succeeded");
    let next = host.manifest(&large("second", STAYS));
    host.must(&["apply", "-f", &next]);
    host.until_phase("vm", "second", "Running");
    // The first one is wanted again, and there is no room.
    let again = host.manifest(&large("first", STAYS));
    host.must(&["apply", "-f", &again]);
    let waits = |s: &serde_json::Value| s["conditions"].to_string().contains("NotScheduled");
    host.until("vm", "first", SHORT, waits);
    host.must(&["delete", "vm/second"]);
    host.until_phase("vm", "first", "Running");
    host.must(&["delete", "vm/first"]);
}

#[test]
fn a_drained_host_runs_nothing_until_it_is_uncordoned() {
    let host = Host::start();
    let manifest = host.manifest(&vm("web", &payload(), STAYS, ""));
    host.must(&["apply", "--wait", "-f", &manifest]);
    host.must(&["drain", "here"]);
    host.until_phase("vm", "web", "Pending");
    assert!(host.monitors().is_empty());
    host.must(&["uncordon", "here"]);
    host.until_phase("vm", "web", "Running");
    host.must(&["delete", "vm/web"]);
}

fn container(name: &str, image: &Path, script: &str, more: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"{script}\"]\n\
         {more}---\n",
        image.display()
    )
}

#[test]
fn containers_run_beside_vms_and_survive_as_they_do() {
    let (mut host, site) = (Host::start(), Site::new());
    let script = "echo here; trap 'exit 0' TERM; while :; do sleep 1; done";
    let all = container("one", &site.layout(), script, "")
        + &container("two", &site.layout(), script, "  memory: 32Mi\n")
        + &vm("vm", &payload(), STAYS, "");
    let manifest = host.manifest(&all);
    host.must(&["apply", "--wait", "-f", &manifest]);
    assert!(host.must(&["logs", "container", "one"]).contains("here"));
    let uid = |host: &Host, name: &str| {
        let object = host.object("container", name);
        object["metadata"]["uid"]
            .as_str()
            .expect("a uid")
            .to_owned()
    };
    let (one, two) = (uid(&host, "one"), uid(&host, "two"));
    // The agent's death is nobody's.
    host.kill();
    host.up();
    host.until("container", "one", SHORT, |s| {
        s["phase"] == "Running" && s["restarts"] == 0
    });
    // The shim's, and the container's own.
    let shims = |uid: &str| processes(&host.state().join("containers/containers").join(uid));
    let shim = shims(&one);
    assert!(!shim.is_empty());
    shim.into_iter().for_each(kill);
    host.until("container", "one", SHORT, |s| {
        s["phase"] == "Running" && s["restarts"] == 1
    });
    assert!(
        host.kubectl_must(&["get", "containers"])
            .contains("Running")
    );
    assert_eq!(host.object("container", "two")["status"]["restarts"], 0);
    host.must(&["delete", "-f", &manifest]);
    for uid in [one, two] {
        assert_eq!(cgroups(&uid), Vec::<std::path::PathBuf>::new());
        assert!(shims(&uid).is_empty());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&host.state().display().to_string()));
}

#[test]
fn a_container_says_how_it_ended_and_why_it_does_not_start() {
    let (host, site) = (Host::start(), Site::new());
    let never = "  restartPolicy: Never\n";
    let all = container("bad", &site.layout(), "exit 7", never)
        + &container("none", &host.path("nowhere"), "true", "");
    let manifest = host.manifest(&all);
    host.must(&["apply", "-f", &manifest]);
    let bad = host.until_phase("container", "bad", "Failed");
    assert_eq!(bad["status"]["lastEnd"], "exit code 7");
    let none = host.until_phase("container", "none", "Failing");
    assert!(
        none["status"]["conditions"].to_string().contains("nowhere"),
        "{none}"
    );
    host.must(&["delete", "-f", &manifest]);
}

#[test]
fn what_has_no_room_says_so_and_runs_when_there_is_some() {
    let host = Host::start();
    let large = |name: &str| {
        let text = vm(name, &payload(), STAYS, "");
        text.replace(
            "memory: 64Mi",
            "memory: 64Mi\n  placement: {hostSelector: {rack: a}}",
        )
    };
    let manifest = host.manifest(&large("web"));
    host.must(&["apply", "-f", &manifest]);
    let waits = host.until("vm", "web", SHORT, |s| {
        s["conditions"][0]["status"] == "False"
    });
    let message = waits["status"]["conditions"][0]["message"].to_string();
    assert!(
        message.contains("1 host: other labels than those selected"),
        "{message}"
    );
    assert!(host.must(&["describe", "vm/web"]).contains("NotScheduled"));
    host.kubectl_must(&["label", "host", "here", "rack=a"]);
    host.until_phase("vm", "web", "Running");
    let much = vm("much", &payload(), STAYS, "").replace("64Mi", "64Ti");
    host.must(&["apply", "-f", &host.manifest(&much)]);
    let waits = host.until("vm", "much", SHORT, |s| {
        s["conditions"][0]["status"] == "False"
    });
    assert!(
        waits["status"].to_string().contains("of memory free"),
        "{waits}"
    );
    host.must(&["delete", "vm/much"]);
    host.must(&["cordon", "here"]);
    let late = host.manifest(&vm("late", &payload(), STAYS, ""));
    host.must(&["apply", "-f", &late]);
    let waits = host.until("vm", "late", SHORT, |s| {
        s["conditions"][0]["status"] == "False"
    });
    assert!(waits["status"].to_string().contains("cordoned"), "{waits}");
    host.must(&["uncordon", "here"]);
    host.until_phase("vm", "late", "Running");
    host.must(&["delete", "-f", &late]);
    host.must(&["delete", "-f", &manifest]);
}

#[test]
fn a_claim_takes_the_whole_host_and_gives_it_back() {
    let host = Host::start();
    host.must(&[
        "apply",
        "--wait",
        "-f",
        &host.manifest(&vm("web", &payload(), STAYS, "")),
    ]);
    let claim = "apiVersion: skerry.io/v1\nkind: BareMetal\nmetadata: {name: all}\nspec: {}\n";
    let second = claim.replace("all", "more");
    host.must(&["apply", "--wait", "-f", &host.manifest(claim)]);
    assert!(host.monitors().is_empty());
    assert_eq!(host.object("vm", "web")["status"]["phase"], "Pending");
    host.must(&["apply", "-f", &host.manifest(&second)]);
    let waits = host.until("bm", "more", SHORT, |s| {
        s["conditions"][0]["status"] == "False"
    });
    assert!(
        waits["status"].to_string().contains("claimed already"),
        "{waits}"
    );
    host.must(&["delete", "bm/more"]);
    host.must(&["delete", "bm/all"]);
    host.until_phase("vm", "web", "Running");
    host.must(&["delete", "vm/web"]);
}

#[test]
fn vms_and_containers_declared_together_live_through_deaths_and_a_reboot() {
    let site = Site::new();
    let declared = |name: &str, address: &str| {
        let peer = ADDRESSES[2];
        let tasks = format!(
            "run=net-ping:ip={address}:peer={peer}:count=1,net-respond:ip={address}:seconds=3600"
        );
        let network = format!("  networks: [{{address: {address}}}]\n");
        vm(name, &payload(), &tasks, &network)
    };
    let together = Together {
        vms: declared("vm-one", ADDRESSES[0]) + &declared("vm-two", ADDRESSES[1]),
        image: &site.layout(),
        goes_on: None,
        says: "ok net-ping",
        limit: SHORT,
    };
    together.live(Host::machine());
}

#[test]
fn vms_and_containers_of_the_default_network_have_addresses_and_reach_each_other() {
    let (mut host, site) = (Host::apart(), Site::new());
    let networks = "  networks: [{network: default}]\n";
    let wait = "while :; do sleep 1; done";
    let all = container("one", &site.layout(), wait, networks)
        + &vm(
            "vm",
            &payload(),
            STAYS,
            "  networks: [{address: 10.88.0.77}]\n",
        );
    let manifest = host.manifest(&all);
    host.must(&["apply", "--wait", "-f", &manifest]);
    let address = |host: &Host, kind: &str, name: &str| {
        let object = host.object(kind, name);
        object["status"]["addresses"][0]
            .as_str()
            .expect("an address")
            .to_owned()
    };
    assert_eq!(address(&host, "vm", "vm"), "10.88.0.77");
    let one = address(&host, "container", "one");
    let ping = format!(
        "ip addr show eth0; ping -c 1 -W 5 {one} && ping -c 1 -W 5 10.88.0.1 && echo reached; {wait}"
    );
    let two = container("two", &site.layout(), &ping, networks);
    host.must(&["apply", "--wait", "-f", &host.manifest(&two)]);
    eventually("one is reached", SHORT, || {
        let said = host.must(&["logs", "container/two"]);
        said.contains("reached").then_some(())
    });
    // Addresses stay through the agent's death.
    host.kill();
    host.up();
    assert_eq!(address(&host, "container", "one"), one);
    let twice = vm(
        "twice",
        &payload(),
        STAYS,
        "  networks: [{address: 10.88.0.77}]\n",
    );
    host.must(&["apply", "-f", &host.manifest(&twice)]);
    let failing = host.until_phase("vm", "twice", "Failing");
    assert!(
        failing["status"].to_string().contains("10.88.0.77"),
        "{failing}"
    );
    for name in ["vm/twice", "container/one", "container/two", "vm/vm"] {
        host.must(&["delete", name]);
    }
    let left = std::fs::read_dir(host.state().join("netns")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

#[test]
fn logs_are_what_the_guest_says_and_go_on_with_it() {
    let host = Host::start();
    let kernel = payload().display().to_string();
    let run = ["run", "vm", "web", "--kernel", &kernel, "--memory", "64Mi"];
    let tasks = ["--cmdline", "run=spin:1 off=wait-power-button"];
    host.must(&[&run[..], &tasks].concat());
    eventually("the guest is heard", SHORT, || {
        let said = host.must(&["logs", "vm/web"]);
        said.contains("ok spin ms=1").then_some(())
    });
    host.must(&["delete", "vm", "web", "--grace", "5"]);
    assert!(!host.skerry(&["logs", "vm/web"]).good);
}

#[test]
fn a_second_agent_on_the_same_state_is_refused() {
    let host = Host::start();
    let state = host.state().display().to_string();
    let second = host.skerry(&["up", "--state", &state]);
    assert!(
        !second.good && second.errors.contains("--state"),
        "{second:?}"
    );
}

/// Declares and deletes at random, and kills the agent at random: what was answered is so afterwards.
#[test]
fn an_agent_killed_at_any_moment_loses_nothing_that_it_answered() {
    use skerry_tests::random::Random;
    const HISTORIES: usize = 15;
    let (mut host, mut random) = (Host::start(), Random::new(6));
    let mut declared = std::collections::BTreeSet::new();
    for _ in 0..HISTORIES {
        let pid = host.pid().expect("it runs") as i32;
        let wait = Duration::from_millis(random.below(400));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(wait);
            kill(pid);
        });
        // What was asked last may have been done or not.
        let unknown = loop {
            let name = format!("vm{}", random.below(4));
            let said = if random.below(3) == 0 {
                let said = host.skerry(&["delete", "vm", &name]);
                if said.good {
                    declared.remove(&name);
                }
                said
            } else {
                let manifest = host.manifest(&vm(&name, &payload(), STAYS, ""));
                let said = host.skerry(&["apply", "-f", &manifest]);
                if said.good {
                    declared.insert(name.clone());
                }
                said
            };
            if !said.good && !said.errors.contains("not found") {
                break name;
            }
        };
        killer.join().expect("the killer ends");
        host.kill();
        host.up();
        // What is being deleted goes on to go.
        let there = eventually("nothing is being deleted", SHORT, || {
            let there = host.must(&["get", "vms", "--output", "json"]);
            let there: serde_json::Value = serde_json::from_str(&there).expect("JSON");
            let items = there["items"].as_array().cloned().unwrap_or_default();
            let going = |vm: &serde_json::Value| !vm["metadata"]["deletionTimestamp"].is_null();
            let name = |vm: &serde_json::Value| vm["metadata"]["name"].as_str().map(str::to_owned);
            let all: std::collections::BTreeSet<String> = items.iter().filter_map(name).collect();
            (!items.iter().any(going)).then_some(all)
        });
        match there.contains(&unknown) {
            true => declared.insert(unknown),
            false => declared.remove(&unknown),
        };
        assert_eq!(there, declared);
    }
    // Those that were being deleted may still go.
    eventually("all that is declared runs, and nothing else", SHORT, || {
        let there = host.must(&["get", "vms", "--output", "json"]);
        let there: serde_json::Value = serde_json::from_str(&there).expect("JSON");
        let items = there["items"].as_array().cloned().unwrap_or_default();
        let running = items
            .iter()
            .filter(|vm| vm["status"]["phase"] == "Running")
            .count();
        (running == items.len() && host.monitors().len() == running).then_some(())
    });
    for name in declared {
        host.skerry(&["delete", "vm", &name]);
    }
    assert!(host.monitors().is_empty());
}
