//! Disks come to a running machine and are given back by its guest.

use std::path::Path;

use skerry_tests::disk::{self, qemu_img};
use skerry_tests::steady::{full, restoring};
use skerry_tests::vmm::{Builder, SHORT, Vmm};
use skerry_tests::{Api, eventually};
use skerry_vmm_api::config::{DiskConfig, ImageType};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::{PciDeviceInfo, VmState};
use skerry_vmm_api::snapshots::{AfterSnapshot, VmSnapshot};
use tempfile::TempDir;

const SIZE: u64 = 2 << 20;

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

fn raw(folder: &TempDir, name: &str) -> DiskConfig {
    let path = folder.path().join(name);
    disk::create(&path, SIZE);
    DiskConfig {
        path,
        id: Some(name.to_owned()),
        ..DiskConfig::default()
    }
}

fn qcow2(folder: &TempDir, name: &str) -> DiskConfig {
    let path = folder.path().join(name);
    let size = SIZE.to_string();
    qemu_img(&["create", "-q", "-f", "qcow2"], &[&path], &[&size]);
    DiskConfig {
        path,
        id: Some(name.to_owned()),
        image_type: Some(ImageType::Qcow2),
        ..DiskConfig::default()
    }
}

fn add(api: &Api, disk: &DiskConfig) -> PciDeviceInfo {
    let added = api.with(async |c| c.add_disk(disk).await);
    added.expect("vm.add-disk").expect("where it is")
}

fn remove(api: &Api, id: &str) {
    api.with(async |c| c.remove_device(id).await)
        .expect("vm.remove-device");
}

fn ids(api: &Api) -> Vec<String> {
    let disks = api.info().config.disks.into_iter();
    disks.filter_map(|disk| disk.id).collect()
}

/// Waits until a device is gone.
fn expect_gone(api: &Api, id: &str) {
    eventually(&format!("{id} is gone"), SHORT, || {
        let info = api.info();
        let is_there = info.device_tree.contains_key(id)
            || info
                .config
                .disks
                .iter()
                .any(|d| d.id.as_deref() == Some(id));
        (!is_there).then_some(())
    });
}

/// Waits until the guest has filled the `n`th disk that came; the slot, and the sum of what it holds.
fn came(vmm: &Vmm, n: usize) -> (String, String) {
    let line = vmm.expect_nth_line("# hotplug: came", n, SHORT);
    let value = |key: &str| {
        let found = line.split(' ').find_map(|w| w.strip_prefix(key));
        found.expect("the key").to_owned()
    };
    (value("slot="), value("sum="))
}

fn listening(tasks: &str) -> Vmm {
    let vmm = Builder::payload(tasks).with_api().start();
    vmm.expect_line("# hotplug: listening", SHORT);
    vmm
}

/// Nobody has its lock.
fn is_free(path: &Path, format: &str) {
    qemu_img(&["resize", "-q", "-f", format], &[path], &["+1M"]);
}

#[test]
fn a_disk_comes_is_used_and_is_given_back() {
    let folder = folder();
    for tasks in [
        "run=hotplug",
        "run=hotplug:bars=0xd0000000",
        "run=hotplug:bars=0x800000000",
    ] {
        let vmm = listening(tasks);
        let api = vmm.api();
        let disks = [raw(&folder, "data"), qcow2(&folder, "more")];
        for (n, disk) in (1..).zip(&disks) {
            let added = add(&api, disk);
            assert_eq!(Some(&added.id), disk.id.as_ref());
            let (slot, _) = came(&vmm, n);
            let number: u8 = slot.parse().expect("a slot");
            assert_eq!(added.bdf, format!("0000:00:{number:02x}.0"));
            let node = &api.info().device_tree[&added.id];
            assert_eq!(node.pci_bdf.as_ref(), Some(&added.bdf));
        }
        assert_eq!(ids(&api), ["data", "more"]);
        for id in ["data", "more"] {
            remove(&api, id);
            expect_gone(&api, id);
        }
        let sum = came(&vmm, 1).1;
        assert_eq!(disk::checksum(&disks[0].path), sum);
        qemu_img(&["check", "-q", "-f", "qcow2"], &[&disks[1].path], &[]);
        let plain = folder.path().join("plain");
        let convert = ["convert", "-O", "raw", "-f", "qcow2"];
        qemu_img(&convert, &[&disks[1].path, &plain], &[]);
        assert_eq!(disk::checksum(&plain), sum);
        is_free(&disks[0].path, "raw");
        is_free(&disks[1].path, "qcow2");
        api.act(Operation::VmPowerButton);
        vmm.wait(SHORT).all_ok(1);
        std::fs::remove_file(&disks[1].path).expect("an image");
    }
}

#[test]
fn a_hundred_disks_leave_nothing_behind() {
    let folder = folder();
    let vmm = listening("run=hotplug:limit=65536");
    let api = vmm.api();
    let disk = qcow2(&folder, "data");
    let open = || {
        let path = format!("/proc/{}/fd", vmm.pid());
        std::fs::read_dir(path).expect("our child").count()
    };
    let mut before = 0;
    for n in 1..=100 {
        let added = add(&api, &disk);
        assert_eq!(added.bdf, "0000:00:02.0", "its slot is used again");
        came(&vmm, n);
        remove(&api, "data");
        expect_gone(&api, "data");
        if n == 2 {
            before = open();
        }
    }
    // The kernel's end of a descriptor may take a moment.
    eventually("as many descriptors as before", SHORT, || {
        (open() <= before).then_some(())
    });
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&disk.path], &[]);
    api.act(Operation::VmPowerButton);
    let exit = vmm.wait(SHORT);
    exit.all_ok(1);
    assert_eq!(exit.value("hotplug", "gone"), "100");
}

#[test]
fn only_what_the_host_asks_back_can_be_given_back() {
    let folder = folder();
    let path = folder.path().join("boot");
    disk::create(&path, SIZE);
    let tasks = "run=eject,eject:2,eject:4,blk-verify,pci,hotplug";
    let vmm = Builder::payload(tasks)
        .flag("--disk", format!("path={},id=boot", path.display()))
        .with_api()
        .start();
    vmm.expect_line("# hotplug: listening", SHORT);
    let api = vmm.api();
    assert_eq!(ids(&api), ["boot"]);
    // The disk that it was booted with, too, if it is asked for.
    remove(&api, "boot");
    expect_gone(&api, "boot");
    is_free(&path, "raw");
    api.act(Operation::VmPowerButton);
    vmm.wait(SHORT).all_ok(6);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    use Operation::{VmAddDisk, VmAddNet, VmRemoveDevice};
    let folder = folder();
    let vmm = listening("run=hotplug:keep=on");
    let api = vmm.api();
    let disk = raw(&folder, "data");
    let body = |disk: &DiskConfig| serde_json::to_string(disk).expect("JSON");
    add(&api, &disk);
    came(&vmm, 1);
    let other = raw(&folder, "other");
    let twice = DiskConfig {
        id: Some("data".into()),
        ..other.clone()
    };
    api.refused(VmAddDisk, &body(&twice), 409, &["`data`", "another id"]);
    let locked = DiskConfig {
        id: Some("again".into()),
        ..disk.clone()
    };
    api.refused(VmAddDisk, &body(&locked), 500, &["`again`", "data"]);
    let missing = DiskConfig {
        path: folder.path().join("nothing"),
        ..other.clone()
    };
    api.refused(
        VmAddDisk,
        &body(&missing),
        500,
        &["`other`", "No such file"],
    );
    let worker = DiskConfig {
        worker: Some("fast".into()),
        ..other.clone()
    };
    api.refused(VmAddDisk, &body(&worker), 400, &["worker=fast"]);
    api.refused(VmAddDisk, "{}", 400, &["path="]);
    api.refused(VmAddNet, r#"{"tap":"t"}"#, 405, &["only disks"]);
    api.refused(VmRemoveDevice, r#"{"id":"nothing"}"#, 404, &["`nothing`"]);
    api.refused(VmRemoveDevice, r#"{"id":"_rng"}"#, 405, &["only disks"]);
    assert_eq!(ids(&api), ["data"]);
    // A machine has so many slots.
    let full = (0..40).find_map(|n| {
        let disk = raw(&folder, &format!("d{n}"));
        let added = api.with(async |c| c.add_disk(&disk).await);
        added.err().map(|e| (n, e.to_string(), disk.path))
    });
    let (n, error, path) = full.expect("a full machine");
    assert_eq!(n, 29, "{error}");
    is_free(&path, "raw");
}

#[test]
fn a_disk_that_the_guest_keeps_is_gone_after_its_reboot_and_others_stay_where_they_are() {
    let folder = folder();
    let vmm = Builder::payload("run=pci,hotplug:keep=on")
        .flag(
            "--disk",
            format!("path={},id=boot", raw(&folder, "b").path.display()),
        )
        .with_api()
        .start();
    let api = vmm.api();
    vmm.expect_line("# hotplug: listening", SHORT);
    let disks = [raw(&folder, "one"), raw(&folder, "two")];
    for (n, disk) in (1..).zip(&disks) {
        add(&api, disk);
        came(&vmm, n);
    }
    let two = api.info().device_tree["two"].clone();
    for n in 1..=2 {
        // It may be asked again.
        remove(&api, "one");
        vmm.expect_nth_line("# hotplug: keeps", n, SHORT);
        assert_eq!(ids(&api), ["boot", "one", "two"]);
    }
    api.act(Operation::VmReboot);
    vmm.expect_nth_line("# hotplug: listening", 2, SHORT);
    assert_eq!(ids(&api), ["boot", "two"]);
    assert_eq!(api.info().device_tree["two"], two);
    is_free(&disks[0].path, "raw");
    let functions = vmm.expect_nth_line("ok pci", 2, SHORT);
    assert!(functions.contains("virtio=3"), "{functions}");
}

#[test]
fn a_disk_that_came_goes_on_in_snapshots_and_is_given_back_there() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    disk::create(&path("boot"), SIZE);
    let vmm = Builder::payload("run=hotplug")
        .flag("--disk", format!("path={},id=boot", path("boot").display()))
        .with_api()
        .start();
    vmm.expect_line("# hotplug: listening", SHORT);
    let api = vmm.api();
    let disks = [qcow2(&folder, "one"), qcow2(&folder, "two")];
    for (n, disk) in (1..).zip(&disks) {
        add(&api, disk);
        came(&vmm, n);
    }
    // What is left is not in the order of its slots.
    for id in ["boot", "one"] {
        remove(&api, id);
        expect_gone(&api, id);
    }
    let before = api.info().device_tree;
    api.keep(&VmSnapshot {
        after: AfterSnapshot::Stop,
        ..full(&path("snap"))
    });
    assert_eq!(api.info().state, VmState::Shutdown);
    drop(vmm);
    let vmm = restoring(&path("snap"), "in_place=on").start();
    let api = vmm.api();
    assert_eq!(api.info().device_tree, before);
    add(&api, &disks[0]);
    // The guest's messages begin anew with the monitor.
    came(&vmm, 1);
    for id in ["one", "two"] {
        remove(&api, id);
        expect_gone(&api, id);
    }
    api.act(Operation::VmPowerButton);
    vmm.wait(SHORT).all_ok(1);
    for disk in &disks {
        qemu_img(&["check", "-q", "-f", "qcow2"], &[&disk.path], &[]);
    }
}
