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

/// Boots a changed copy of a kernel.
fn boot_copy(kernel: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut image = std::fs::read(linux::file(kernel)).expect("the kernel");
    change(&mut image);
    let copy = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(copy.path(), image).expect("written");
    let exit = linux::boot_path(copy.path(), "skerry.do=poweroff")
        .start()
        .wait(LONG);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(exit.serial.iter().any(|l| l == "guest: ready"), "{exit}");
}

#[test]
fn a_bzimage_packed_in_an_unknown_way_unpacks_itself() {
    // The header then points beside the payload, which the kernel's own code finds all the same.
    const PAYLOAD_OFFSET: usize = 0x248;
    boot_copy("vmlinuz", |image| image[PAYLOAD_OFFSET] ^= 1);
}

#[test]
fn an_elf_without_a_pvh_entry_starts_at_its_64_bit_entry() {
    // The note of the PVH entry: name size 4, any description size, type 18, "Xen".
    boot_copy("vmlinux", |image| {
        let note = (0..image.len() - 16).step_by(4).find(|at| {
            image[*at..at + 4] == [4, 0, 0, 0] && image[at + 8..at + 16] == *b"\x12\0\0\0Xen\0"
        });
        image[note.expect("a PVH note") + 8] = 0x77;
    });
}
