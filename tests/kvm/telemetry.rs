//! What a host tells of itself: metrics, alert rules over them, and lines of log.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use skerry_tests::host::Host;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually, given};

/// A VM that reads and writes its disk and then stays, and a container that stays, of a tenant.
fn workloads(site: &Site, namespace: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: seen, namespace: {namespace}}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"run=blk-verify:0:1 off=wait-power-button\"}}\n\
         \x20 disks: [{{name: data, size: 4Mi}}]\n\
         ---\n\
         apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: box, namespace: {namespace}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"while true; do sleep 1; done\"]\n\
         \x20 memory: 32Mi\n",
        given("SKERRY_PAYLOAD").display(),
        site.layout().display()
    )
}

/// What Prometheus's own tool says of a text.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("input");
    std::fs::write(&path, input).expect("written");
    let output = Command::new("promtool")
        .args(arguments)
        .stdin(std::fs::File::open(path).expect("it is there"))
        .current_dir(packaging())
        .output()
        .expect("promtool, of Debian's prometheus");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

/// The value of the first sample of a family whose labels have these words.
fn value(text: &str, family: &str, words: &[&str]) -> Option<f64> {
    let mut lines = text.lines().filter(|line| {
        let named = line.strip_prefix(family);
        let named = named.is_some_and(|rest| rest.starts_with(['{', ' ']));
        named && words.iter().all(|word| line.contains(word))
    });
    lines.next()?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn metrics_tell_of_the_host_its_workloads_and_itself_and_tenants_see_their_own() {
    let (site, host) = (Site::new(), Host::start());
    for namespace in ["blue", "red"] {
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n");
        host.must(&["apply", "-f", &host.manifest(&text)]);
        let manifest = host.manifest(&workloads(&site, namespace));
        host.must(&["apply", "--wait", "-f", &manifest]);
    }
    let metrics = || host.kubectl_must(&["get", "--raw", "/metrics"]);
    let vm = ["namespace=\"blue\"", "kind=\"microvm\"", "name=\"seen\""];
    let boxed = ["namespace=\"blue\"", "kind=\"container\"", "name=\"box\""];
    let text = eventually("the VM has worked, and all is seen", SHORT, || {
        let text = metrics();
        let wrote = value(&text, "skerry_vm_disk_written_bytes_total", &vm)?;
        let left = value(&text, "skerry_vm_exits_total", &vm)?;
        let memory = value(&text, "skerry_workload_memory_bytes", &boxed)?;
        (wrote > 0.0 && left > 0.0 && memory > 0.0).then_some(text)
    });
    let (good, said) = promtool(&["check", "metrics"], &text);
    assert!(good && said.is_empty(), "{said}\n{text}");
    for (family, words) in [
        ("skerry_host_cpu_seconds_total", &["mode=\"user\""][..]),
        ("skerry_host_memory_size_bytes", &["host=\"here\""]),
        ("skerry_host_disk_free_bytes", &[]),
        ("skerry_vm_vcpu_seconds_total", &vm),
        ("skerry_vm_exits_by_kind_total", &vm),
        ("skerry_vm_worker_sleeps_total", &vm),
        ("skerry_workload_cpu_seconds_total", &vm),
        ("skerry_workload_cpu_seconds_total", &boxed),
        ("skerry_container_processes", &boxed),
        ("skerry_workload_memory_limit_bytes", &boxed),
        ("skerry_workload_ready", &vm),
        (
            "skerry_workloads",
            &["phase=\"Running\"", "kind=\"microvm\""],
        ),
        ("skerry_store_commits_total", &["outcome=\"made\""]),
        ("skerry_agent_turns_total", &["outcome=\"done\""]),
        ("skerry_scheduler_attempts_total", &["outcome=\"placed\""]),
        (
            "skerry_api_requests_total",
            &["verb=\"get\"", "code=\"200\""],
        ),
        (
            "skerry_api_request_duration_seconds_count",
            &["verb=\"get\""],
        ),
        ("skerry_api_watches", &[]),
    ] {
        assert!(
            value(&text, family, words).is_some(),
            "{family} {words:?}\n{text}"
        );
    }
    // However often somebody asks, it is looked at once a second.
    eventually("two who ask see the same look", SHORT, || {
        let ask = || host.kubectl_must(&["get", "--raw", "/usage"]);
        let [one, other] = [ask(), ask()].map(|text| {
            let usage: Value = serde_json::from_str(&text).expect("JSON");
            usage["at"].clone()
        });
        (one == other).then_some(())
    });
    // A tenant sees its own workloads, and nothing of the host.
    let token = host.must(&["token", "create", "red", "--namespace", "red"]);
    let token = token.trim();
    for path in ["/metrics", "/usage"] {
        let seen = host.kubectl_must(&["--token", token, "get", "--raw", path]);
        assert!(seen.contains("red") && !seen.contains("blue"), "{seen}");
        assert!(
            !seen.contains("skerry_host") && !seen.contains("skerry_api"),
            "{seen}"
        );
        assert!(!seen.contains("memoryAvailable"), "{seen}");
    }
    let nobody = host.kubectl(&["--token", "nobody.00", "get", "--raw", "/metrics"]);
    assert!(!nobody.good, "{nobody:?}");
    for namespace in ["blue", "red"] {
        for one in ["vm/seen", "container/box"] {
            host.must(&["delete", one, "--namespace", namespace, "--grace", "0"]);
        }
    }
}

#[test]
fn alert_rules_tell_of_trouble_and_of_nothing_else() {
    for arguments in [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ] {
        let (good, said) = promtool(&arguments, "");
        assert!(good, "{said}");
    }
    // Each rule is about families that there are.
    let rules = std::fs::read_to_string(packaging().join("alerts.yaml")).expect("rules");
    let tests = std::fs::read_to_string(packaging().join("alerts_test.yaml")).expect("tests");
    let alerts = rules.lines().filter_map(|line| line.split_once("alert: "));
    for (_, alert) in alerts {
        assert!(
            tests.contains(&format!("\"{alert}\"")),
            "{alert} is not tested"
        );
    }
}

#[test]
fn log_lines_are_json_with_opentelemetrys_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let log = std::fs::File::create(&path).expect("a file");
    let mut up = Command::new(given("SKERRY_COMMAND"))
        .args(["up", "--host", "teller", "--log-format", "json", "--state"])
        .arg(folder.path().join("state"))
        .arg("--vmm")
        .arg(given("SKERRY_VMM"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .env_remove("RUST_LOG")
        .spawn()
        .expect("it starts");
    let said = eventually("it says who it is", SHORT, || {
        let said = std::fs::read_to_string(&path).expect("a log");
        (said.contains("teller") && said.ends_with('\n')).then_some(said)
    });
    let up_is_over = rustix::process::kill_process(
        rustix::process::Pid::from_child(&up),
        rustix::process::Signal::TERM,
    );
    up_is_over.expect("it is ours");
    assert!(up.wait().expect("it is ours").success());
    for line in said.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["resource"]["host.name"], "teller", "{line}");
        for field in [
            "timestamp",
            "severity_text",
            "severity_number",
            "body",
            "attributes",
        ] {
            assert!(!line[field].is_null(), "{field}: {line}");
        }
    }
}
