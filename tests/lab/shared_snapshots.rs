//! Linux in a snapshot with files open in a directory that virtiofsd serves, and on another virtiofsd afterwards.

use std::path::Path;
use std::process::Command;

use skerry_tests::back_end::Virtiofsd;
use skerry_tests::steady::full;
use skerry_tests::vmm::{Builder, LONG};
use skerry_tests::{eventually, linux};
use skerry_vmm_api::endpoints::Operation;
use tempfile::TempDir;

/// What the guest reads before the snapshot, and after it.
const FIRST: &str = "first";
const REST: u32 = 2 << 20;

/// The file `held` in a folder; the checksum of what the guest reads of it after the snapshot.
fn held(shared: &Path) -> String {
    let rest: Vec<u8> = (0..REST)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    let path = shared.join("held");
    std::fs::write(&path, &rest).expect("a file");
    let sum = Command::new("sha256sum").arg(&path).output();
    let sum = String::from_utf8_lossy(&sum.expect("sha256sum, of coreutils").stdout).into_owned();
    let whole = [FIRST.as_bytes(), b"\n", &rest].concat();
    std::fs::write(path, whole).expect("a file");
    sum.chars().take(64).collect()
}

/// Waits until the guest has counted on in the file `count`.
fn counts(shared: &Path) {
    let path = shared.join("count");
    let count = || -> Option<u64> { std::fs::read_to_string(&path).ok()?.trim().parse().ok() };
    let first = eventually("the guest counts", LONG, count);
    eventually("the guest counts on", LONG, || {
        count().filter(|now| *now > first + 3)
    });
}

#[test]
fn files_that_linux_has_open_stay_open_over_a_snapshot() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let shared = path("shared");
    std::fs::create_dir(&shared).expect("a folder");
    std::fs::write(shared.join("from-host"), "from the host\n").expect("a file");
    let sum = held(&shared);
    let root = linux::root_disk(path("root.ext4"));
    let server = Virtiofsd::start(&shared, &path("fs.sock"));
    let mut vmm = Builder::new(&["--serial", "tty"])
        .flag("--kernel", linux::file("vmlinux"))
        .flag("--initramfs", linux::file("initramfs.cpio"))
        .flag(
            "--cmdline",
            format!("{} skerry.fs=home skerry.do=shell", linux::COMMAND_LINE),
        )
        .flag("--memory", "size=256M")
        .flag("--disk", format!("path={}", root.display()))
        .flag(
            "--fs",
            format!("tag=home,socket={}", path("fs.sock").display()),
        )
        .with_api()
        .start();
    vmm.expect_line("guest: ready", LONG);
    // The terminal shows what is typed, too: what is waited for is put together by the shell.
    vmm.type_text("cd /run/home && exec 3<held 4>>log && read line <&3 && echo so:$line\n");
    vmm.expect_line(&format!("so:{FIRST}"), LONG);
    // Requests are under way when the snapshot is taken.
    vmm.type_text("(while :; do n=$((n + 1)); echo $n >count; done) &\n");
    counts(&shared);
    vmm.api()
        .with(async |c| c.snapshot(&full(&path("snap"))).await)
        .expect("vm.snapshot");
    // This guest goes on with the same back end.
    vmm.type_text("cat from-host >&4 && echo so:$(wc -l <log)\n");
    vmm.expect_line("so:1", LONG);
    drop(vmm);
    drop(server);
    let log = shared.join("log");
    assert_eq!(std::fs::read(&log).expect("a file"), b"from the host\n");
    // As it was at the snapshot, which is the host's business.
    std::fs::write(&log, "").expect("a file");
    for (clone, mode) in ["copy", "userfault"].into_iter().enumerate() {
        let socket = path(&format!("{mode}.sock"));
        let _server = Virtiofsd::start(&shared, &socket);
        let layers = path(mode);
        std::fs::create_dir(&layers).expect("a folder");
        let option = format!(
            "source_url=file://{},mode={mode},overlay_dir={},fs=[_fs0@{}]",
            path("snap").display(),
            layers.display(),
            socket.display()
        );
        let mut vmm = Builder::new(&["--serial", "tty"])
            .flag("--restore", option)
            .with_api()
            .start();
        // Nothing of it is to come from the guest's own cache.
        vmm.type_text("echo 3 >/proc/sys/vm/drop_caches; sha256sum <&3\n");
        vmm.expect_line(&sum, LONG);
        vmm.type_text("echo $((40 + 2)) >&4; ls / >new; echo so:$(wc -l <new)\n");
        vmm.expect_line("so:", LONG);
        counts(&shared);
        vmm.api().act(Operation::VmPowerButton);
        vmm.expect_line("guest: going down: poweroff", LONG);
        let exit = vmm.wait(LONG);
        assert_eq!(exit.code, Some(0), "{exit}");
        let lines = "42\n".repeat(clone + 1);
        assert_eq!(std::fs::read_to_string(&log).expect("a file"), lines);
        std::fs::remove_file(shared.join("new")).expect("the guest's file");
    }
}
