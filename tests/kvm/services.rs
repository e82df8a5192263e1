//! Published ports, services and elastic addresses of a host, asked from outside.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::Value;
use skerry_tests::host::{Host, kill};
use skerry_tests::nft::{delete_table, has_table};
use skerry_tests::outside::{HOST, OUTSIDE, Outside, UPLINK, get, within};
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually};

const TABLE: &str = "skerry_services";
/// What a question may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A container that answers requests at port 80 with its name.
fn script(name: &str) -> String {
    format!(
        "echo {name} >/tmp/index.html; busybox httpd -f -p 80 -h /tmp & echo $! >/tmp/pid; \
         trap 'exit 0' TERM; while :; do sleep 1; done"
    )
}

fn container(name: &str, site: &Site, more: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: {name}, labels: {{app: web}}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"{}\"]\n\
         \x20 cpu: 10m\n\
         \x20 memory: 32Mi\n\
         \x20 networks: [{{network: default}}]\n\
         {more}---\n",
        site.layout().display(),
        script(name)
    )
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// What a condition of an object says: its status, reason and message.
fn condition(status: &Value, kind: &str) -> [String; 3] {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|condition| condition["type"] == kind);
    let found = found.unwrap_or_default();
    ["status", "reason", "message"]
        .map(|field| found[field].as_str().unwrap_or_default().to_owned())
}

/// Waits until a question is answered so.
fn until_answered(namespace: &str, to: SocketAddr, wanted: &str) {
    eventually(&format!("{to} answers {wanted}"), SHORT, || {
        let answer = within(namespace, || get(to, LIMIT));
        answer.is_ok_and(|body| body == wanted).then_some(())
    });
}

/// Waits until a question is refused, which is not to be a matter of patience.
fn until_refused(namespace: &str, to: SocketAddr) {
    eventually(&format!("{to} refuses"), SHORT, || {
        let answer = within(namespace, || get(to, LIMIT));
        answer
            .is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
            .then_some(())
    });
}

/// Nothing is left of ports and services.
fn until_nothing_is_left(host: &Host) {
    eventually("no rules are left", SHORT, || {
        (!within(host.namespace(), || has_table(TABLE))).then_some(())
    });
}

fn delete(host: &Host, all: &[&str]) {
    for what in all {
        host.must(&["delete", what, "--grace", "1"]);
    }
}

fn uid(host: &Host, name: &str) -> String {
    let object = host.object("container", name);
    object["metadata"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned()
}

/// Runs a command in a container.
fn exec(host: &Host, name: &str, script: &str) -> bool {
    let root = host.state().join("containers").display().to_string();
    let uid = uid(host, name);
    let words = [
        "shim", "exec", "--root", &root, "--id", &uid, "--", "sh", "-c", script,
    ];
    let said = host.skerry(&words);
    if !said.good {
        println!("{name}: {script}: {said:?}");
    }
    said.good
}

/// What a container asks, and who is to answer. (Debian's static busybox cannot run its wget.)
fn asks(address: &str, port: u16, wanted: &str) -> String {
    let request = r"printf 'GET / HTTP/1.0\r\n\r\n'";
    format!("{request} | busybox nc -w 5 {address} {port} | grep -qE '{wanted}'")
}

#[test]
fn a_published_port_is_its_workloads_until_it_goes() {
    let (mut host, site) = (Host::apart(), Site::new());
    let outside = Outside::of(&host);
    let layout = site.layout().display().to_string();
    let serves = script("first");
    let run = ["run", "container", "first", &layout, "-p", "8080:80"];
    let command = ["--", "sh", "-c", &serves];
    let small = ["--cpu", "10m", "--memory", "32Mi"];
    host.must(&[&run[..], &small[..], &command[..]].concat());
    let port = at(HOST, 8080);
    let here = host.namespace().to_owned();
    until_answered(outside.namespace(), port, "first");
    until_answered(&here, port, "first");
    // Who comes second is told who was first.
    let publish = "  publish: [{hostPort: 8080, port: 80}]\n";
    let text = container("second", &site, publish);
    host.must(&["apply", "-f", &host.manifest(&text)]);
    host.until("container", "second", SHORT, |status| {
        let [status, _, message] = condition(status, "Published");
        status == "False" && message.contains("container default/first")
    });
    host.until("container", "first", SHORT, |status| {
        condition(status, "Published")[0] == "True"
    });
    until_answered(outside.namespace(), port, "first");
    // Its neighbour reaches it by the host, too.
    let ask = asks(HOST, 8080, "first");
    host.until_phase("container", "second", "Running");
    assert!(exec(&host, "second", &ask), "a neighbour is not answered");
    // Whoever deletes the rules, and whoever dies.
    within(&here, || delete_table(TABLE));
    until_answered(outside.namespace(), port, "first");
    host.kill();
    within(&here, || delete_table(TABLE));
    host.up();
    until_answered(outside.namespace(), port, "first");
    host.must(&["delete", "container/first"]);
    until_answered(outside.namespace(), port, "second");
    host.until("container", "second", SHORT, |status| {
        condition(status, "Published")[0] == "True"
    });
    host.must(&["delete", "container/second"]);
    until_refused(outside.namespace(), port);
    until_nothing_is_left(&host);
}

/// Asks by new connections all the time, from the moment when `breaks` is done: when the last one began that failed.
fn failover(outside: &Outside, to: SocketAddr, breaks: impl FnOnce()) -> Duration {
    let well = Duration::from_secs(3);
    breaks();
    let begun = Instant::now();
    let (mut failed, mut since) = (Duration::ZERO, begun);
    outside.within(|| {
        while since.elapsed() < well {
            let asked = begun.elapsed();
            if get(to, LIMIT).is_err() {
                (failed, since) = (asked, Instant::now());
                assert!(asked < SHORT, "it fails for ever");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    failed
}

#[test]
fn a_pair_serves_on_when_one_of_it_dies() {
    let (host, site) = (Host::apart(), Site::new());
    let outside = Outside::of(&host);
    let service = "apiVersion: skerry.io/v1\n\
         kind: Service\n\
         metadata: {name: web}\n\
         spec:\n\
         \x20 selector: {app: web}\n\
         \x20 ports: [{port: 80}]\n\
         \x20 publish: [8000]\n\
         \x20 healthCheck: {tcpSocket: {port: 80}}\n---\n";
    let text = [
        service.to_owned(),
        container("one", &site, ""),
        container("two", &site, ""),
        container("client", &site, "").replace("app: web", "app: client"),
    ];
    host.must(&["apply", "-f", &host.manifest(&text.concat())]);
    let both = |status: &Value| status["healthy"] == 2;
    let found = host.until("service", "web", SHORT, both);
    let address = found["status"]["address"].as_str().expect("an address");
    assert!(address.starts_with("10.96."), "{address}");
    let port = at(HOST, 8000);
    let all: BTreeSet<String> = ["one", "two"].map(str::to_owned).into();
    let mut heard = BTreeSet::new();
    eventually("both answer", SHORT, || {
        heard.extend(outside.within(|| get(port, LIMIT)));
        (heard == all).then_some(())
    });
    // A workload uses its address, and nobody else does.
    let ask = asks(address, 80, "one|two");
    host.until_phase("container", "client", "Running");
    eventually("a neighbour is answered", SHORT, || {
        exec(&host, "client", &ask).then_some(())
    });
    // Its server alone.
    let took = failover(&outside, port, || {
        assert!(exec(&host, "one", "kill -9 $(cat /tmp/pid)"));
    });
    println!("a server that is killed: the last connection that failed began after {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    host.until("service", "web", SHORT, |status| {
        let endpoints = status["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.iter().any(|endpoint| {
            let why = endpoint["why"].as_str().unwrap_or_default();
            endpoint["name"] == "container/one" && why.contains("takes no connection")
        })
    });
    assert!(exec(&host, "one", "busybox httpd -p 80 -h /tmp"));
    host.until("service", "web", SHORT, both);
    // All of it, and who looks after it.
    let folder = host.state().join("containers/containers");
    let run = std::fs::read(folder.join(uid(&host, "two")).join("run.json")).expect("a run");
    let run: Value = serde_json::from_slice(&run).expect("JSON");
    let shim = run["record"]["shim"].as_i64().expect("a process") as i32;
    let children = format!("/proc/{shim}/task/{shim}/children");
    let children = std::fs::read_to_string(children).expect("its processes");
    let took = failover(&outside, port, || {
        kill(shim);
        let children = children.split_whitespace();
        let ids = children.filter_map(|id| id.parse().ok());
        ids.for_each(skerry_tests::host::kill_if_there);
    });
    println!(
        "a container that is killed with its shim: the last connection that failed began after {took:?}"
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    // Nobody serves: nobody waits.
    delete(&host, &["container/one", "container/two"]);
    until_refused(outside.namespace(), port);
    host.must(&["delete", "service/web"]);
    host.must(&["delete", "container/client"]);
    until_nothing_is_left(&host);
}

fn elastic(name: &str, address: &str, target: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: ElasticAddress\n\
         metadata: {{name: {name}}}\n\
         spec: {{address: {address}, target: {{kind: Container, name: {target}}}}}\n---\n"
    )
}

#[test]
fn an_elastic_address_is_its_workloads_both_ways() {
    const ELASTIC: &str = "203.0.113.7";
    let (host, site) = (Host::apart(), Site::new());
    let outside = Outside::of(&host);
    outside.expects_near(ELASTIC);
    let text = [
        container("one", &site, ""),
        container("two", &site, ""),
        elastic("web", ELASTIC, "one"),
    ];
    host.must(&["apply", "-f", &host.manifest(&text.concat())]);
    let attached = |status: &Value| condition(status, "Ready")[1] == "Attached";
    let found = host.until("elasticaddress", "web", SHORT, attached);
    assert_eq!(found["status"]["interface"], UPLINK);
    let port = at(ELASTIC, 80);
    until_answered(outside.namespace(), port, "one");
    // Whom the outside sees when the workload asks.
    let listener = outside.within(|| TcpListener::bind(at(OUTSIDE, 7000)).expect("a port"));
    let hears = std::thread::spawn(move || listener.accept().expect("a connection").1.ip());
    let ask = format!("busybox nc -w 5 {OUTSIDE} 7000 </dev/null");
    eventually("it asks", SHORT, || {
        exec(&host, "one", &ask);
        hears.is_finished().then_some(())
    });
    let seen = hears.join().expect("nobody panics");
    assert_eq!(seen.to_string(), ELASTIC);
    // What is somebody's already is refused, with whose it is.
    let text = [
        elastic("other", ELASTIC, "two"),
        elastic("own", HOST, "two"),
    ];
    host.must(&["apply", "-f", &host.manifest(&text.concat())]);
    for (name, reason, word) in [
        ("other", "Taken", "elasticaddress default/web"),
        ("own", "InUse", UPLINK),
    ] {
        host.until("elasticaddress", name, SHORT, |status| {
            let [_, found, message] = condition(status, "Ready");
            found == reason && message.contains(word)
        });
    }
    delete(&host, &["eip/other", "eip/own"]);
    let moved = elastic("web", ELASTIC, "two");
    host.must(&["apply", "-f", &host.manifest(&moved)]);
    until_answered(outside.namespace(), port, "two");
    host.must(&["delete", "eip/web"]);
    eventually("the address is taken away", SHORT, || {
        let shown = std::process::Command::new("ip")
            .args(["-n", host.namespace(), "address", "show", UPLINK])
            .output()
            .expect("ip runs");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        (shown.contains(HOST) && !shown.contains(ELASTIC)).then_some(())
    });
    delete(&host, &["container/one", "container/two"]);
    until_nothing_is_left(&host);
}
