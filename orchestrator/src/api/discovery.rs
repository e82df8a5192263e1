//! What a client asks first: which groups, versions and kinds there are.

use serde_json::{Value, json};

use crate::model::{GROUP, KINDS, Kind, VERSION};

/// What can be done with every kind.
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// `/api`.
pub fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": [VERSION], "serverAddressByClientCIDRs": []})
}

fn group() -> Value {
    let version = json!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
    json!({"name": GROUP, "versions": [version], "preferredVersion": version})
}

/// `/apis`.
pub fn groups() -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group()]})
}

/// `/apis/skerry.io`.
pub fn own_group() -> Value {
    let mut value = group();
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    value
}

/// The kinds of a group.
pub fn resources(group: &str) -> Value {
    let kinds = KINDS.iter().filter(|kind| kind.group == group);
    let resources: Vec<Value> = kinds.flat_map(resource).collect();
    let version = match group {
        "" => VERSION.to_owned(),
        group => format!("{group}/{VERSION}"),
    };
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": resources,
    })
}

fn resource(kind: &Kind) -> Vec<Value> {
    let one = |name: String, verbs: &[&str]| {
        json!({
            "name": name,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": verbs,
        })
    };
    let mut whole = one(kind.plural.to_owned(), &VERBS);
    whole["shortNames"] = kind.short.into();
    if kind.group == GROUP {
        whole["categories"] = json!(["all"]);
    }
    let mut all = vec![whole];
    if kind.has_status {
        let status = format!("{}/status", kind.plural);
        all.push(one(status, &["get", "patch", "update"]));
    }
    all
}

/// `/version`: that of Kubernetes whose conventions these are, and ours.
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "32",
        "gitVersion": format!("v1.32.0+skerry.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}
