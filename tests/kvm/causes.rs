//! What a workload needs and does not find: it says what is missing, and runs when that is there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use skerry_tests::disk::qemu_img;
use skerry_tests::host::Host;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, given};

fn vm(disks: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"run=spin:1 off=wait-power-button\"}}\n\
         \x20 disks: [{disks}]\n",
        given("SKERRY_PAYLOAD").display()
    )
}

/// Waits until all who look are told why something does not start.
fn says(host: &Host, kind: &str, name: &str, words: &[&str]) {
    host.until(kind, name, SHORT, |s| {
        let conditions = s["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|c| c["type"] == "Ready");
        let ready = ready.unwrap_or_default();
        ready["reason"] == "NotStarted"
            && words
                .iter()
                .all(|word| ready["message"].to_string().contains(word))
    });
    let said = host.must(&["describe", kind, name]);
    for word in words {
        assert!(said.contains(word), "`{word}` is not in {said}");
    }
    assert!(host.must(&["get", kind]).contains("Failing"));
    assert!(host.must(&["events"]).contains("NotStarted"));
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
}

#[test]
fn a_disk_waits_for_its_base_and_for_one_that_is_whole() {
    let host = Host::start();
    let base = host.path("base.qcow2");
    let named = base.display().to_string();
    host.must(&[
        "apply",
        "-f",
        &host.manifest(&vm(&format!("{{name: root, base: {named}}}"))),
    ]);
    says(&host, "vm", "web", &[&named, "No such file"]);
    write(&base, "this is no image");
    says(&host, "vm", "web", &["root", "qcow2"]);
    // A layer that the image names, and nobody has given.
    fs::remove_file(&base).expect("it is ours");
    let below = host.path("below.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2"], &[&below], &["4M"]);
    let backing = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    qemu_img(&backing, &[&below, &base], &[]);
    fs::remove_file(&below).expect("it is ours");
    says(&host, "vm", "web", &["base.qcow2", "backing"]);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", ""], &[&base], &[]);
    host.until_phase("vm", "web", "Running");
    host.must(&["delete", "vm/web"]);
    assert_eq!(host.left(std::iter::empty()), Vec::<String>::new());
}

/// The largest blob of a layout: its lowest layer.
fn layer(layout: &Path) -> PathBuf {
    let blobs = fs::read_dir(layout.join("blobs/sha256")).expect("blobs");
    let paths = blobs.map(|entry| entry.expect("an entry").path());
    let longest = paths.max_by_key(|path| fs::metadata(path).expect("a blob").len());
    longest.expect("there are some")
}

#[test]
fn a_container_waits_for_the_layers_of_its_image() {
    let (host, site) = (Host::start(), Site::new());
    let layer = layer(&site.layout());
    let name = layer
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let whole = fs::read(&layer).expect("a layer");
    fs::remove_file(&layer).expect("it is ours");
    let manifest = format!(
        "apiVersion: skerry.io/v1\nkind: Container\nmetadata: {{name: one}}\n\
         spec: {{image: {}, command: [sh, -c, \"while :; do sleep 1; done\"]}}\n",
        site.layout().display()
    );
    host.must(&["apply", "-f", &host.manifest(&manifest)]);
    says(&host, "container", "one", &[&name[..12], "No such file"]);
    let mut broken = whole.clone();
    let middle = broken.len() / 2;
    broken[middle] ^= 1;
    fs::write(&layer, &broken).expect("written");
    says(
        &host,
        "container",
        "one",
        &[&name[..12], "sha256 is another"],
    );
    fs::write(&layer, &whole).expect("written");
    host.until_phase("container", "one", "Running");
    host.must(&["delete", "container/one"]);
    assert_eq!(host.left(std::iter::empty()), Vec::<String>::new());
}

#[test]
fn vms_wait_for_a_monitor_that_is_there_and_starts() {
    let host = Host::with_monitor("monitor");
    let monitor = host.path("monitor");
    let mode = |mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(&monitor, permissions).expect("it is ours");
    };
    host.must(&[
        "apply",
        "-f",
        &host.manifest(&vm("{name: data, size: 1Mi}")),
    ]);
    says(&host, "vm", "web", &["monitor", "No such file"]);
    write(
        &monitor,
        "#!/bin/sh\necho this one is broken >&2\nkill -SEGV $$\n",
    );
    mode(0o600);
    says(&host, "vm", "web", &["monitor", "Permission denied"]);
    mode(0o700);
    says(&host, "vm", "web", &["ended at once", "this one is broken"]);
    fs::remove_file(&monitor).expect("it is ours");
    std::os::unix::fs::symlink(given("SKERRY_VMM"), &monitor).expect("a link");
    host.until_phase("vm", "web", "Running");
    host.must(&["delete", "vm/web"]);
    assert_eq!(host.left(std::iter::empty()), Vec::<String>::new());
}
