//! `skerry top` on a terminal, and for programs.

use serde_json::Value;
use skerry_tests::given;
use skerry_tests::host::Host;
use skerry_tests::terminal::Terminal;
use skerry_tests::vmm::SHORT;

#[test]
fn top_shows_a_vm_looks_into_it_and_ends() {
    let host = Host::start();
    let manifest = host.manifest(&format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: busy}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"run=blk-verify:0:1 off=spin\"}}\n\
         \x20 disks: [{{name: data, size: 4Mi}}]\n",
        given("SKERRY_PAYLOAD").display()
    ));
    host.must(&["apply", "--wait", "-f", &manifest]);
    let mut top = Terminal::run(&mut host.command(&["top", "--interval", "1"]));
    top.expect("busy", SHORT);
    top.expect("workloads", SHORT);
    // Spaces are passed over, so what is looked for has none.
    top.keys("\r");
    for word in ["vm/busy", "vcpu0", "Devices,", "write_bytes", "Started"] {
        top.expect(word, SHORT);
    }
    top.keys("q");
    assert!(top.end(SHORT).success());
    let said = host.must(&["top", "--batch", "--interval", "1", "--output", "json"]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let row = &said["workloads"][0];
    assert_eq!(
        (&row["name"], &row["phase"]),
        (&"busy".into(), &"Running".into()),
        "{said}"
    );
    // It spins, however little of a busy host it gets.
    assert!(
        row["cpuPercent"].as_f64().is_some_and(|cpu| cpu > 0.0),
        "{said}"
    );
    assert_eq!(said["host"]["name"], "here");
    let said = host.must(&["top", "--batch", "--interval", "1"]);
    assert!(said.contains("default/microvm/busy"), "{said}");
    // Nobody there is told as for every command.
    let nobody = host.skerry(&["top", "--socket", "/nowhere/api.sock"]);
    assert!(
        !nobody.good && nobody.errors.contains("cannot reach the host"),
        "{nobody:?}"
    );
    host.must(&["delete", "vm/busy", "--grace", "0"]);
}
