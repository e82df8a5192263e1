//! Containers' volumes: what they keep, and what they see of the host.

use std::fs;
use std::path::Path;

use skerry_tests::host::{Host, processes};
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually};

/// A container that says what it finds, and leaves something.
fn container(image: &Path, source: &Path, words: &str) -> String {
    let script = format!(
        "cat /own/kept /given/there; echo {words} >> /own/kept; touch /given/mine || echo no; id -u; pwd; while :; do sleep 1; done"
    );
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: keeper}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"{script}\"]\n\
         \x20 user: \"0:0\"\n\
         \x20 workingDir: /own\n\
         \x20 readOnly: true\n\
         \x20 volumes:\n\
         \x20 - {{name: own, path: /own}}\n\
         \x20 - {{name: given, path: /given, source: {}, readOnly: true}}\n",
        image.display(),
        source.display()
    )
}

#[test]
fn volumes_stay_as_long_as_their_container_is_declared() {
    let (host, site) = (Host::start(), Site::new());
    let shared = host.path("shared/of-it");
    fs::create_dir_all(&shared).expect("a folder");
    fs::write(shared.join("there"), "shown by the host\n").expect("written");
    let declare = |words: &str| {
        let manifest = host.manifest(&container(&site.layout(), &shared, words));
        host.must(&["apply", "--wait", "-f", &manifest]);
    };
    let says = |line: &str| {
        eventually(&format!("it says {line}"), SHORT, || {
            let log = host.must(&["logs", "container/keeper"]);
            log.contains(line).then_some(log)
        })
    };
    declare("first");
    let log = says("/own\n");
    assert!(
        log.contains("shown by the host") && log.contains("no\n"),
        "{log}"
    );
    assert!(!shared.join("mine").exists());

    // Another command is another container, with what the volume has.
    let object = host.object("container", "keeper");
    let uid = object["metadata"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned();
    declare("second");
    let shims = processes(&host.state().join("containers/containers").join(&uid));
    shims.into_iter().for_each(skerry_tests::host::kill);
    host.until("container", "keeper", SHORT, |s| {
        s["phase"] == "Running" && s["restarts"] == 1
    });
    let kept = host
        .state()
        .join("containers/volumes")
        .join(&uid)
        .join("own/kept");
    eventually("both were kept", SHORT, || {
        let text = fs::read_to_string(&kept).unwrap_or_default();
        (text == "first\nsecond\n").then_some(())
    });
    says("first");

    host.must(&["delete", "container/keeper"]);
    assert!(!kept.exists() && shared.join("there").exists());
}

#[test]
fn what_the_host_does_not_share_is_not_mounted() {
    let (host, site) = (Host::start(), Site::new());
    fs::create_dir_all(host.path("shared")).expect("a folder");
    let manifest = host.manifest(&container(&site.layout(), Path::new("/etc"), "x"));
    host.must(&["apply", "-f", &manifest]);
    let failing = host.until_phase("container", "keeper", "Failing");
    let why = failing["status"]["conditions"].to_string();
    assert!(
        why.contains("does not share /etc") && why.contains("--share"),
        "{why}"
    );
    // A volume that cannot be is refused at once.
    let twice =
        container(&site.layout(), Path::new("etc"), "x").replace("name: given", "name: own");
    let refused = host.skerry(&["apply", "-f", &host.manifest(&twice)]);
    assert!(!refused.good, "{refused:?}");
    for field in ["spec.volumes[1].name", "spec.volumes[1].source"] {
        assert!(refused.errors.contains(field), "{refused:?}");
    }
}
