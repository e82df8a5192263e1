//! What a workload is told of itself: a VM on its last disk, a container in files.

use std::process::Command;

use skerry_tests::host::Host;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually, given};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPq me@here";

#[test]
fn a_vm_has_a_last_disk_that_cloud_init_reads() {
    let host = Host::apart();
    let (key, data) = (host.path("key.pub"), host.path("user-data"));
    std::fs::write(&key, format!("# mine\n{KEY}\n")).expect("written");
    std::fs::write(&data, "#!/bin/sh\ntrue\n").expect("written");
    host.must(&[
        "run",
        "vm",
        "web",
        "--memory",
        "64Mi",
        "--kernel",
        &given("SKERRY_PAYLOAD").display().to_string(),
        "--cmdline",
        "run=blk-info:0 off=wait-power-button",
        "--network",
        "default",
        "--hostname",
        "harbour",
        "--ssh-key",
        &key.display().to_string(),
        "--user-data",
        &data.display().to_string(),
    ]);
    let object = host.until_phase("vm", "web", "Running");
    let (uid, address) = (
        &object["metadata"]["uid"],
        &object["status"]["addresses"][0],
    );
    let uid = uid.as_str().expect("a uid");
    eventually("it is its disk, to be read alone", SHORT, || {
        let said = host.must(&["logs", "vm/web"]);
        (said.contains("id=cidata") && said.contains("ro=true")).then_some(())
    });
    // Those who read it on a host find the label that cloud-init looks for, and the texts.
    let disk = host.state().join("vms").join(uid).join("seed.img");
    let blkid = Command::new("/usr/sbin/blkid")
        .args(["-p", "-o", "value", "-s", "LABEL"])
        .arg(&disk)
        .output();
    let label = String::from_utf8(blkid.expect("blkid, of util-linux").stdout).expect("text");
    assert_eq!(label.trim(), "CIDATA");
    let bytes = std::fs::read(&disk).expect("the disk");
    // A long name's first five letters, as FAT has them.
    for name in ["meta-", "user-", "netwo"] {
        let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(
            bytes.windows(wide.len()).any(|part| part == wide),
            "{name}… is not there"
        );
    }
    let text = String::from_utf8_lossy(&bytes);
    for told in [
        uid,
        "harbour",
        KEY,
        "#!/bin/sh\ntrue\n",
        address.as_str().expect("an address"),
    ] {
        assert!(text.contains(told), "{told} is not told");
    }
    host.must(&["delete", "vm/web", "--grace", "0"]);
}

#[test]
fn a_container_reads_what_it_is_told_and_cannot_change_it() {
    let (host, site) = (Host::start(), Site::new());
    let script = "cat /etc/hostname /run/skerry/authorized_keys /run/skerry/metadata.json; hostname; \
                  echo x > /run/skerry/metadata.json || echo refused; while :; do sleep 1; done";
    let manifest = format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"{script}\"]\n\
         \x20 firstBoot: {{hostname: harbour, sshKeys: [\"{KEY}\"], userData: plenty}}\n",
        site.layout().display()
    );
    host.must(&["apply", "--wait", "-f", &host.manifest(&manifest)]);
    let said = eventually("it has read all", SHORT, || {
        let said = host.must(&["logs", "container/web"]);
        said.contains("refused").then_some(said)
    });
    let lines: Vec<&str> = said
        .lines()
        .filter_map(|line| line.split(" F ").nth(1))
        .collect();
    assert_eq!((lines[0], lines[1]), ("harbour", KEY), "{said}");
    assert!(lines.contains(&"  \"userData\": \"plenty\""), "{said}");
    // The file, and what the kernel says.
    assert_eq!(
        lines.iter().filter(|line| **line == "harbour").count(),
        2,
        "{said}"
    );
    host.must(&["delete", "container/web", "--grace", "0"]);
}

/// Asks the metadata service from inside a container: the answer, with its head.
fn ask(host: &Host, container: &str, request: &str) -> String {
    let script = format!(
        "printf '{request}\\r\\nHost: here\\r\\n\\r\\n' | busybox nc -w 30 169.254.169.254 80"
    );
    let container = format!("container/{container}");
    host.skerry(&["exec", &container, "--", "sh", "-c", &script])
        .out
}

#[test]
fn the_metadata_service_tells_each_workload_of_itself_alone() {
    let (host, site) = (Host::apart(), Site::new());
    for (name, data) in [("one", "data of one"), ("two", "data of two")] {
        let manifest = format!(
            "apiVersion: skerry.io/v1\n\
             kind: Container\n\
             metadata: {{name: {name}}}\n\
             spec:\n\
             \x20 image: {}\n\
             \x20 command: [sh, -c, \"while :; do sleep 1; done\"]\n\
             \x20 networks: [{{network: default}}]\n\
             \x20 firstBoot: {{sshKeys: [\"{KEY}\"], userData: {data}}}\n",
            site.layout().display()
        );
        host.must(&["apply", "--wait", "-f", &host.manifest(&manifest)]);
    }
    let token = |name: &str| {
        let put = "PUT /latest/api/token HTTP/1.1\\r\\nX-aws-ec2-metadata-token-ttl-seconds: 60";
        eventually(&format!("{name} is given a token"), SHORT, || {
            let said = ask(&host, name, put);
            let token = said.lines().last().unwrap_or_default().to_owned();
            (said.starts_with("HTTP/1.1 200") && token.len() == 64).then_some(token)
        })
    };
    let (one, two) = (token("one"), token("two"));
    let get = |name: &str, path: &str, token: &str| {
        let head = format!("GET {path} HTTP/1.1\\r\\nX-aws-ec2-metadata-token: {token}");
        ask(&host, name, &head)
    };
    let page = |said: String| said.lines().last().unwrap_or_default().to_owned();
    let uid = host.object("container", "one")["metadata"]["uid"].clone();
    assert_eq!(page(get("one", "/latest/meta-data/instance-id", &one)), uid);
    assert_eq!(page(get("one", "/latest/user-data", &one)), "data of one");
    assert_eq!(page(get("two", "/latest/user-data", &two)), "data of two");
    assert_eq!(
        page(get(
            "two",
            "/latest/meta-data/public-keys/0/openssh-key",
            &two
        )),
        KEY
    );
    // Without a token, with another one's, or for somebody behind a proxy there is nothing.
    for (said, code) in [
        (ask(&host, "one", "GET /latest/user-data HTTP/1.1"), "401"),
        (get("two", "/latest/user-data", &one), "401"),
        (get("one", "/latest/else", &one), "404"),
        (
            ask(
                &host,
                "one",
                "PUT /latest/api/token HTTP/1.1\\r\\nX-aws-ec2-metadata-token-ttl-seconds: 60\\r\\nX-Forwarded-For: 10.0.0.1",
            ),
            "403",
        ),
    ] {
        assert!(
            said.starts_with(&format!("HTTP/1.1 {code}")),
            "{code}: {said}"
        );
    }
    for name in ["one", "two"] {
        host.must(&["delete", &format!("container/{name}"), "--grace", "0"]);
    }
}
