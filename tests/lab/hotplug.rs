//! Disks that come to a running Linux and go: what ACPI tells it is enough for its own drivers.

use std::process::Command;

use skerry_tests::vmm::{LONG, Vmm};
use skerry_tests::{Api, disk, eventually, linux};
use skerry_vmm_api::config::DiskConfig;

/// More than the least that ext4 wants.
const SIZE: u64 = 16 << 20;

/// Types a command line, and waits until it has succeeded.
fn shell(vmm: &mut Vmm, n: usize, line: &str) {
    // What is typed is shown, too, and must not be taken for what is said.
    vmm.type_text(&format!("{line} && echo step {n} is $((6 * 7))\n"));
    vmm.expect_line(&format!("step {n} is 42"), LONG);
}

fn remove(api: &Api, id: &str) {
    api.with(async |c| c.remove_device(id).await)
        .expect("vm.remove-device");
    eventually("the guest gives it back", LONG, || {
        (!api.info().device_tree.contains_key(id)).then_some(())
    });
}

#[test]
fn a_disk_appears_is_mounted_and_goes() {
    let vmm = linux::boot("vmlinux", "skerry.do=shell").with_api();
    let image = vmm.path("data.img");
    disk::create(&image, SIZE);
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
    assert!(made.expect("mkfs.ext4, of e2fsprogs").success());
    let mut vmm = vmm.start();
    vmm.expect_line("guest: ready", LONG);
    let api = vmm.api();
    let config = DiskConfig {
        path: image.clone(),
        id: Some("data".into()),
        ..DiskConfig::default()
    };
    // Each time it is as the guest left it.
    for round in 0..2 {
        let added = api.with(async |c| c.add_disk(&config).await);
        added.expect("vm.add-disk");
        let wait = "until [ -e /dev/vdb ]; do sleep 1; done";
        shell(&mut vmm, 3 * round, wait);
        let write =
            format!("mount -t ext4 /dev/vdb /mnt && echo round {round} >>/mnt/said && umount /mnt");
        shell(&mut vmm, 3 * round + 1, &write);
        remove(&api, "data");
        shell(&mut vmm, 3 * round + 2, "[ ! -e /dev/vdb ]");
    }
    let said = Command::new("debugfs")
        .args(["-R", "cat /said"])
        .arg(&image)
        .output()
        .expect("debugfs, of e2fsprogs");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "round 0\nround 1\n");
}
