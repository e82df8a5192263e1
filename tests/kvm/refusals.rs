//! Bad input: one clear line that names the thing and the remedy, a non-zero exit.

use std::path::Path;

use skerry_tests::vmm::{Builder, SHORT};
use skerry_tests::{Tap, disk, given};

fn kernel(path: &Path) -> Builder {
    Builder::new(&["--no-probe", "--serial", "null"]).flag("--kernel", path)
}

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), content).expect("written");
    file
}

#[test]
fn kernels_that_are_none() {
    kernel(Path::new("/no/kernel"))
        .run()
        .refused(1, &["kernel", "/no/kernel", "No such file"]);
    kernel(Path::new("/"))
        .run()
        .refused(1, &["kernel", "directory"]);
    kernel(file(b"").path())
        .run()
        .refused(1, &["empty", "vmlinux"]);
    kernel(file(b"#!/bin/sh\n").path())
        .run()
        .refused(1, &["neither an ELF nor a bzImage", "vmlinux"]);
    let payload = std::fs::read(given("SKERRY_PAYLOAD")).expect("the payload");
    kernel(file(&payload[..payload.len() / 3]).path())
        .run()
        .refused(1, &["is it whole"]);
    let mut arm = payload;
    arm[18..20].copy_from_slice(&183u16.to_le_bytes());
    kernel(file(&arm).path())
        .run()
        .refused(1, &["ARM64", "x86-64"]);
}

#[test]
fn initramfs_and_command_line() {
    let vmm = Builder::payload("x").flag("--initramfs", "/no/initramfs");
    vmm.run().refused(1, &["initramfs", "/no/initramfs"]);
    Builder::payload(&"x".repeat(100_000))
        .run()
        .refused(1, &["command line", "100000", "65535"]);
    let huge = tempfile::NamedTempFile::new().expect("a file");
    disk::create(huge.path(), 1 << 30);
    let vmm = Builder::payload("x").flag("--initramfs", huge.path());
    vmm.run()
        .refused(1, &["initramfs", "does not fit", "more memory"]);
}

#[test]
fn disks() {
    let with = |option: String| Builder::payload("off=acpi").flag("--disk", option).run();
    with("path=/no/disk".into()).refused(1, &["/no/disk"]);
    with("path=/tmp".into()).refused(1, &["/tmp", "directory", "regular file"]);
    with("path=/dev/null".into()).refused(1, &["/dev/null", "neither a file nor a block device"]);
    let small = file(&[0; 100]);
    with(format!("path={}", small.path().display()))
        .refused(1, &["100 bytes", "too small", "truncate"]);
    let odd = file(&[0; 1000]);
    with(format!("path={}", odd.path().display()))
        .refused(1, &["1000 bytes", "whole number", "truncate"]);
    with("readonly=on".into()).refused(1, &["path="]);
    with("path=x,num_queues=0".into()).refused(1, &["num_queues=0"]);
    with("path=x,reedonly=on".into()).refused(2, &["reedonly", "readonly"]);
    with("path=x,image_type=vmdk".into()).refused(2, &["vmdk", "Raw"]);
}

#[test]
fn a_disk_that_another_monitor_has() {
    let disk = tempfile::NamedTempFile::new().expect("a file");
    disk::create(disk.path(), 1 << 20);
    let option = format!("path={}", disk.path().display());
    let first = Builder::payload("off=spin").flag("--disk", &option).start();
    first.expect_line("done", SHORT);
    let second = |option: &str| Builder::payload("off=acpi").flag("--disk", option).run();
    second(&option).refused(
        1,
        &["in use by another process", &option[5..], "readonly=on"],
    );
    second(&format!("{option},readonly=on")).refused(1, &["in use"]);
    drop(first);
    // Readers share.
    let option = format!("{option},readonly=on");
    let first = Builder::payload("off=spin").flag("--disk", &option).start();
    first.expect_line("done", SHORT);
    second(&option).all_ok(0);
}

#[test]
fn networks() {
    let with = |option: &str| Builder::payload("off=acpi").flag("--net", option).run();
    with("tap=nosuchtap").refused(1, &["nosuchtap", "ip tuntap add"]);
    with("tap=lo").refused(1, &["`lo`", "no tap"]);
    with("tap=a-name-that-is-far-too-long")
        .refused(1, &["a-name-that-is-far-too-long", "15 bytes"]);
    with("mac=52:54:00:00:00:01").refused(1, &["tap="]);
    with("tap=x,mac=hello").refused(1, &["hello", "52:54"]);
    with("tap=x,num_queues=3").refused(1, &["num_queues=3", "even"]);
    let tap = Tap::new();
    with(&format!("tap={},num_queues=4", tap.name)).refused(1, &[&tap.name, "multi_queue"]);
    let option = format!("tap={}", tap.name);
    let first = Builder::payload("off=spin").flag("--net", &option).start();
    first.expect_line("done", SHORT);
    with(&option).refused(1, &[&tap.name, "in use"]);
}

#[test]
fn cpus_and_memory() {
    let cpus = |option: &str| Builder::payload("off=acpi").flag("--cpus", option).run();
    cpus("boot=65").refused(1, &["boot=65", "1 to 64"]);
    cpus("boot=0").refused(1, &["boot=0"]);
    cpus("boot=two").refused(2, &["two", "number"]);
    cpus("boot=1,affinity=[3@[0]]").refused(1, &["affinity", "3"]);
    cpus("boot=1,affinity=[0@[1000]]").refused(1, &["host CPU", "1000"]);
    let memory = |option: &str| Builder::payload_with_memory("off=acpi", option).run();
    memory("size=100T").refused(1, &["109951162777600", "more than this host has", "less"]);
    memory("size=1K").refused(1, &["size=1024"]);
    memory("size=64M,hugepages=on,hugepage_size=3M").refused(1, &["hugepage_size"]);
    memory("size=64M,hugepages=on,hugepage_size=1G").refused(1, &["size=67108864", "whole pages"]);
}

#[test]
fn flags() {
    Builder::new(&["--frobnicate"])
        .run()
        .refused(2, &["--frobnicate"]);
    Builder::new(&[])
        .run()
        .refused(1, &["nothing to do", "--kernel", "--api-socket"]);
    Builder::payload("x")
        .flag("--vsock", "cid=2,socket=x")
        .run()
        .refused(1, &["cid=2", "reserved"]);
    Builder::payload("x")
        .flag("--vsock", "cid=3")
        .run()
        .refused(2, &["socket"]);
    Builder::payload("x")
        .flag("--console", "tty")
        .run()
        .refused(1, &["serial and console", "terminal"]);
    Builder::payload("x")
        .flag("--console", "nowhere")
        .run()
        .refused(2, &["tty, pty, null, off, file=PATH or socket=PATH"]);
    Builder::payload("x")
        .flag("--rng", "src=/dev/zero")
        .run()
        .refused(1, &["/dev/zero", "/dev/urandom"]);
}

#[test]
fn socket_paths_in_use() {
    let first = Builder::api_only().start();
    first.api();
    let taken = format!("path={}", first.path("api.sock").display());
    Builder::new(&["--no-probe"])
        .flag("--api-socket", taken)
        .run()
        .refused(1, &["api.sock", "in use", "another path"]);
    let plain = file(b"precious");
    let option = format!("path={}", plain.path().display());
    Builder::new(&["--no-probe"])
        .flag("--api-socket", option)
        .run()
        .refused(1, &["another kind"]);
    let vsock = format!("cid=3,socket={}", plain.path().display());
    Builder::payload("x")
        .flag("--vsock", vsock)
        .run()
        .refused(1, &[&plain.path().display().to_string()]);
    assert_eq!(
        std::fs::read(plain.path()).expect("still there"),
        b"precious"
    );
    Builder::new(&["--no-probe"])
        .flag("--api-socket", "path=/no/such/folder/s")
        .run()
        .refused(1, &["/no/such/folder/s"]);
}

#[test]
fn a_kvm_that_cannot_run_linux_is_told_apart() {
    let probe = Builder::new(&["--probe-only"]).run();
    match probe.code {
        Some(0) => assert!(probe.errors.is_empty(), "{probe}"),
        // What --probe-only finds out, a boot without --no-probe finds out as well.
        _ => {
            probe.refused(3, &["cannot run Linux", "--no-probe"]);
            let boot = Builder::new(&["--serial", "null"])
                .flag("--kernel", given("SKERRY_PAYLOAD"))
                .run();
            boot.refused(3, &["cannot run Linux", "--no-probe"]);
        }
    }
}
