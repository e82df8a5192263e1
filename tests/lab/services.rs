//! A Linux guest and a container in one network, seen from each other and from outside.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use skerry_tests::host::{Host, kill};
use skerry_tests::linux::{self, COMMAND_LINE};
use skerry_tests::outside::{HOST, OUTSIDE, Outside, get};
use skerry_tests::vmm::LONG;
use skerry_tests::{Site, eventually};

/// What a question may take.
const LIMIT: Duration = Duration::from_secs(20);
/// `GET /`, for whoever has no program for it.
const ASK: &str = r"printf 'GET / HTTP/1.0\r\n\r\n'";

fn manifests(host: &Host, site: &Site) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Service\n\
         metadata: {{name: pair}}\n\
         spec:\n\
         \x20 selector: {{app: web}}\n\
         \x20 ports: [{{port: 80}}]\n\
         \x20 publish: [8000]\n\
         \x20 healthCheck: {{tcpSocket: {{port: 80}}}}\n\
         ---\n\
         apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: one, labels: {{app: web}}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"echo one >/tmp/index.html; busybox httpd -f -p 80 -h /tmp\"]\n\
         \x20 networks: [{{network: default}}]\n\
         ---\n\
         apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: two, labels: {{app: web}}}}\n\
         spec:\n\
         \x20 memory: 512Mi\n\
         \x20 vsock: true\n\
         \x20 boot: {{kernel: {}, initramfs: {}, cmdline: \"{COMMAND_LINE}\"}}\n\
         \x20 disks: [{{name: root, base: {}, format: raw}}]\n\
         \x20 networks: [{{network: default}}]\n\
         \x20 publish: [{{hostPort: 8080, port: 80}}]\n\
         \x20 restartPolicy: Never\n",
        site.layout().display(),
        linux::file("vmlinux").display(),
        linux::file("initramfs.cpio").display(),
        linux::root_disk(host.path("root.ext4")).display(),
    )
}

#[test]
fn linux_and_a_container_find_each_other_by_name_and_serve_the_outside_together() {
    let (host, site) = (Host::apart(), Site::new());
    let outside = Outside::of(&host);
    let text = manifests(&host, &site);
    host.must(&["apply", "-f", &host.manifest(&text)]);
    let exec = |of: &str, script: &str| {
        let words = ["exec", of, "--", "sh", "-c", script];
        host.skerry(&words)
    };
    // Its server has none of the command's streams, which would not end with it.
    let serves =
        "echo two >/run/index.html; busybox httpd -p 80 -h /run </dev/null >/dev/null 2>&1";
    eventually("the guest serves", LONG, || {
        let said = exec("vm/two", serves);
        said.good.then_some(())
    });
    // By name, both ways.
    let address = |kind: &str, name: &str| {
        let object = host.object(kind, name);
        let address = object["status"]["addresses"][0].as_str().map(str::to_owned);
        address.expect("an address")
    };
    let two = address("vm", "two");
    let asks = format!("{ASK} | socat -t 10 - TCP:one.default.skerry.internal:80");
    eventually("the container answers the guest", LONG, || {
        exec("vm/two", &asks).out.contains("one").then_some(())
    });
    let asks = format!(
        "busybox nslookup two.default.skerry.internal | grep -qF {two} && {ASK} | busybox nc -w 10 {two} 80"
    );
    eventually("the guest answers the container", LONG, || {
        exec("container/one", &asks)
            .out
            .contains("two")
            .then_some(())
    });
    // The outside: by NAT, by a port of the guest's, and by one of both.
    let ping = format!("ping -c 1 -W 10 {OUTSIDE}");
    for who in ["vm/two", "container/one"] {
        let ping = match who {
            "vm/two" => ping.clone(),
            _ => format!("busybox {ping}"),
        };
        let said = exec(who, &ping);
        assert!(said.good, "{who}: {said:?}");
    }
    let at = |port: u16| SocketAddr::new(HOST.parse().expect("an address"), port);
    eventually("the guest's port answers", LONG, || {
        let answer = outside.within(|| get(at(8080), LIMIT));
        (answer.is_ok_and(|body| body == "two")).then_some(())
    });
    let both: BTreeSet<String> = ["one", "two"].map(str::to_owned).into();
    let mut heard = BTreeSet::new();
    eventually("both answer", LONG, || {
        heard.extend(outside.within(|| get(at(8000), LIMIT)));
        (heard == both).then_some(())
    });
    // One dies: how long questions fail is the emulator's, that they stop failing is not.
    host.monitors().into_iter().for_each(kill);
    let begun = Instant::now();
    let mut failed = Duration::ZERO;
    for _ in 0..40 {
        let asked = begun.elapsed();
        match outside.within(|| get(at(8000), LIMIT)) {
            Ok(body) => assert_eq!(body, "one"),
            Err(_) => failed = asked,
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("the last question that failed began {failed:?} after the guest's death");
    assert!(failed < Duration::from_secs(10), "{failed:?}");
    for what in ["service/pair", "container/one", "vm/two"] {
        host.must(&["delete", what, "--grace", "0"]);
    }
}
