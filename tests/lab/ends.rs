//! How Linux ends: reboot, panic.

use skerry_tests::linux;
use skerry_tests::vmm::LONG;

#[test]
fn a_reboot_boots_again_from_the_same_disk() {
    let vmm = linux::boot("vmlinux", "skerry.do=reboot").start();
    vmm.expect_nth_line("guest: ready", 2, LONG);
    vmm.terminate();
    assert_eq!(vmm.wait(LONG).code, Some(0));
}

#[test]
fn a_panic_is_reported_and_ends_the_monitor() {
    // pvpanic where Debian's kernel has its driver; a reset by the panic itself where not.
    let exit = linux::boot("vmlinux", "skerry.do=panic")
        .switch("--pvpanic")
        .switch("--no-reboot")
        .start()
        .wait(LONG);
    assert!(
        exit.serial.iter().any(|l| l.contains("Kernel panic")),
        "{exit}"
    );
    assert!(matches!(exit.code, Some(0 | 4)), "{exit}");
}
