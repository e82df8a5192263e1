//! Who owns which field of an object: the stock client's server-side apply does what its users expect.

use serde_json::Value;
use skerry_tests::given;
use skerry_tests::host::Host;

fn vm(spec: &str) -> String {
    let kernel = given("SKERRY_PAYLOAD");
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web, labels: {{app: test}}}}\n\
         spec:\n\
         \x20 running: false\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}}}\n\
         {spec}",
        kernel.display()
    )
}

/// Applies on the server's side.
fn apply(host: &Host, text: &str, more: &[&str]) -> skerry_tests::host::Said {
    let manifest = host.manifest(text);
    let words = ["apply", "--server-side", "-f", &manifest];
    host.kubectl(&[&words[..], more].concat())
}

fn disks(object: &Value) -> Vec<&str> {
    let disks = object["spec"]["disks"].as_array().into_iter().flatten();
    disks.filter_map(|disk| disk["name"].as_str()).collect()
}

#[test]
fn what_a_manifest_does_not_say_any_more_goes_and_what_others_said_stays() {
    let host = Host::start();
    let two = "  disks: [{name: a, size: 1Mi}, {name: b, size: 1Mi}]\n  cpus: 2\n";
    let said = apply(&host, &vm(two), &[]);
    assert!(said.good, "{said:?}");
    // Somebody else adds a disk and a label.
    let other = "apiVersion: skerry.io/v1\nkind: MicroVM\nmetadata: {name: web, labels: {who: other}}\n\
                 spec: {disks: [{name: c, size: 1Mi}]}\n";
    let said = apply(&host, other, &["--field-manager=other"]);
    assert!(said.good, "{said:?}");
    let object = host.object("vm", "web");
    assert_eq!(disks(&object), ["a", "b", "c"]);
    let said = apply(&host, &vm("  disks: [{name: b, size: 1Mi}]\n"), &[]);
    assert!(said.good, "{said:?}");
    let object = host.object("vm", "web");
    assert_eq!(disks(&object), ["b", "c"]);
    // What nobody says any more is as if it had never been said.
    assert_eq!(object["spec"]["cpus"], 1);
    assert_eq!(object["metadata"]["labels"]["who"], "other");
    let shown = host.kubectl_must(&["get", "vm", "web", "-o", "json", "--show-managed-fields"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let owners = shown["metadata"]["managedFields"]
        .as_array()
        .expect("owners");
    let names: Vec<_> = owners
        .iter()
        .map(|owner| owner["manager"].as_str())
        .collect();
    assert_eq!(names, [Some("kubectl"), Some("other")]);
    let fields = &owners[1]["fieldsV1"]["f:spec"]["f:disks"]["k:{\"name\":\"c\"}"];
    assert!(fields["f:size"].is_object(), "{shown}");
    host.must(&["delete", "vm/web"]);
}

#[test]
fn others_fields_are_refused_with_their_owners_and_taken_by_force() {
    let host = Host::start();
    assert!(apply(&host, &vm("  cpus: 2\n"), &[]).good);
    host.until_phase("vm", "web", "Stopped");
    // The same again is no conflict, and no change.
    let before = host.object("vm", "web")["metadata"]["resourceVersion"].clone();
    assert!(apply(&host, &vm("  cpus: 2\n"), &[]).good);
    assert_eq!(
        host.object("vm", "web")["metadata"]["resourceVersion"],
        before
    );
    let other = ["--field-manager=other"];
    let refused = apply(&host, &vm("  cpus: 3\n"), &other);
    for word in ["conflict", "kubectl", ".spec.cpus"] {
        assert!(
            !refused.good && refused.errors.contains(word),
            "{refused:?}"
        );
    }
    let forced = apply(&host, &vm("  cpus: 3\n"), &[other[0], "--force-conflicts"]);
    assert!(forced.good, "{forced:?}");
    assert_eq!(host.object("vm", "web")["spec"]["cpus"], 3);
    // A patch takes without asking, and is the owner then.
    let patch = r#"{"spec": {"cpus": 4}}"#;
    host.kubectl_must(&["patch", "vm", "web", "--type", "merge", "-p", patch]);
    let refused = apply(&host, &vm("  cpus: 3\n"), &other);
    assert!(
        !refused.good && refused.errors.contains("kubectl-patch"),
        "{refused:?}"
    );
    host.must(&["delete", "vm/web"]);
}

#[test]
fn who_applied_by_himself_goes_on_on_the_servers_side() {
    let host = Host::start();
    let two = host.manifest(&vm(
        "  disks: [{name: a, size: 1Mi}, {name: b, size: 1Mi}]\n",
    ));
    host.kubectl_must(&["apply", "-f", &two]);
    let said = apply(
        &host,
        &vm("  disks: [{name: a, size: 1Mi}, {name: b, size: 1Mi}]\n"),
        &[],
    );
    assert!(said.good, "{said:?}");
    // The client has moved its fields to its new name, so what it does not say goes.
    let said = apply(&host, &vm("  disks: [{name: a, size: 1Mi}]\n"), &[]);
    assert!(said.good, "{said:?}");
    assert_eq!(disks(&host.object("vm", "web")), ["a"]);
    host.must(&["delete", "vm/web"]);
}
