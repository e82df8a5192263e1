//! Layers come and go under a guest that writes and checks what it wrote.

use std::path::{Path, PathBuf};

use skerry_tests::disk::{self, qemu_img};
use skerry_tests::vmm::{Builder, SHORT, Vmm};
use skerry_tests::{Api, Exit};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::{DiskJobState, VmDiskBackup, VmDiskBitmap};

const DISK: &str = "_disk0";

/// A guest on a chain of `layers` empty overlays over a raw base, and its folder.
struct Churn {
    folder: tempfile::TempDir,
    vmm: Vmm,
    api: Api,
}

fn rounds(n: usize) -> String {
    let tasks: Vec<String> = (1..=n)
        .map(|i| format!("blk-verify:0:{i}:depth=16"))
        .collect();
    // The guest stays until what is done to its disk meanwhile has ended, also on a busy host.
    format!("run={},spin:5000,blk-sum", tasks.join(","))
}

impl Churn {
    fn start(layers: usize, tasks: &str) -> Churn {
        let folder = tempfile::TempDir::new().expect("a folder");
        let base = folder.path().join("base.img");
        disk::create(&base, 24 << 20);
        let mut below = (base.clone(), "raw");
        let mut chain = vec![format!("raw:{}", base.display())];
        for i in 0..layers {
            let path = folder.path().join(format!("layer{i}.qcow2"));
            let name = below.0.display().to_string();
            let shape = if i % 2 == 0 {
                "extended_l2=on,cluster_size=128k"
            } else {
                "cluster_size=64k"
            };
            qemu_img(
                &[
                    "create", "-q", "-f", "qcow2", "-o", shape, "-b", &name, "-F", below.1,
                ],
                &[&path],
                &[],
            );
            chain.insert(0, path.display().to_string());
            below = (path, "qcow2");
        }
        let option = if layers == 0 {
            format!("path={}", base.display())
        } else {
            format!(
                "path={},backing=[{}],num_queues=2",
                chain[0],
                chain[1..].join(",")
            )
        };
        let vmm = Builder::payload(tasks)
            .flag("--disk", option)
            .with_api()
            .start();
        let api = vmm.api();
        Churn { folder, vmm, api }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits for a job and expects it done.
    fn done(&self, job: skerry_vmm_api::requests::DiskJobInfo) {
        let job = self.api.expect_job(&job, SHORT);
        assert_eq!(job.state, DiskJobState::Done, "{:?}", job.error);
    }

    /// Lets the guest end, and compares what it saw with the chain under `top`.
    fn end(self, tasks: usize, top: &Path) -> (Exit, tempfile::TempDir) {
        let exit = self.vmm.wait(SHORT);
        exit.all_ok(tasks);
        qemu_img(&["check", "-q", "-f", "qcow2"], &[top], &[]);
        let plain = top.with_extension("plain");
        qemu_img(
            &["convert", "-O", "raw", "-f", "qcow2"],
            &[top, &plain],
            &[],
        );
        assert_eq!(exit.value("blk-sum", "fnv1a"), disk::checksum(&plain));
        (exit, self.folder)
    }
}

#[test]
fn a_snapshot_freezes_what_is_below() {
    let churn = Churn::start(1, &rounds(8));
    churn.vmm.expect_line("ok blk-verify", SHORT);
    let mut frozen = Vec::new();
    for i in 0..3 {
        let path = churn.path(&format!("snap{i}.qcow2"));
        let info = churn.api.snapshot(DISK, &path);
        assert_eq!(info.layers[0].path, path);
        assert_eq!(info.layers.len(), 3 + i);
        let below = info.layers[1].path.clone();
        // Our lock is a reader's now, so others may read it.
        qemu_img(&["check", "-q", "-U", "-f", "qcow2"], &[&below], &[]);
        frozen.push((disk::checksum(&below), below));
    }
    let top = churn.path("snap2.qcow2");
    let _folder = churn.end(10, &top);
    for (sum, path) in frozen {
        assert_eq!(disk::checksum(&path), sum, "{} was written", path.display());
    }
}

#[test]
fn layers_are_merged_down_and_drawn_up() {
    let churn = Churn::start(3, &rounds(14));
    churn.vmm.expect_line("ok blk-verify", SHORT);
    // The middle one, the top one, then a new top, then all into one.
    churn.done(churn.api.commit(DISK, 1));
    assert_eq!(churn.api.layers(DISK), 3);
    churn.done(churn.api.commit(DISK, 0));
    assert_eq!(churn.api.layers(DISK), 2);
    let top = churn.path("new.qcow2");
    churn.api.snapshot(DISK, &top);
    churn.done(churn.api.stream(DISK, None));
    assert_eq!(churn.api.layers(DISK), 1);
    let info = churn.api.info();
    assert_eq!(info.config.disks[0].path, top);
    assert!(info.config.disks[0].backing.is_empty());
    churn.end(16, &top);
}

#[test]
fn a_raw_disk_takes_a_layer_and_gives_it_back() {
    let churn = Churn::start(0, &rounds(8));
    churn.vmm.expect_line("ok blk-verify", SHORT);
    churn.api.snapshot(DISK, &churn.path("top.qcow2"));
    churn.vmm.expect_nth_line("ok blk-verify", 2, SHORT);
    churn.done(churn.api.commit(DISK, 0));
    assert_eq!(churn.api.layers(DISK), 1);
    let base = churn.path("base.img");
    let exit = churn.vmm.wait(SHORT);
    exit.all_ok(10);
    assert_eq!(exit.value("blk-sum", "fnv1a"), disk::checksum(&base));
}

#[test]
fn a_backup_is_the_disk_at_its_moment_and_the_next_one_only_what_changed() {
    let churn = Churn::start(
        1,
        "run=blk-verify:0:1,spin:4000,blk-verify:0:2:limit=1000000,spin:6000,blk-sum",
    );
    let bitmap = VmDiskBitmap {
        id: DISK.into(),
        name: "daily".into(),
        granularity: None,
    };
    let add = Operation::VmDiskBitmapAdd;
    churn
        .api
        .with(async |c| c.disk_bitmap(add, &bitmap).await)
        .expect("a bitmap");
    churn.vmm.expect_line("ok blk-verify", SHORT);
    let (full, increment) = (churn.path("full.qcow2"), churn.path("increment.qcow2"));
    let backup = |path: &PathBuf, backing: Option<&PathBuf>| {
        let backup = VmDiskBackup {
            id: DISK.into(),
            path: path.clone(),
            bitmap: Some("daily".into()),
            backing: backing.cloned(),
        };
        let job = churn
            .api
            .with(async |c| c.disk_backup(&backup).await)
            .expect("vm.disk-backup");
        churn.done(job);
    };
    backup(&full, None);
    assert!(!full.with_extension("qcow2.partial").exists());
    churn.vmm.expect_nth_line("ok blk-verify", 2, SHORT);
    backup(&increment, Some(&full));
    for image in [&full, &increment] {
        qemu_img(&["check", "-q", "-f", "qcow2"], &[image], &[]);
    }
    let small = std::fs::metadata(&increment).expect("the increment").len();
    assert!(small < 3 << 20, "an increment of {small} bytes");
    let plain = churn.path("plain.img");
    qemu_img(
        &["convert", "-O", "raw", "-f", "qcow2"],
        &[&increment, &plain],
        &[],
    );
    // The bitmap goes on in a new layer, and is in the image when the guest has ended.
    let top = churn.path("top.qcow2");
    churn.api.snapshot(DISK, &top);
    let folder = churn.folder;
    let exit = churn.vmm.wait(SHORT);
    exit.all_ok(5);
    assert_eq!(exit.value("blk-sum", "fnv1a"), disk::checksum(&plain));
    let info = qemu_img(&["info", "--output=json", "-f", "qcow2"], &[&top], &[]);
    assert!(
        info.contains("\"daily\"") && info.contains("\"auto\""),
        "{info}"
    );
    assert!(!info.contains("in-use"), "{info}");
    drop(folder);
}

#[test]
fn a_disk_grows_while_the_guest_runs() {
    let churn = Churn::start(
        2,
        "run=blk-verify:0:1,spin:5000,blk-verify:0:2,blk-sum,blk-info",
    );
    churn.vmm.expect_line("ok blk-verify", SHORT);
    let grow = |size: u64| churn.api.with(async |c| c.resize_disk(DISK, size).await);
    grow(40 << 20).expect("vm.resize-disk");
    let refused = grow(1000).expect_err("an odd size");
    assert!(refused.to_string().contains("multiple of 512"), "{refused}");
    let top = churn.path("layer1.qcow2");
    let (exit, _folder) = churn.end(5, &top);
    assert_eq!(exit.value("blk-verify", "bytes"), (24u64 << 20).to_string());
}

#[test]
fn a_job_is_cancelled_and_the_next_request_says_what_is_under_way() {
    let churn = Churn::start(2, &rounds(10));
    churn.vmm.expect_nth_line("ok blk-verify", 2, SHORT);
    let job = churn.api.stream(DISK, None);
    let body = format!(r#"{{"id":"{DISK}","layer":0}}"#);
    let second = churn
        .api
        .with(async |c| c.raw(Operation::VmDiskCommit, body.into()).await);
    let (status, answer) = second.expect("an answer");
    let text = String::from_utf8_lossy(&answer).into_owned();
    if status == 409 {
        assert!(
            text.contains("under way") && text.contains("vm.disk-cancel"),
            "{text}"
        );
        churn
            .api
            .with(async |c| c.disk_cancel(job.job).await)
            .expect("cancelled");
    }
    let ended = churn.api.expect_job(&job, SHORT);
    assert!(
        matches!(ended.state, DiskJobState::Cancelled | DiskJobState::Done),
        "{ended:?}"
    );
    churn.api.refused(
        Operation::VmDiskCancel,
        r#"{"job":99}"#,
        404,
        &["99", "vm.disk-jobs"],
    );
    churn.api.refused(
        Operation::VmDiskStream,
        r#"{"id":"none"}"#,
        404,
        &["`none`", "vm.disks"],
    );
    churn.api.refused(
        Operation::VmDiskSnapshot,
        &format!(r#"{{"id":"{DISK}","path":"/no/such/dir/x"}}"#),
        500,
        &["/no/such/dir/x"],
    );
    let top = churn.path("layer1.qcow2");
    churn.end(12, &top);
}

#[test]
fn a_reboot_opens_the_layers_that_there_are_by_then() {
    let churn = Churn::start(1, "run=blk-verify:0:1,spin:3000");
    churn.vmm.expect_line("ok blk-verify", SHORT);
    let top = churn.path("top.qcow2");
    churn.api.snapshot(DISK, &top);
    churn.api.act(Operation::VmReboot);
    assert_eq!(churn.api.layers(DISK), 3);
    // The configuration says so in JSON that vm.create takes.
    let disk = churn.api.info().config.disks.remove(0);
    let json = serde_json::to_string(&disk).expect("JSON");
    assert!(
        json.contains(r#""image_type":"Qcow2""#) && json.contains("base.img"),
        "{json}"
    );
    let again: skerry_vmm_api::config::DiskConfig = serde_json::from_str(&json).expect("a disk");
    assert_eq!(again, disk);
    churn.vmm.expect_nth_line("ok blk-verify", 2, SHORT);
    let exit = churn.vmm.wait(SHORT);
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&top], &[]);
    let map = qemu_img(&["map", "-f", "qcow2", "--output=json"], &[&top], &[]);
    assert!(map.contains("\"depth\": 0, \"present\": true"), "{map}");
}
