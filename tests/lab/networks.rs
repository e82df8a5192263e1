//! What networks tell a Linux guest that asks them, and nobody else told.

use skerry_tests::host::Host;
use skerry_tests::vmm::LONG;
use skerry_tests::{Site, eventually, linux};

/// A host outside, at 192.0.2.2: it knows no way to the networks.
fn outside(host: &Host) {
    let ip = |arguments: &[&str]| host.on_machine("ip", arguments);
    ip(&["netns", "add", "outside"]);
    ip(&[
        "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", "outside",
    ]);
    ip(&["addr", "add", "192.0.2.1/24", "dev", "uplink"]);
    ip(&["link", "set", "uplink", "up"]);
    ip(&[
        "-n",
        "outside",
        "addr",
        "add",
        "192.0.2.2/24",
        "dev",
        "eth0",
    ]);
    ip(&["-n", "outside", "link", "set", "eth0", "up"]);
}

#[test]
fn a_guest_learns_its_addresses_and_reaches_others_by_name_and_the_outside() {
    let host = Host::machine_for_linux();
    outside(&host);
    let site = Site::new();
    let before = format!(
        "apiVersion: skerry.io/v1\n\
         kind: Network\n\
         metadata: {{name: blue}}\n\
         spec: {{ipv6: true}}\n---\n\
         apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: db}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"while :; do sleep 1; done\"]\n\
         \x20 networks: [{{network: blue}}]\n",
        site.layout().display()
    );
    host.must(&["apply", "-f", &host.manifest(&before)]);
    let running = |status: &serde_json::Value| status["phase"] == "Running";
    let address = |object: &serde_json::Value, n: usize| {
        let text = object["status"]["addresses"][n].as_str();
        text.expect("an address").to_owned()
    };
    let db = host.until("container", "db", LONG, running);
    let peers = format!("db,{},192.0.2.2", address(&db, 1));
    let vm = format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 memory: 512Mi\n\
         \x20 boot: {{kernel: {}, initramfs: {}, cmdline: \"{} skerry.net=dhcp skerry.do=reach skerry.reach={peers}\"}}\n\
         \x20 disks: [{{name: root, base: {}, format: raw}}]\n\
         \x20 networks: [{{network: blue}}]\n",
        linux::file("vmlinux").display(),
        linux::file("initramfs.cpio").display(),
        linux::COMMAND_LINE,
        linux::root_disk(host.path("root.ext4")).display(),
    );
    host.must(&["apply", "-f", &host.manifest(&vm)]);
    let web = host.until("vm", "web", LONG, running);
    let says = |words: &str| {
        eventually(&format!("the guest says {words}"), LONG, || {
            let said = host.skerry(&["logs", "vm/web"]).out;
            assert!(!said.contains("guest: error"), "{said}");
            said.contains(words).then_some(())
        });
    };
    says(&format!("guest: lease eth0 {}/", address(&web, 0)));
    says("search default.skerry.internal");
    says(&format!("guest: advertised eth0 {}/64", address(&web, 1)));
    for peer in peers.split(',') {
        says(&format!("guest: reaches {peer}"));
    }
    for workload in ["vm/web", "container/db"] {
        host.must(&["delete", workload, "--grace", "0"]);
    }
    host.must(&["delete", "net/blue"]);
}
