//! Both kinds of kernel reach user space.

use skerry_tests::linux;
use skerry_tests::vmm::LONG;

#[test]
fn a_pvh_elf_boots_and_powers_off() {
    let exit = linux::boot("vmlinux", "skerry.do=poweroff")
        .start()
        .wait(LONG);
    assert_eq!(exit.code, Some(0), "{exit}");
    for line in [
        "guest: kernel 6.",
        "guest: disk vda 64M ext4 label skerry-root",
        "guest: rng ok",
        "guest: ready",
    ] {
        assert!(
            exit.serial.iter().any(|l| l.starts_with(line)),
            "no `{line}` in:\n{exit}"
        );
    }
}

#[test]
fn a_bzimage_boots_and_powers_off() {
    let exit = linux::boot("vmlinuz", "skerry.do=poweroff")
        .start()
        .wait(LONG);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(exit.serial.iter().any(|l| l == "guest: ready"), "{exit}");
}
