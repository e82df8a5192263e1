//! Tests of bundles: what a runtime is told of an image and a spec.

use oci_spec::image::ImageConfiguration;
use serde_json::json;

use super::super::check::check;
use super::super::image::Image;
use super::*;

fn spec() -> ContainerSpec {
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/entry"],
            "Cmd": ["one", "two"],
            "Env": ["A=image", "B=image"],
            "WorkingDir": "/srv",
            "User": "web",
            "StopSignal": "SIGQUIT",
        },
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    let config: ImageConfiguration = serde_json::from_value(config).unwrap();
    ContainerSpec::of(Image {
        digest: "0".repeat(64),
        layers: Vec::new(),
        config,
    })
}

fn host() -> Circumstances {
    Circumstances {
        identity: Identity::default(),
        cgroup: "/skerry/c".into(),
        cgroups: CgroupVersion::Two,
        swap_counted: true,
        files: 4096,
    }
}

fn built(spec: &ContainerSpec) -> serde_json::Value {
    check(spec).unwrap();
    serde_json::to_value(build(spec, "c", &host()).unwrap()).unwrap()
}

#[test]
fn a_container_does_what_its_image_says_unless_told_otherwise() {
    let mut one = spec();
    let text = |list: &[&str]| Some(list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
    assert_eq!(args(&one), ["/entry", "one", "two"]);
    one.args = text(&["three"]);
    assert_eq!(args(&one), ["/entry", "three"]);
    one.command = text(&["/other"]);
    assert_eq!(args(&one), ["/other", "three"]);
    one.args = None;
    assert_eq!(args(&one), ["/other"]);
    assert_eq!((user(&one), stop_signal(&one)), ("web", Some("SIGQUIT")));
    assert_eq!(working_dir(&one), Path::new("/srv"));
}

#[test]
fn variables_are_set_once() {
    let mut one = spec();
    one.env = vec![("B".into(), "mine=yes".into()), ("C".into(), String::new())];
    let env = &built(&one)["process"]["env"];
    assert_eq!(*env, json!([PATH, "A=image", "B=mine=yes", "C="]));
}

#[test]
fn limits_become_the_cgroups() {
    let mut one = spec();
    one.limits = ResourceLimits {
        cpu_milli: Some(1500),
        cpu_request_milli: Some(500),
        cpus: Some("0-1".into()),
        memory: Some(64 << 20),
        processes: Some(10),
    };
    let config = built(&one);
    let resources = &config["linux"]["resources"];
    assert_eq!(
        resources["memory"],
        json!({"limit": 64 << 20, "swap": 64 << 20})
    );
    assert_eq!(
        resources["cpu"],
        json!({"quota": 150_000, "period": 100_000, "shares": 512, "cpus": "0-1"})
    );
    assert_eq!(resources["pids"]["limit"], 10);
    assert_eq!(
        built(&spec())["linux"]["resources"]["pids"]["limit"],
        PROCESSES
    );
    assert_eq!(config["linux"]["cgroupsPath"], "/skerry/c");
}

#[test]
fn somebody_who_is_not_root_starts_without_capabilities() {
    let mut circumstances = host();
    let root = serde_json::to_value(build(&spec(), "c", &circumstances).unwrap()).unwrap();
    let root = &root["process"]["capabilities"];
    assert_eq!(
        root["effective"].as_array().unwrap().len(),
        CAPABILITIES.len()
    );
    assert_eq!(root["inheritable"], json!([]));
    circumstances.identity.uid = 33;
    let other = serde_json::to_value(build(&spec(), "c", &circumstances).unwrap()).unwrap();
    let other = &other["process"]["capabilities"];
    assert_eq!(other["effective"], json!([]));
    assert_eq!(
        other["bounding"].as_array().unwrap().len(),
        CAPABILITIES.len()
    );
}

#[test]
fn capabilities_are_added_and_dropped_by_name() {
    let mut one = spec();
    one.drop_capabilities = vec!["ALL".into()];
    one.add_capabilities = vec!["net_admin".into(), "CAP_SYS_ADMIN".into()];
    assert!(is_admin(&one).unwrap());
    let all = &built(&one)["process"]["capabilities"]["bounding"];
    assert_eq!(all.as_array().unwrap().len(), 2);
    one.add_capabilities = vec!["CAP_NOTHING".into()];
    assert!(check(&one).unwrap_err().to_string().contains("CAP_NOTHING"));
}

#[test]
fn the_library_does_not_mount_cgroups_of_version_1() {
    let cgroups = |runtime, version| {
        let mut one = spec();
        one.runtime = runtime;
        let circumstances = Circumstances {
            cgroups: version,
            ..host()
        };
        let config = build(&one, "c", &circumstances).unwrap();
        let mounts = config.mounts().as_ref().unwrap();
        mounts
            .iter()
            .any(|mount| mount.typ().as_deref() == Some("cgroup"))
    };
    assert!(!cgroups(Runtime::BuiltIn, CgroupVersion::One));
    assert!(cgroups(Runtime::BuiltIn, CgroupVersion::Two));
    assert!(cgroups(Runtime::Program("runc".into()), CgroupVersion::One));
}

#[test]
fn the_hosts_network_comes_with_its_name() {
    let mut one = spec();
    assert_eq!(built(&one)["hostname"], "c");
    one.network = Network::Host;
    let config = built(&one);
    let spaces = config["linux"]["namespaces"].as_array().unwrap();
    assert!(
        !spaces
            .iter()
            .any(|space| space["type"] == "network" || space["type"] == "uts")
    );
    assert!(config["hostname"].is_null());
}

#[test]
fn what_cannot_be_is_refused_by_its_field() {
    type Change = fn(&mut ContainerSpec);
    let cases: [(&str, Change); 12] = [
        ("args", |one| one.command = Some(Vec::new())),
        ("args", |one| one.command = Some(vec!["a\0b".into()])),
        ("env", |one| one.env = vec![("A=B".into(), String::new())]),
        ("hostname", |one| one.hostname = Some("a b".into())),
        ("working_dir", |one| one.working_dir = Some("srv".into())),
        ("working_dir", |one| {
            one.working_dir = Some("/srv/../etc".into())
        }),
        ("network.path", |one| {
            one.network = Network::Path("net".into())
        }),
        ("cgroup", |one| one.cgroup = Some("/".into())),
        ("limits.memory", |one| one.limits.memory = Some(1)),
        ("limits.cpu_milli", |one| one.limits.cpu_milli = Some(0)),
        ("log", |one| one.log.files = 0),
        ("no_new_privileges", |one| one.no_new_privileges = false),
    ];
    for (field, change) in cases {
        let mut one = spec();
        change(&mut one);
        let error = check(&one).unwrap_err().to_string();
        assert!(
            error.contains(&format!("container's {field} cannot be")),
            "{error}"
        );
    }
}

#[test]
fn a_command_keeps_the_containers_ways() {
    let one = spec();
    let bundle = build(&one, "c", &host()).unwrap();
    let exec = ExecSpec {
        args: vec!["ls".into()],
        env: vec![("A".into(), "mine".into())],
        ..ExecSpec::default()
    };
    let process = exec_process(&bundle, &exec, &one, None).unwrap();
    assert_eq!(process.env().as_ref().unwrap()[1], "A=mine");
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!(process.no_new_privileges(), Some(true));
    assert!(exec_process(&bundle, &ExecSpec::default(), &one, None).is_err());
}
