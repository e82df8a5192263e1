//! Networks of tenants: who reaches whom by which names, what is made again, and that nothing is left.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use skerry_tests::host::Host;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually, given};

/// A network namespace that stands for a host outside, at 192.0.2.2, and the host's uplink to it.
struct Outside {
    name: String,
}

impl Outside {
    fn of(host: &Host) -> Outside {
        let (inner, name) = (host.namespace(), format!("{}o", host.namespace()));
        ip(&["netns", "add", &name]);
        let outside = Outside { name };
        let name = &outside.name;
        ip(&[
            "-n", inner, "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns",
            name,
        ]);
        for (space, link, address) in [(inner, "uplink", "1"), (name, "eth0", "2")] {
            let address = format!("192.0.2.{address}/24");
            ip(&["-n", space, "addr", "add", &address, "dev", link]);
            ip(&["-n", space, "link", "set", link, "up"]);
        }
        outside
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip");
    assert!(status.success(), "ip {arguments:?}");
}

/// What `ip` says of a host that is apart.
fn told(host: &Host, arguments: &[&str]) -> String {
    let mut command = Command::new("ip");
    let output = command.args(["-n", host.namespace()]).args(arguments);
    let output = output.output().expect("ip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn network(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\nkind: Network\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// A container that does nothing.
fn container(namespace: &str, name: &str, image: &Path, networks: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"while :; do sleep 1; done\"]\n\
         \x20 networks: {networks}\n---\n",
        image.display()
    )
}

/// A VM that answers, at an address.
fn vm(name: &str, address: &str, networks: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"run=net-respond:ip={address}:seconds=3600\"}}\n\
         \x20 networks: {networks}\n---\n",
        given("SKERRY_PAYLOAD").display()
    )
}

const TENANT: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: rivals}\n---\n";

/// What a container's shell says, if it ends well.
fn shell(host: &Host, namespace: &str, name: &str, words: &str) -> Option<String> {
    let target = format!("container/{name}");
    let said = host.skerry(&[
        "exec",
        "--namespace",
        namespace,
        &target,
        "--",
        "sh",
        "-c",
        words,
    ]);
    said.good.then_some(said.out)
}

/// Waits until it does.
fn until(host: &Host, name: &str, words: &str) -> String {
    eventually(words, SHORT, || shell(host, "default", name, words))
}

/// The address of a container.
fn address(host: &Host, namespace: &str, name: &str, nth: usize) -> String {
    let get = ["get", "container", name, "--namespace", namespace];
    let text = host.must(&[&get[..], &["--output", "json"]].concat());
    let object: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let address = object["status"]["addresses"][nth].as_str();
    address.expect("an address").to_owned()
}

/// Waits until there is nothing but the loopback: namespaces go a little later than their names.
fn nothing_is_left(host: &Host) {
    eventually("no link is left", SHORT, || {
        (told(host, &["-o", "link"]).lines().count() == 1).then_some(())
    });
}

const BLUE: &str = "[{network: blue}]";

#[test]
fn vms_and_containers_of_a_network_reach_each_other_by_name_and_the_outside_by_nat() {
    let (mut host, site) = (Host::apart(), Site::new());
    let outside = Outside::of(&host);
    let image = site.layout();
    let vm_in = "[{network: blue, address: 10.90.7.9}]";
    let declared = network("default", "blue", "{subnet: 10.90.7.0/24, ipv6: true}")
        + &container("default", "one", &image, BLUE)
        + &container("default", "two", &image, BLUE)
        + &vm("machine", "10.90.7.9", vm_in);
    let manifest = host.manifest(&declared);
    host.must(&["apply", "--wait", "-f", &manifest]);
    // By whole names and short ones, from addresses to names; a VM, too.
    let one = address(&host, "default", "one", 0);
    let six = address(&host, "default", "one", 1);
    assert!(
        one.starts_with("10.90.7.") && six.starts_with("fd"),
        "{one} {six}"
    );
    let lookup = |name: &str, data: &str| {
        let words = format!("busybox nslookup {name} | grep -F {data}");
        until(&host, "two", &words);
    };
    lookup("one.default.skerry.internal", &one);
    lookup("one.default.skerry.internal", &six);
    lookup("machine.default.skerry.internal", "10.90.7.9");
    lookup(&one, "one.default.skerry.internal");
    until(&host, "two", "ping -c 1 -W 5 one");
    until(&host, "two", "busybox ping -4 -c 1 -W 5 machine");
    until(&host, "two", &format!("busybox ping6 -c 1 -W 5 {six}"));
    until(&host, "two", "ping -c 1 -W 5 192.0.2.2");
    // What was declared stands in its status; what is in use does not go.
    let blue = host.until("net", "blue", SHORT, |s| s["addressesUsed"] == 3);
    assert_eq!(blue["status"]["subnet"], "10.90.7.0/24", "{blue}");
    let bridge = blue["status"]["bridge"]
        .as_str()
        .expect("a name")
        .to_owned();
    host.must(&["delete", "net", "blue", "--no-wait"]);
    host.until("net", "blue", SHORT, |s| {
        s["conditions"].to_string().contains("microvm/machine")
    });
    until(&host, "two", "ping -c 1 -W 5 one");
    // Somebody deletes the bridge; and once more while there is no agent.
    ip(&["-n", host.namespace(), "link", "del", &bridge]);
    until(&host, "two", "ping -c 1 -W 5 one");
    host.kill();
    ip(&["-n", host.namespace(), "link", "del", &bridge]);
    host.up();
    until(&host, "two", "ping -c 1 -W 5 one");
    until(&host, "two", "busybox ping -4 -c 1 -W 5 machine");
    // It goes with the last of its workloads, and nothing is left.
    for what in ["container/one", "container/two", "vm/machine"] {
        host.must(&["delete", what]);
    }
    eventually("the network is gone", SHORT, || {
        (!host.skerry(&["get", "net", "blue"]).good).then_some(())
    });
    drop(outside);
    nothing_is_left(&host);
    let left = std::fs::read_dir(host.state().join("resolv")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

#[test]
fn another_tenant_neither_reaches_nor_poses_as_a_workload() {
    let (host, site) = (Host::apart(), Site::new());
    let image = site.layout();
    let subnet = |n: u8| format!("{{subnet: 10.90.{n}.0/24}}");
    let both = "[{network: default}, {network: blue}]";
    host.must(&["apply", "-f", &host.manifest(TENANT)]);
    let declared = network("default", "blue", &subnet(1))
        + &network("rivals", "blue", &subnet(2))
        + &container("default", "near", &image, both)
        + &container("default", "friend", &image, both)
        + &container("rivals", "far", &image, both);
    let manifest = host.manifest(&declared);
    host.must(&["apply", "--wait", "-f", &manifest]);
    let own: Vec<_> = (0..2)
        .map(|n| address(&host, "default", "near", n))
        .collect();
    assert!(
        own[0].starts_with("10.88.") && own[1].starts_with("10.90.1."),
        "{own:?}"
    );
    for address in &own {
        until(&host, "friend", &format!("ping -c 1 -W 5 {address}"));
    }
    // In the network that both are in, and from one network to another, also by the gateway; and no name is told.
    let far = |words: &str| shell(&host, "rivals", "far", words);
    eventually("the gateway answers", SHORT, || {
        far("ping -c 1 -W 5 10.88.0.1")
    });
    for words in [
        format!("ping -c 1 -W 1 {}", own[0]),
        format!("ping -c 1 -W 1 {}", own[1]),
        "ping -c 1 -W 1 10.90.1.1".to_owned(),
        "busybox nslookup near.default.skerry.internal".to_owned(),
    ] {
        assert_eq!(far(&words), None, "{words}");
    }
    // It takes the friend's address, and is not heard; with its own it is.
    let get = ["get", "container", "far", "--namespace", "rivals"];
    let text = host.must(&[&get[..], &["--output", "json"]].concat());
    let object: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let uid = object["metadata"]["uid"].as_str().expect("a uid");
    let space = host.state().join("netns").join(uid);
    let inside = |words: &[&str]| {
        let enter = format!("--net={}", space.display());
        let mut command = Command::new("nsenter");
        let output = command.arg(enter).args(words).output().expect("nsenter");
        output.status.success()
    };
    let pings = |from: &str| {
        let words = ["-c", "1", "-W", "2", "-I", from, "10.88.0.1"];
        inside(&[&["busybox", "ping"][..], &words].concat())
    };
    let posing = address(&host, "default", "friend", 0);
    let added = ["ip", "addr", "add", &format!("{posing}/16"), "dev", "eth0"];
    assert!(inside(&added));
    assert!(!pings(&posing));
    let own_address = address(&host, "rivals", "far", 0);
    eventually("it answers", SHORT, || pings(&own_address).then_some(()));
    until(&host, "friend", &format!("ping -c 1 -W 5 {}", own[0]));
    for (namespace, name) in [
        ("default", "near"),
        ("default", "friend"),
        ("rivals", "far"),
    ] {
        host.must(&["delete", "container", name, "--namespace", namespace]);
    }
    for namespace in ["default", "rivals"] {
        host.must(&["delete", "net", "blue", "--namespace", namespace]);
    }
}

#[test]
fn a_network_that_cannot_be_says_why_and_changes_are_quick() {
    let host = Host::apart();
    let apply = |name: &str, spec: &str| {
        let manifest = host.manifest(&network("default", name, spec));
        host.must(&["apply", "-f", &manifest]);
    };
    let mut took = Vec::new();
    for name in ["one", "two", "three"] {
        let begun = Instant::now();
        apply(name, "{ipv6: true}");
        let made = host.until("net", name, SHORT, |s| {
            s["conditions"][0]["status"] == "True"
        });
        took.push(begun.elapsed());
        let subnet = made["status"]["subnet"].as_str().expect("one");
        assert!(subnet.ends_with("/24"), "{made}");
    }
    println!("networks were declared, made and seen, by commands, within {took:?}");
    apply("clash", "{subnet: 10.88.3.0/24}");
    let clash = host.until("net", "clash", SHORT, |s| {
        s["conditions"][0]["status"] == "False"
    });
    assert!(clash["status"].to_string().contains("`default`"), "{clash}");
    // And is made when it can be.
    apply("clash", "{subnet: 10.77.3.0/24}");
    host.until("net", "clash", SHORT, |s| {
        s["conditions"][0]["status"] == "True"
    });
    let wrong = host.manifest(&network("default", "wrong", "{subnet: 10.88.3.0/33}"));
    let refused = host.skerry(&["apply", "-f", &wrong]);
    assert!(refused.errors.contains("spec.subnet"), "{refused:?}");
    for name in ["one", "two", "three", "clash"] {
        host.must(&["delete", "net", name]);
    }
    nothing_is_left(&host);
}
