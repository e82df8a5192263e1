//! VMs that start from the kernel in their image's file system.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use skerry_tests::host::{Host, kill};
use skerry_tests::vmm::SHORT;
use skerry_tests::{Api, eventually, given};

/// Makes a file system of a folder's files, in a host's store as `NAME:latest`.
fn import(host: &Host, name: &str, files: &[(&str, &[u8])]) {
    let (tree, image) = (host.path(name), host.path("fs.raw"));
    for (file, bytes) in files {
        let path = tree.join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, bytes).expect("written");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let made = Command::new("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([&tree, &image])
        .arg("16M")
        .status();
    assert!(made.expect("mke2fs, of e2fsprogs").success());
    import_file(host, name, &image);
}

fn import_file(host: &Host, name: &str, file: &Path) {
    let store = host.state().join("images").display().to_string();
    let file = file.display().to_string();
    host.must(&[
        "image", "import", "--store", &store, "--format", "raw", "--name", name, &file,
    ]);
}

fn says(words: &str) -> impl Fn(&Value) -> bool {
    move |status| status["conditions"].to_string().contains(words)
}

/// Declares a VM of an image without a kernel.
fn declare(host: &Host, name: &str, words: &str) {
    let manifest = format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{cmdline: \"{words}\"}}\n\
         \x20 disks: [{{name: root, image: {name}}}]\n"
    );
    host.must(&["apply", "-f", &host.manifest(&manifest)]);
}

#[test]
fn a_vm_without_a_kernel_starts_from_the_newest_in_its_image() {
    let host = Host::start();
    let payload = std::fs::read(given("SKERRY_PAYLOAD")).expect("the payload");
    import(
        &host,
        "system",
        &[
            ("etc/os-release", b"ID=test\n"),
            ("boot/vmlinuz-1.9", b"no kernel at all"),
            ("boot/vmlinuz-1.10", &payload),
        ],
    );
    host.must(&[
        "run",
        "vm",
        "one",
        "--memory",
        "64Mi",
        "--image",
        "system",
        "--cmdline",
        "run=blk-info:0 off=wait-power-button",
    ]);
    let object = host.until_phase("vm", "one", "Running");
    let uid = object["metadata"]["uid"].as_str().expect("a uid");
    let socket = host.state().join("vms").join(uid).join("api.sock");
    let payload = Api::connect(&socket).info().config.payload;
    assert_eq!(
        payload.cmdline.as_deref(),
        Some("console=ttyS0 root=/dev/vda rw run=blk-info:0 off=wait-power-button")
    );
    let kernel = payload.kernel.expect("a kernel");
    assert!(kernel.starts_with(host.state().join("images/bases")));
    eventually("its guest runs", SHORT, || {
        let said = host.must(&["logs", "vm/one"]);
        said.contains("blk-info").then_some(())
    });
    let bases = host.state().join("images/bases");
    // What a power cut in a garbage collection may have left of it is not all of it: it is found again.
    std::fs::remove_file(&kernel).expect("the kernel");
    host.monitors().into_iter().for_each(kill);
    host.until("vm", "one", SHORT, |s| {
        s["phase"] == "Running" && s["restarts"] == 1
    });
    assert!(kernel.exists());
    // The kernel goes with the image, once nobody uses it.
    let files = || std::fs::read_dir(&bases).expect("a folder").count();
    assert_eq!(files(), 3);
    host.must(&["delete", "vm/one", "--grace", "0"]);
    let store = host.state().join("images").display().to_string();
    host.must(&["image", "gc", "--store", &store]);
    assert_eq!(files(), 0);
}

#[test]
fn images_without_a_kernel_or_that_lie_are_refused_and_the_host_lives_on() {
    let host = Host::start();
    import(&host, "bare", &[("etc/os-release", b"ID=test\n")]);
    declare(&host, "bare", "");
    host.until("vm", "bare", SHORT, says("no /boot/vmlinuz-VERSION"));
    // Everything behind the superblock is something else.
    let image = host.path("fs.raw");
    let mut bytes = std::fs::read(&image).expect("the image");
    for (n, byte) in bytes.iter_mut().enumerate().skip(2048) {
        *byte = (n as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3];
    }
    std::fs::write(&image, bytes).expect("written");
    import_file(&host, "liar", &image);
    declare(&host, "liar", "");
    host.until(
        "vm",
        "liar",
        SHORT,
        says("no kernel of its image was found"),
    );
    host.must(&["get", "hosts", "here"]);
    for name in ["vm/bare", "vm/liar"] {
        host.must(&["delete", name, "--grace", "0"]);
    }
    // A VM of nothing at all is refused at once.
    let said = host.skerry(&["run", "vm", "none", "--memory", "64Mi"]);
    assert!(!said.good && said.errors.contains("--kernel"), "{said:?}");
}
