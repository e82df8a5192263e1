//! A hostile guest: garbage in queues, registers and ports. The monitor lives, the other devices
//! work, and a device that was broken works again after its reset.

use skerry_tests::vmm::{Builder, Exit};
use skerry_tests::{Tap, disk};

fn machine(tasks: &str) -> Exit {
    let tap = Tap::new();
    let vmm = Builder::payload(tasks);
    let (path, socket) = (vmm.path("d"), vmm.path("v.sock"));
    disk::create(&path, 8 << 20);
    vmm.flag("--disk", format!("path={},num_queues=2", path.display()))
        .flag("--net", format!("tap={}", tap.name))
        .flag("--vsock", format!("cid=3,socket={}", socket.display()))
        .flag("--console", "null")
        .switch("--pvpanic")
        .run()
}

#[test]
fn garbage_in_queues() {
    for seed in 1..=3 {
        machine(&format!("run=fuzz-queue:{seed}:40,blk-verify,rng")).all_ok(3);
    }
}

#[test]
fn garbage_in_device_registers() {
    for seed in 1..=3 {
        machine(&format!("run=fuzz-config:{seed}:3000,blk-verify,rng")).all_ok(3);
    }
}

#[test]
fn garbage_in_pci_configuration_space() {
    for seed in 1..=3 {
        machine(&format!("run=fuzz-pci:{seed}:3000,blk-verify,rng")).all_ok(3);
    }
}

#[test]
fn garbage_in_port_space() {
    for seed in 1..=3 {
        let exit = machine(&format!("run=fuzz-pio:{seed}:3000,rng"));
        // The panic port is among the ports: writing 1 there is a guest's way to say it panicked.
        let panicked = exit.code == Some(4) && exit.errors.contains("panicked");
        if !panicked {
            exit.all_ok(2);
        }
    }
}

#[test]
fn a_guest_does_not_decide_how_much_is_logged() {
    let exit = machine("run=fuzz-queue:9:200");
    let lines = exit.errors.lines().count();
    assert!(lines < 40, "{lines} lines for one guest:\n{exit}");
}
