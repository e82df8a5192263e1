//! Live work on a disk under Linux: layers come, merge and go, and the disk grows, while a guest writes it and
//! checks all that it wrote.

use std::path::Path;

use skerry_tests::disk::{self, qemu_img};
use skerry_tests::vmm::{LONG, Vmm};
use skerry_tests::{Api, linux};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::{DiskJobInfo, DiskJobState};

/// The guest's root disk is the first one.
const DISK: &str = "_disk1";
const SIZE: u64 = 24 << 20;
const GROWN: u64 = 32 << 20;
/// Lines about the load that take more than one whole round of it.
const LINES: usize = 2;

/// Waits until the load has done whole rounds from now on.
fn expect_load(vmm: &Vmm) {
    let is_round = |line: &&String| line.contains("guest: churn round");
    let lines = vmm.lines();
    let seen = lines.iter().filter(is_round).count();
    let failed = lines.iter().find(|line| line.contains("FAILED"));
    assert_eq!(failed, None);
    vmm.expect_nth_line("guest: churn round", seen + LINES, LONG);
}

fn expect_done(vmm: &Vmm, api: &Api, job: &DiskJobInfo) {
    let job = api.expect_job(job, LONG);
    assert_eq!(job.state, DiskJobState::Done, "{:?}", job.error);
    expect_load(vmm);
}

fn overlay(path: &Path, below: &Path, format: &str) {
    let below = below.display().to_string();
    let words = ["create", "-q", "-f", "qcow2", "-b", &below, "-F", format];
    qemu_img(&words, &[path], &[]);
}

/// A `key=value` of the guest's line with `words`.
fn value(vmm: &Vmm, words: &str, key: &str) -> String {
    let line = vmm.expect_line(words, LONG);
    let mut pairs = line.split(' ').filter_map(|word| word.split_once('='));
    let found = pairs.find(|(name, _)| *name == key);
    found.expect("the key").1.to_owned()
}

#[test]
fn a_disk_under_load_stays_exact_while_its_layers_change() {
    let vmm = linux::boot("vmlinux", "skerry.do=churn");
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (base, mid, top) = (path("base.img"), path("mid.qcow2"), path("top.qcow2"));
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 4096 + at % 251) as u8).collect();
    std::fs::write(&base, content).expect("an image");
    let sum = disk::checksum(&base);
    overlay(&mid, &base, "raw");
    overlay(&top, &mid, "qcow2");
    let option = format!(
        "path={},backing=[{},raw:{}],num_queues=2",
        top.display(),
        mid.display(),
        base.display()
    );
    let vmm = vmm
        .flag("--cpus", "boot=2")
        .flag("--disk", option)
        .with_api()
        .start();
    vmm.expect_line("guest: churn running", LONG);
    let found = value(&vmm, "guest: churn found", "sum");
    assert_eq!(found, sum, "the guest found another base");
    let api = vmm.api();

    let (second, last) = (path("second.qcow2"), path("last.qcow2"));
    api.snapshot(DISK, &second);
    assert_eq!(api.layers(DISK), 4);
    expect_load(&vmm);

    api.with(async |c| c.resize_disk(DISK, GROWN).await)
        .expect("vm.resize-disk");
    vmm.expect_line("guest: disk vdb grew to 32M", LONG);
    expect_load(&vmm);

    expect_done(&vmm, &api, &api.commit(DISK, 1));
    assert_eq!(api.layers(DISK), 3);
    expect_done(&vmm, &api, &api.commit(DISK, 0));
    assert_eq!(api.layers(DISK), 2);
    api.snapshot(DISK, &last);
    expect_load(&vmm);
    expect_done(&vmm, &api, &api.stream(DISK, None));
    assert_eq!(api.layers(DISK), 1);

    api.act(Operation::VmPowerButton);
    let bytes = value(&vmm, "guest: churn ok", "size");
    assert_eq!(bytes, GROWN.to_string());
    let guest = value(&vmm, "guest: churn ok", "sum");
    let exit = vmm.wait(LONG);
    assert_eq!(exit.code, Some(0), "{exit}");

    qemu_img(&["check", "-q", "-f", "qcow2"], &[&last], &[]);
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&mid], &[]);
    let plain = path("plain.img");
    let convert = ["convert", "-O", "raw", "-f", "qcow2"];
    qemu_img(&convert, &[&last, &plain], &[]);
    assert_eq!(disk::checksum(&plain), guest, "the image holds other bytes");
    assert_eq!(disk::checksum(&base), sum, "the base was written");
}
