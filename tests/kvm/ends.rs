//! How machines end: power off, reset, panic, signals.

use skerry_tests::vmm::{Builder, SHORT};

#[test]
fn a_power_off_ends_the_monitor_with_0() {
    Builder::payload("off=acpi").run().all_ok(0);
}

#[test]
fn a_reset_starts_the_machine_again() {
    for reset in ["reset", "i8042", "triple"] {
        let vmm = Builder::payload(&format!("off={reset}")).start();
        vmm.expect_nth_line("skerry-payload: hello", 3, SHORT);
    }
}

#[test]
fn a_reset_ends_the_monitor_when_told_so() {
    for reset in ["reset", "i8042", "triple"] {
        let vmm = Builder::payload(&format!("off={reset}"));
        let exit = vmm.switch("--no-reboot").run();
        assert_eq!(exit.code, Some(0), "{exit}");
    }
}

#[test]
fn a_panic_ends_the_monitor_with_4() {
    let exit = Builder::payload("off=panic").switch("--pvpanic").run();
    exit.refused(4, &["panicked"]);
}

#[test]
fn a_signal_ends_a_spinning_machine_in_order() {
    let vmm = Builder::payload("off=spin").start();
    vmm.expect_line("done", SHORT);
    vmm.terminate();
    assert_eq!(vmm.wait(SHORT).code, Some(0));
}

#[test]
fn a_halted_machine_ends_by_a_signal_too() {
    let vmm = Builder::payload("off=hlt").flag("--cpus", "boot=4").start();
    vmm.expect_line("done", SHORT);
    vmm.terminate();
    assert_eq!(vmm.wait(SHORT).code, Some(0));
}
