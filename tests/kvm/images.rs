//! Images of a host's store: how they come there, and what runs on them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use skerry_tests::disk::checksum;
use skerry_tests::host::{Host, Said, kill, processes};
use skerry_tests::registry::{Registry, served};
use skerry_tests::token_server::TokenServer;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Api, Site, eventually, given};

/// A command of `skerry image` on a host's store.
pub fn image(host: &Host, words: &[&str], input: &str) -> Said {
    let store = host.state().join("images").display().to_string();
    let (what, rest) = words.split_first().expect("a command");
    let all = [&["image", what, "--store", &store], rest].concat();
    host.skerry_reading(&all, input.as_bytes()).1
}

/// The same, which must go well; what it printed.
pub fn must(host: &Host, words: &[&str]) -> String {
    let said = image(host, words, "");
    assert!(said.good, "skerry image {words:?}: {said:?}");
    said.out
}

/// A disk of 4 MiB, a part of which is bytes that no packer makes smaller, as compressed qcow2; and as raw.
pub fn disk(host: &Host, seed: u64) -> (PathBuf, PathBuf) {
    let (raw, packed) = (host.path("disk.raw"), host.path("disk.qcow2"));
    let mut bytes = vec![0; 4 << 20];
    let mut state = seed;
    for byte in &mut bytes[1 << 20..3 << 20] {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    std::fs::write(&raw, bytes).expect("written");
    let status = Command::new("qemu-img")
        .args(["convert", "-c", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &packed])
        .status();
    assert!(status.expect("qemu-img, of qemu-utils").success());
    (raw, packed)
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

pub fn bases(host: &Host) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(host.state().join("images/bases"));
    entries
        .expect("a folder")
        .map(|entry| entry.expect("a file").path())
        .collect()
}

/// Whether a workload's conditions say something.
fn says(words: &str) -> impl Fn(&Value) -> bool {
    move |status| status["conditions"].to_string().contains(words)
}

#[test]
fn a_vm_runs_on_an_image_of_the_store_which_stays_as_long_as_the_vm() {
    let host = Host::start();
    let payload = given("SKERRY_PAYLOAD");
    let manifest = host.manifest(&format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: one}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"run=blk-verify:0:1 off=wait-power-button\"}}\n\
         \x20 disks: [{{name: root, image: \"base:1\"}}]\n",
        payload.display()
    ));
    host.must(&["apply", "-f", &manifest]);
    host.until("vm", "one", SHORT, says("no image `base:1` in the store"));
    // It comes, and so the VM runs.
    let (raw, packed) = disk(&host, 1);
    must(&host, &["import", text(&packed), "--name", "base:1"]);
    host.until_phase("vm", "one", "Running");
    let base = bases(&host).pop().expect("a flat copy");
    assert_eq!(checksum(&base), checksum(&raw));
    let object = host.object("vm", "one");
    let uid = object["metadata"]["uid"].as_str().expect("a uid");
    let socket = host.state().join("vms").join(uid).join("api.sock");
    let below = Api::connect(&socket).info().config.disks.remove(0).backing;
    let below = serde_json::to_string(&below).expect("JSON");
    assert!(below.contains(text(&base)), "{below}");
    // Its name means another image, and then nothing; it is used still.
    disk(&host, 2);
    must(&host, &["import", text(&packed), "--name", "base:1"]);
    must(&host, &["rm", "base:1"]);
    must(&host, &["gc"]);
    assert_eq!(bases(&host), std::slice::from_ref(&base));
    host.monitors().into_iter().for_each(kill);
    host.until("vm", "one", SHORT, |s| {
        s["phase"] == "Running" && s["restarts"] == 1
    });
    assert_eq!(bases(&host), [base]);
    must(&host, &["verify"]);
    host.must(&["delete", "vm", "one"]);
    must(&host, &["gc"]);
    assert!(bases(&host).is_empty());
    let left = std::fs::read_dir(host.state().join("images/manifests"));
    assert_eq!(left.expect("a folder").count(), 0);
}

fn container(name: &str, image: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 image: {image}\n\
         \x20 command: [sh, -c, \"cat /etc/above; echo; while :; do sleep 1; done\"]\n"
    )
}

/// Waits until a container says what its image holds.
fn speaks(host: &Host, name: &str) {
    eventually("it says what its image holds", SHORT, || {
        let log = host.must(&["logs", &format!("container/{name}")]);
        log.contains("of the layer above").then_some(())
    });
}

#[test]
fn a_container_runs_from_an_image_of_the_store() {
    let (host, site) = (Host::start(), Site::new());
    let manifest = host.manifest(&container("one", "busybox"));
    host.must(&["apply", "-f", &manifest]);
    host.until(
        "container",
        "one",
        SHORT,
        says("no image `busybox:latest` in the store"),
    );
    // As a directory, and as the archive of one: the same image.
    let archive = host.path("layout.tar");
    let status = Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(site.layout())
        .arg(".")
        .status();
    assert!(status.expect("tar").success());
    must(
        &host,
        &["import", text(&site.layout()), "--name", "busybox"],
    );
    must(
        &host,
        &[
            "import",
            text(&archive),
            "--format",
            "oci",
            "--name",
            "other",
        ],
    );
    let list: Value =
        serde_json::from_str(&must(&host, &["list", "--output", "json"])).expect("JSON");
    assert_eq!(list[0]["digest"], list[1]["digest"], "{list}");
    host.until_phase("container", "one", "Running");
    speaks(&host, "one");
    // What it is made of stays without a name; its disk it cannot be.
    must(&host, &["rm", "busybox", "other"]);
    let gone: Value =
        serde_json::from_str(&must(&host, &["gc", "--output", "json"])).expect("JSON");
    assert_eq!(gone["images"], 0, "{gone}");
    host.must(&["delete", "container", "one"]);
    let gone: Value =
        serde_json::from_str(&must(&host, &["gc", "--output", "json"])).expect("JSON");
    assert_eq!(gone["images"], 1, "{gone}");
    let wrong = host.skerry(&["apply", "-f", &host.manifest(&container("two", "../up"))]);
    assert!(
        !wrong.good && wrong.errors.contains("NAME[:TAG]"),
        "{wrong:?}"
    );
}

#[test]
fn what_a_registry_has_is_pulled_compared_with_its_digests_and_run() {
    let (host, site, registry) = (Host::start(), Site::new(), Registry::new());
    registry.push(&site.layout(), "tools/busybox", "1");
    let reference = format!("{}/tools/busybox:1", registry.address);
    let pull = ["pull", "--plain-http", &reference, "--name", "busybox:1"];
    let refused = image(&host, &pull, "");
    assert!(
        !refused.good && refused.errors.contains("401"),
        "{refused:?}"
    );
    let login = ["--user", "tester", "--password-stdin"];
    let said = image(&host, &[&pull[..], &login].concat(), "wrong\n");
    assert!(!said.good, "{said:?}");
    let said = image(&host, &[&pull[..], &login].concat(), "secret\n");
    assert!(said.good, "{said:?}");
    // A file with logins, as other tools write them.
    let logins = host.path("config.json");
    let auths = serde_json::json!({"auths": {&registry.address: {"auth": "dGVzdGVyOnNlY3JldA=="}}});
    std::fs::write(&logins, auths.to_string()).expect("written");
    let filed = ["--auth-file", text(&logins), "--output", "json"];
    let said = image(&host, &[&pull[..], &filed].concat(), "");
    let again: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(again["added"], 0, "it was there: {said:?}");
    host.must(&[
        "apply",
        "--wait",
        "-f",
        &host.manifest(&container("one", "busybox:1")),
    ]);
    speaks(&host, "one");
    host.must(&["delete", "container", "one"]);
    // A registry whose blobs are not what their digests say.
    let inspected = must(&host, &["inspect", "busybox:1", "--output", "json"]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    let blobs = inspected["blobs"].as_object().expect("blobs");
    let (digest, _) = blobs
        .iter()
        .max_by_key(|(_, size)| size.as_u64())
        .expect("a blob");
    let file = registry.blob(digest);
    let mut bytes = std::fs::read(&file).expect("the registry's file");
    bytes[1000] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    must(&host, &["rm", "busybox:1"]);
    let said = image(&host, &[&pull[..], &filed].concat(), "");
    assert!(
        !said.good && said.errors.contains("sha256 is another"),
        "{said:?}"
    );
    assert_eq!(must(&host, &["list", "--output", "json"]).trim(), "[]");
    must(&host, &["verify"]);
}

#[test]
fn who_has_a_login_gets_a_token_of_the_server_that_a_registry_names() {
    let (host, site, tokens) = (Host::start(), Site::new(), TokenServer::new());
    let registry = Registry::with_tokens(&tokens);
    registry.push(&site.layout(), "tools/busybox", "1");
    let reference = format!("{}/tools/busybox:1", registry.address);
    let pull = ["pull", "--plain-http", &reference, "--name", "busybox:1"];
    // Nobody's token allows nothing, and a wrong password gets none.
    let login = ["--user", "tester", "--password-stdin"];
    let both = [&pull[..], &login].concat();
    for (words, password, who) in [
        (&pull[..], "", registry.address.as_str()),
        (&both, "wrong\n", tokens.realm.as_str()),
    ] {
        let said = image(&host, words, password);
        assert!(!said.good && said.errors.contains(who), "{said:?}");
        assert!(
            said.errors.contains("401") && said.errors.contains("--password-stdin"),
            "{said:?}"
        );
    }
    assert_eq!(must(&host, &["list", "--output", "json"]).trim(), "[]");
    assert_eq!(tokens.given(), 0);
    let said = image(&host, &both, "secret\n");
    assert!(said.good, "{said:?}");
    assert_eq!(tokens.given(), 1);
    must(&host, &["inspect", "busybox:1"]);
    must(&host, &["verify"]);
}

#[test]
fn an_image_comes_by_http_though_it_breaks_off_and_only_as_its_checksum_says() {
    let host = Host::start();
    let (raw, packed) = disk(&host, 3);
    let bytes = std::fs::read(&packed).expect("an image");
    let url = served(bytes.clone(), bytes.len() / 3 + 1);
    let import = ["import", &url, "--name", "net"];
    let said = image(&host, &import, "");
    assert!(!said.good && said.errors.contains("--checksum"), "{said:?}");
    let sum = format!("sha256:{}", "0".repeat(64));
    let said = image(&host, &[&import[..], &["--checksum", &sum]].concat(), "");
    assert!(
        !said.good && said.errors.contains("its sha256 is"),
        "{said:?}"
    );
    let sum = Command::new("sha512sum")
        .arg(&packed)
        .output()
        .expect("sha512sum");
    let sum = String::from_utf8(sum.stdout).expect("text");
    let sum = format!("sha512:{}", sum.split_whitespace().next().expect("a sum"));
    must(&host, &[&import[..], &["--checksum", &sum]].concat());
    let back = host.path("back.raw");
    must(&host, &["export", "-O", "raw", "net", text(&back)]);
    assert_eq!(checksum(&back), checksum(&raw));
    let packed_again = host.path("back.qcow2");
    must(&host, &["export", "net", text(&packed_again)]);
    let same = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "qcow2"])
        .args([&raw, &packed_again])
        .output();
    assert!(same.expect("qemu-img").status.success());
}

#[test]
fn an_image_is_prepared_once_and_cloned_by_its_name() {
    let host = Host::start();
    let manifest = host.manifest(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {name: clone}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {snapshot: web}\n",
    );
    host.must(&["apply", "-f", &manifest]);
    host.until("vm", "clone", SHORT, says("nothing is prepared as `web`"));
    let (_, packed) = disk(&host, 4);
    must(&host, &["import", text(&packed), "--name", "guest"]);
    let (kernel, vmm) = (given("SKERRY_PAYLOAD"), given("SKERRY_VMM"));
    let prepare = [
        "prepare",
        "guest",
        "--as",
        "web",
        "--no-probe",
        "--memory",
        "64M",
    ];
    let programs = ["--kernel", text(&kernel), "--vmm", text(&vmm)];
    let prepare = [&prepare[..], &programs].concat();
    // One that never says it leaves nothing.
    let never = ["--until", "never said", "--cmdline", "run=spin:1 off=acpi"];
    let said = image(&host, &[&prepare[..], &never].concat(), "");
    assert!(
        !said.good && said.errors.contains("ended before it was ready"),
        "{said:?}"
    );
    let place = host.state().join("images/prepared/web");
    assert!(!place.exists());
    // One that is killed leaves no monitor, and what it left is garbage.
    let stays = [
        "--until",
        "never said",
        "--cmdline",
        "run=spin:1 off=wait-power-button",
    ];
    let store = host.state().join("images").display().to_string();
    let words = [&["image"], &prepare[..], &stays, &["--store", &store]].concat();
    let quiet = || std::process::Stdio::null();
    let mut child = host
        .command(&words)
        .stdout(quiet())
        .stderr(quiet())
        .spawn()
        .expect("skerry starts");
    eventually("its guest runs", SHORT, || {
        place.join("console.log").exists().then_some(())
    });
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    eventually("its monitor ends", SHORT, || {
        processes(&place).is_empty().then_some(())
    });
    must(&host, &["gc"]);
    assert!(!place.exists() && bases(&host).is_empty());
    let ready = [
        "--until",
        "# steady: round=",
        "--cmdline",
        "run=steady:disk=0:say=20 off=acpi",
    ];
    must(&host, &[&prepare[..], &ready].concat());
    let again = image(&host, &[&prepare[..], &ready].concat(), "");
    assert!(
        !again.good && again.errors.contains("is prepared already"),
        "{again:?}"
    );
    // What it lies on stays, whatever becomes of the image's name.
    must(&host, &["rm", "guest"]);
    must(&host, &["gc"]);
    host.until_phase("vm", "clone", "Running");
    eventually("the clone checks itself", SHORT, || {
        let said = host.must(&["logs", "vm/clone"]);
        assert!(!said.contains("fail "), "{said}");
        (said.matches("# steady: round=").count() >= 2).then_some(())
    });
    host.must(&["delete", "vm", "clone"]);
    must(&host, &["rm", "--prepared", "web"]);
    must(&host, &["gc"]);
    assert!(!place.exists() && bases(&host).is_empty());
}

#[test]
fn an_oci_image_becomes_a_disk_with_a_sound_file_system() {
    let (host, site) = (Host::start(), Site::new());
    must(
        &host,
        &["import", text(&site.layout()), "--name", "busybox"],
    );
    must(
        &host,
        &["convert-oci", "busybox", "--name", "disk", "--size", "32M"],
    );
    let file = host.path("disk.ext4");
    must(&host, &["export", "-O", "raw", "disk", text(&file)]);
    let checked = Command::new("e2fsck").arg("-fn").arg(&file).output();
    let checked = checked.expect("e2fsck, of e2fsprogs");
    assert!(checked.status.success(), "{checked:?}");
    let shown = |path: &str| {
        let asked = format!("cat {path}");
        let shown = Command::new("debugfs")
            .args(["-R", &asked])
            .arg(&file)
            .output();
        let shown = shown.expect("debugfs, of e2fsprogs");
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    assert_eq!(shown("/etc/above"), "of the layer above");
    // The layer above took it away.
    assert_eq!(shown("/etc/below"), "");
}
