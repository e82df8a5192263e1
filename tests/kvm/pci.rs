//! The PCI bus and its interrupts.

use skerry_tests::disk;
use skerry_tests::vmm::Builder;

#[test]
fn every_device_is_found_by_ecam_and_by_ports() {
    let vmm = Builder::payload("run=pci").flag("--console", "null");
    let disk = vmm.path("d");
    disk::create(&disk, 1 << 20);
    let socket = format!("cid=3,socket={}", vmm.path("v").display());
    let exit = vmm
        .flag("--disk", format!("path={}", disk.display()))
        .flag("--vsock", socket)
        .run();
    exit.all_ok(1);
    assert_eq!(exit.value("pci", "virtio"), "4", "{exit}");
}

#[test]
fn a_masked_vector_is_pending_and_arrives_when_unmasked() {
    let vmm = Builder::payload("run=msix-mask");
    let disk = vmm.path("d");
    disk::create(&disk, 1 << 20);
    vmm.flag("--disk", format!("path={}", disk.display()))
        .run()
        .all_ok(1);
}
