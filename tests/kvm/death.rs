//! The monitor dies in the middle of work on a disk's layers: the chain that was given still holds
//! every byte.

use std::path::PathBuf;
use std::time::Duration;

use skerry_tests::disk::{self, qemu_img};
use skerry_tests::vmm::{Builder, SHORT};
use skerry_vmm_api::endpoints::Operation;

const DISK: &str = "_disk0";
const SIZE: u64 = 48 << 20;

/// What is under way when the monitor dies, and after how long.
fn die_in(operation: Operation, body: &str, after: Duration) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    disk::create(&path("base.img"), SIZE);
    let mut below = (path("base.img"), "raw");
    let mut layers: Vec<PathBuf> = Vec::new();
    for name in ["low.qcow2", "mid.qcow2", "top.qcow2"] {
        let image = path(name);
        let name = below.0.display().to_string();
        let shape = "extended_l2=on,cluster_size=128k";
        qemu_img(
            &[
                "create", "-q", "-f", "qcow2", "-o", shape, "-b", &name, "-F", below.1,
            ],
            &[&image],
            &[],
        );
        layers.insert(0, image.clone());
        below = (image, "qcow2");
    }
    let chain = |layers: &[PathBuf]| {
        let below: Vec<String> = layers[1..]
            .iter()
            .map(|l| l.display().to_string())
            .collect();
        let base = path("base.img");
        let mut backing = below;
        backing.push(format!("raw:{}", base.display()));
        format!(
            "path={},backing=[{}]",
            layers[0].display(),
            backing.join(",")
        )
    };
    // A pattern in each layer, the whole of it over all of them.
    for i in (0..layers.len()).rev() {
        let limit = SIZE / 3 * (i as u64 + 1);
        Builder::payload(&format!("run=blk-verify:0:7:limit={limit}"))
            .flag("--disk", chain(&layers[i..]))
            .run()
            .all_ok(1);
    }
    let vmm = Builder::payload("run=blk-read-verify:0:7,blk-verify:0:7,spin:60000")
        .flag("--disk", chain(&layers))
        .with_api()
        .start();
    let api = vmm.api();
    vmm.expect_line("ok blk-verify", SHORT);
    let body = body.replace("FOLDER", &folder.path().display().to_string());
    let (status, answer) = api
        .with(async |c| c.raw(operation, body.into()).await)
        .expect("an answer");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    std::thread::sleep(after);
    drop(vmm);
    for layer in &layers {
        disk::check(layer);
    }
    let option = chain(&layers);
    Builder::payload("run=blk-read-verify:0:7")
        .flag("--disk", &option)
        .run()
        .all_ok(1);
    // And it can be written, and the work begun anew.
    Builder::payload("run=blk-verify:0:8")
        .flag("--disk", &option)
        .run()
        .all_ok(1);
    for layer in &layers {
        disk::check(layer);
    }
}

/// Moments from the beginning to beyond the end.
fn moments() -> impl Iterator<Item = Duration> {
    [0u64, 1, 3, 8, 20, 60, 250]
        .into_iter()
        .map(Duration::from_millis)
}

#[test]
fn of_merging_the_top_layer() {
    for after in moments() {
        die_in(
            Operation::VmDiskCommit,
            &format!(r#"{{"id":"{DISK}"}}"#),
            after,
        );
    }
}

#[test]
fn of_merging_a_layer_between() {
    for after in moments() {
        die_in(
            Operation::VmDiskCommit,
            &format!(r#"{{"id":"{DISK}","layer":2}}"#),
            after,
        );
    }
}

#[test]
fn of_drawing_layers_up() {
    for after in moments() {
        die_in(
            Operation::VmDiskStream,
            &format!(r#"{{"id":"{DISK}"}}"#),
            after,
        );
    }
}

#[test]
fn of_a_backup() {
    for after in moments().take(3) {
        let body = format!(r#"{{"id":"{DISK}","path":"FOLDER/backup.qcow2"}}"#);
        die_in(Operation::VmDiskBackup, &body, after);
    }
}
