//! What a tenant may have: who asks for more is told so at once, and what is used is shown.

use skerry_tests::given;
use skerry_tests::host::{Host, Said};
use skerry_tests::vmm::SHORT;

fn vm(name: &str, memory: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: {name}, namespace: tenant}}\n\
         spec:\n\
         \x20 running: false\n\
         \x20 memory: {memory}\n\
         \x20 boot: {{kernel: {}}}\n",
        given("SKERRY_PAYLOAD").display()
    )
}

fn volume(name: &str, size: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\nkind: Volume\nmetadata: {{name: {name}, namespace: tenant}}\nspec: {{size: {size}}}\n"
    )
}

#[test]
fn a_tenant_has_no_more_than_its_quota_and_its_status_says_how_much() {
    let host = Host::start();
    let quota = "{cpus: 3, memory: 128Mi, volumes: 10Mi, workloads: 2}";
    let tenant = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: tenant}}\nspec: {{quota: {quota}}}\n"
    );
    host.must(&["apply", "-f", &host.manifest(&tenant)]);
    let apply = |text: &str| host.skerry(&["apply", "-f", &host.manifest(text)]);
    let refused = |said: Said, words: &[&str]| {
        assert!(!said.good, "{said:?}");
        for word in words {
            assert!(said.errors.contains(word), "{word}: {said:?}");
        }
    };
    assert!(apply(&vm("one", "64Mi")).good);
    refused(
        apply(&vm("big", "65Mi")),
        &["memory wanted 65Mi", "used by others 64Mi", "limit 128Mi"],
    );
    assert!(apply(&vm("two", "64Mi")).good);
    refused(
        apply(&vm("three", "16Mi")),
        &["exceeds the quota of namespace `tenant`"],
    );
    // One that is there may want less, and then somebody else more; not the other way round.
    refused(apply(&vm("two", "96Mi")), &["memory wanted 96Mi"]);
    assert!(apply(&vm("two", "32Mi")).good);
    assert!(apply(&vm("one", "96Mi")).good);
    assert!(apply(&volume("data", "8Mi")).good);
    refused(
        apply(&volume("more", "4Mi")),
        &["volumes wanted 4Mi", "used by others 8Mi"],
    );
    refused(apply(&volume("data", "12Mi")), &["volumes wanted 12Mi"]);
    host.until("namespace", "tenant", SHORT, |s| {
        s["used"] == serde_json::json!({"cpus": "2", "memory": "128Mi", "volumes": "8Mi", "workloads": "2"})
    });
    for gone in [["vm", "one"], ["vm", "two"], ["volume", "data"]] {
        host.must(&["delete", gone[0], gone[1], "--namespace", "tenant"]);
    }
    host.until("namespace", "tenant", SHORT, |s| {
        s["used"]["workloads"] == "0"
    });
}
