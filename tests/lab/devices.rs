//! A guest with everything: every device works beside the others, and a disk is exact.

use std::process::Command;
use std::time::Duration;

use skerry_tests::vmm::LONG;
use skerry_tests::vsock::{connect, echo};
use skerry_tests::{Tap, disk, linux};

#[test]
fn four_cpus_two_disks_two_nets_vsock_rng_and_console() {
    let (one, two) = (Tap::new(), Tap::multi_queue());
    let words = format!(
        "console=hvc0 skerry.ip={}/24 skerry.ip1={}/24 skerry.do=verify",
        one.guest(),
        two.guest()
    );
    let vmm = linux::boot("vmlinux", &words);
    let (data, vsock, console) = (
        vmm.path("data.img"),
        vmm.path("v.sock"),
        vmm.path("console"),
    );
    disk::create(&data, 64 << 20);
    let vmm = vmm
        .flag("--cpus", "boot=4")
        .flag(
            "--disk",
            format!("path={},num_queues=4,serial=scratch", data.display()),
        )
        .flag("--net", format!("tap={}", one.name))
        .flag("--net", format!("tap={},num_queues=4", two.name))
        .flag("--vsock", format!("cid=3,socket={}", vsock.display()))
        .flag("--console", format!("file={}", console.display()))
        .with_api()
        .start();
    vmm.expect_line("guest: ready", LONG);
    vmm.expect_line("guest: cpus 4", LONG);
    vmm.expect_line("guest: disk vdb 64M", LONG);
    vmm.expect_line(&format!("guest: address eth0 {}", one.guest()), LONG);
    vmm.expect_line(&format!("guest: address eth1 {}", two.guest()), LONG);
    vmm.expect_line("guest: rng ok", LONG);
    for tap in [&one, &two] {
        ping(&tap.guest());
    }
    let mut stream = connect(&vsock, 5000, LONG);
    let data_out: Vec<u8> = (0..256u32 << 10)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    echo(&mut stream, &data_out);
    vmm.expect_line("guest: verify ok bytes=67108864", LONG);
    let seen = std::fs::read_to_string(&console).expect("the console's file");
    assert!(seen.contains("guest: ready"), "the console shows:\n{seen}");
    vmm.api()
        .act(skerry_vmm_api::endpoints::Operation::VmPowerButton);
    vmm.expect_line("guest: going down: poweroff", LONG);
    assert_eq!(vmm.wait(LONG).code, Some(0));
}

fn ping(address: &str) {
    skerry_tests::eventually(
        &format!("{address} answers"),
        Duration::from_secs(30),
        || {
            let output = Command::new("ping")
                .args(["-c", "1", "-W", "5", address])
                .output()
                .expect("ping, of iputils-ping");
            output.status.success().then_some(())
        },
    );
}
