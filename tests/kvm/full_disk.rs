//! A host whose disk is full: what runs goes on, nothing new is taken, and it is well again with space.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;
use skerry_tests::host::{Host, Said, kill, processes};
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually, given};

/// Mebibytes of the host's disk.
const DISK: u64 = 64;
const STAYS: &str = "run=blk-verify:0:1 off=wait-power-button";

fn vm(name: &str, more: &str) -> String {
    let kernel: PathBuf = given("SKERRY_PAYLOAD");
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"{STAYS}\"}}\n\
         \x20 disks: [{{name: data, size: 4Mi}}]\n\
         {more}---\n",
        kernel.display()
    )
}

fn container(name: &str, image: &Path, more: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"while :; do echo here; sleep 0.05; done\"]\n\
         {more}---\n",
        image.display()
    )
}

/// Writes until there is no space at all.
fn fill(host: &Host) {
    let mut file = File::options();
    let file = file.append(true).create(true).open(filler(host));
    let mut file = file.expect("a file");
    let mut bytes = vec![1; 1 << 20];
    while bytes.len() >= 4096 {
        if file.write_all(&bytes).is_err() {
            bytes.truncate(bytes.len() / 2);
        }
    }
}

fn filler(host: &Host) -> PathBuf {
    host.state().join("filler")
}

fn pressure(host: &Host) -> Value {
    let object = host.object("host", "here");
    let all = object["status"]["conditions"].as_array().cloned();
    let mut all = all.unwrap_or_default().into_iter();
    all.find(|c| c["type"] == "DiskPressure")
        .unwrap_or_default()
}

fn until_pressed(host: &Host, wanted: &str) {
    eventually("the host says how its disk is", SHORT, || {
        (pressure(host)["status"] == wanted).then_some(())
    });
}

fn refused(said: &Said) {
    assert!(!said.good, "{said:?}");
    for word in ["full", "make space there, or delete objects"] {
        assert!(said.errors.contains(word), "`{word}` is not in {said:?}");
    }
}

#[test]
fn a_full_disk_stops_nothing_takes_nothing_new_and_is_well_again_with_space() {
    let (mut host, site) = (Host::small(DISK), Site::new());
    let all = vm("web", "")
        + &container("one", &site.layout(), "")
        + &container("two", &site.layout(), "");
    host.must(&["apply", "--wait", "-f", &host.manifest(&all)]);
    let first = host.monitors();
    fill(&host);
    // Every client is told, and so is whoever looks at the host.
    let new = host.manifest(&vm("new", ""));
    refused(&host.skerry(&["apply", "-f", &new]));
    refused(&host.kubectl(&["apply", "-f", &new]));
    let raw = host.kubectl(&["create", "-v", "8", "-f", &new]);
    assert!(raw.errors.contains("507"), "{raw:?}");
    until_pressed(&host, "True");
    assert!(pressure(&host)["message"].to_string().contains("is full"));
    // What runs runs on, also when its agent or its monitor dies, and nobody else can write.
    fill(&host);
    assert_eq!(host.monitors(), first);
    host.kill();
    host.up();
    assert_eq!(host.monitors(), first);
    first.iter().for_each(|id| kill(*id));
    host.until("vm", "web", SHORT, |s| {
        s["phase"] == "Running" && s["restarts"] == 1
    });
    host.until_phase("container", "one", "Running");
    assert_eq!(host.object("container", "one")["status"]["restarts"], 0);
    // What is there can be changed a little, and goes when it is to go.
    host.kubectl_must(&["label", "vm", "web", "a=b"]);
    host.must(&["delete", "container/two"]);
    refused(&host.skerry(&["apply", "-f", &new]));
    std::fs::remove_file(filler(&host)).expect("it is ours");
    until_pressed(&host, "False");
    let new = host.manifest(&vm("new", ""));
    host.must(&["apply", "--wait", "-f", &new]);
    for name in ["vm/new", "vm/web", "container/one"] {
        host.must(&["delete", name]);
    }
    assert!(host.monitors().is_empty());
}

#[test]
fn what_has_no_space_to_start_says_so_leaves_no_half_of_anything_and_starts_with_space() {
    let (mut host, site) = (Host::start(), Site::new());
    host.narrow("vms", "8k");
    host.narrow("containers", "64k");
    std::fs::create_dir(host.state().join("containers/containers")).expect("a folder");
    let all = vm("web", "") + &container("one", &site.layout(), "");
    host.must(&["apply", "-f", &host.manifest(&all)]);
    for (kind, name) in [("vm", "web"), ("container", "one")] {
        let failing = host.until(kind, name, SHORT, |s| {
            let conditions = s["conditions"].to_string();
            conditions.contains("NotStarted") && conditions.contains("No space left")
        });
        assert_eq!(failing["status"]["phase"], "Failing");
        let said = host.must(&["describe", kind, name]);
        assert!(said.contains("No space left"), "{said}");
    }
    assert_eq!(halves(&host.state()), Vec::<PathBuf>::new());
    host.narrow("vms", "8m");
    host.narrow("containers", "64m");
    host.until_phase("vm", "web", "Running");
    host.until_phase("container", "one", "Running");
    host.must(&["delete", "vm/web"]);
    host.must(&["delete", "container/one"]);
    assert!(host.monitors().is_empty());
    assert!(processes(&host.state().join("containers/containers")).is_empty());
}

/// What is there of something that was not made to its end.
fn halves(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains("partial") || name.ends_with(".tmp") {
            found.push(path);
        } else if path.is_dir() && !path.is_symlink() {
            found.extend(halves(&path));
        }
    }
    found
}
