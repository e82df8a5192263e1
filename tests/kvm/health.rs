//! Probes: what is not ready says so, what does not live is started again, and the agent's death changes neither.

use serde_json::Value;
use skerry_tests::Site;
use skerry_tests::containers::cgroups;
use skerry_tests::host::Host;
use skerry_tests::vmm::SHORT;
use skerry_tests::{eventually, given};

const STAYS: &str = "trap 'exit 0' TERM; while :; do sleep 1; done";

/// A container whose probes are asked every second.
fn container(name: &str, site: &Site, script: &str, more: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"{script}\"]\n\
         {more}",
        site.layout().display()
    )
}

fn probe(kind: &str, action: &str) -> String {
    format!("  {kind}Probe: {{{action}, periodSeconds: 1, failureThreshold: 2}}\n")
}

fn ready(status: &Value) -> (String, String) {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = all.into_iter().find(|c| c["type"] == "Ready");
    let ready = ready.unwrap_or_default();
    let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

/// Runs a command in a container of a host.
fn exec(host: &Host, name: &str, command: &[&str]) {
    let object = host.object("container", name);
    let uid = object["metadata"]["uid"].as_str().expect("a uid");
    let root = host.state().join("containers").display().to_string();
    let start = ["shim", "exec", "--root", &root, "--id", uid, "--"];
    host.must(&[&start, command].concat());
}

#[test]
fn a_container_is_ready_and_lives_as_its_commands_say() {
    let (mut host, site) = (Host::start(), Site::new());
    let probes = probe("readiness", "exec: {command: [cat, /tmp/ready]}")
        + &probe("liveness", "exec: {command: [cat, /tmp/alive]}");
    let script = format!("touch /tmp/alive; {STAYS}");
    let manifest = host.manifest(&container("web", &site, &script, &probes));
    host.must(&["apply", "-f", &manifest]);
    // It runs, and nobody may come yet.
    let says = |reason: &'static str, message: &'static str| {
        move |status: &Value| {
            let found = ready(status);
            status["phase"] == "Running" && found.0 == reason && found.1.contains(message)
        }
    };
    host.until("container", "web", SHORT, says("NotReady", "No such file"));
    exec(&host, "web", &["touch", "/tmp/ready"]);
    let before = host.until("container", "web", SHORT, says("Running", ""));
    // The next agent goes on where this one was.
    host.kill();
    host.up();
    exec(&host, "web", &["busybox", "rm", "/tmp/ready"]);
    let after = host.until("container", "web", SHORT, says("NotReady", "No such file"));
    assert_eq!(after["status"]["restarts"], before["status"]["restarts"]);
    let events = host.must(&["describe", "container/web"]);
    assert!(events.contains("readiness probe failed"), "{events}");
    // It does not live.
    assert_eq!(after["status"]["restarts"], 0);
    exec(&host, "web", &["touch", "/tmp/ready"]);
    exec(&host, "web", &["busybox", "rm", "/tmp/alive"]);
    let again = host.until("container", "web", SHORT, |status| {
        status["restarts"] == 1 && ready(status).0 == "Running"
    });
    let end = again["status"]["lastEnd"].as_str().expect("an end");
    assert!(
        end.contains("liveness probe failed") && end.contains("No such file"),
        "{end}"
    );
    assert!(host.must(&["events"]).contains("Unhealthy"));
    host.must(&["delete", "container/web"]);
}

#[test]
fn a_container_is_asked_at_its_address_by_http_and_tcp() {
    let (host, site) = (Host::apart(), Site::new());
    let network = "  networks: [{network: default}]\n";
    let probes = probe("readiness", "httpGet: {path: /health, port: 80}")
        + &probe("liveness", "tcpSocket: {port: 80}, initialDelaySeconds: 1");
    let script = format!("busybox httpd -f -p 80 -h /tmp & echo $! >/tmp/pid; {STAYS}");
    let text = container("web", &site, &script, &(network.to_owned() + &probes));
    host.must(&["apply", "-f", &host.manifest(&text)]);
    host.until("container", "web", SHORT, |s| {
        ready(s).1.contains("/health answers 404")
    });
    exec(&host, "web", &["touch", "/tmp/health"]);
    host.until("container", "web", SHORT, |s| ready(s).0 == "Running");
    assert_eq!(host.object("container", "web")["status"]["restarts"], 0);
    exec(&host, "web", &["sh", "-c", "kill $(cat /tmp/pid)"]);
    let again = host.until("container", "web", SHORT, |status| {
        status["restarts"].as_u64() >= Some(1) && ready(status).0 == "Running"
    });
    let end = again["status"]["lastEnd"].as_str().expect("an end");
    assert!(end.contains(":80 takes no connection"), "{end}");
    host.must(&["delete", "container/web"]);
}

#[test]
fn a_probe_that_does_not_answer_holds_up_nothing_and_leaves_nothing() {
    let (host, site) = (Host::start(), Site::new());
    let slow = "exec: {command: [sh, -c, 'echo tried >>/tmp/tries; exec sleep 1000']}";
    let probes = format!(
        "  readinessProbe: {{{slow}, periodSeconds: 1, failureThreshold: 1}}\n\
         \x20 livenessProbe: {{{slow}, periodSeconds: 1, timeoutSeconds: 600}}\n"
    );
    let manifest = host.manifest(&container("web", &site, STAYS, &probes));
    host.must(&["apply", "-f", &manifest]);
    host.until("container", "web", SHORT, |s| {
        ready(s).1.contains("more than")
    });
    // One of each kind at a time: those that were too slow were killed.
    exec(
        &host,
        "web",
        &[
            "sh",
            "-c",
            "for i in $(seq 5); do sleep 1; [ $(ps | grep -c '[s]leep 1000') -le 2 ] || exit 1; done",
        ],
    );
    let uid = host.object("container", "web")["metadata"]["uid"].clone();
    host.must(&["delete", "container/web", "--grace", "2"]);
    let left = cgroups(uid.as_str().expect("a uid"));
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
}

#[test]
fn what_ends_for_good_is_not_started_again_for_its_health() {
    let (host, site) = (Host::start(), Site::new());
    let more = probe("liveness", "exec: {command: ['false']}") + "  restartPolicy: Never\n";
    let manifest = host.manifest(&container("web", &site, STAYS, &more));
    host.must(&["apply", "-f", &manifest]);
    let failed = host.until_phase("container", "web", "Failed");
    assert_eq!(failed["status"]["restarts"], 0);
    host.must(&["delete", "container/web"]);
}

#[test]
fn a_vm_lives_as_long_as_its_vsock_is_served() {
    let mut host = Host::start();
    let kernel = given("SKERRY_PAYLOAD");
    let text = format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 vsock: true\n\
         \x20 boot: {{kernel: {}, cmdline: \"run=vsock-listen:5000:3 off=wait-power-button\"}}\n\
         \x20 livenessProbe: {{vsock: {{port: 5000}}, periodSeconds: 1, failureThreshold: 2}}\n\
         \x20 readinessProbe: {{vsock: {{port: 5001}}, periodSeconds: 1}}\n",
        kernel.display()
    );
    host.must(&["apply", "-f", &host.manifest(&text)]);
    // Nobody serves the other port.
    host.until("vm", "web", SHORT, |s| {
        ready(s).1.contains("port 5001 of its vsock")
    });
    // After three connections nobody serves this one either, also if another agent looks.
    host.kill();
    host.up();
    let again = host.until("vm", "web", SHORT, |s| s["restarts"].as_u64() >= Some(1));
    let end = again["status"]["lastEnd"].as_str().expect("an end");
    assert!(end.contains("liveness probe failed"), "{end}");
    host.must(&["delete", "vm/web", "--grace", "0"]);
    assert!(host.monitors().is_empty());
}

#[test]
fn a_probe_that_cannot_be_is_refused_with_its_field() {
    let (host, site) = (Host::start(), Site::new());
    let more = probe("liveness", "httpGet: {path: health, port: 80}");
    let manifest = host.manifest(&container("web", &site, STAYS, &more));
    let refused = host.skerry(&["apply", "-f", &manifest]);
    for part in [
        "spec.livenessProbe.httpGet: it has no address",
        "httpGet.path: it must begin",
    ] {
        assert!(
            !refused.good && refused.errors.contains(part),
            "{refused:?}"
        );
    }
    let told = host.must(&["explain", "container.spec.livenessProbe"]);
    assert!(told.contains("failureThreshold <integer> = 3"), "{told}");
    let known = host.kubectl_must(&["explain", "container.spec.livenessProbe"]);
    assert!(known.contains("failureThreshold"), "{known}");
    eventually("nothing was made", SHORT, || {
        (!host.skerry(&["get", "container", "web"]).good).then_some(())
    });
}
