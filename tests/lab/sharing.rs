//! Directories and networks that others serve: virtiofsd, also by a host, and the host's kernel.

use std::process::Command;
use std::time::Duration;

use skerry_tests::back_end::Virtiofsd;
use skerry_tests::host::Host;
use skerry_tests::vmm::{LONG, Vmm};
use skerry_tests::{Tap, disk, eventually, linux};
use skerry_vmm_api::endpoints::Operation;

fn power_off(vmm: Vmm) {
    vmm.api().act(Operation::VmPowerButton);
    vmm.expect_line("guest: going down: poweroff", LONG);
    let exit = vmm.wait(LONG);
    assert_eq!(exit.code, Some(0), "{exit}");
}

#[test]
fn virtiofsd_shares_a_directory_both_ways() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (shared, socket) = (folder.path().join("shared"), folder.path().join("fs.sock"));
    std::fs::create_dir(&shared).expect("a folder");
    let content: Vec<u8> = (0..3u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8)
        .collect();
    std::fs::write(shared.join("from-host"), &content).expect("a file");
    let _server = Virtiofsd::start(&shared, &socket);
    let option = format!("tag=home,socket={}", socket.display());
    let vmm = linux::boot("vmlinux", "skerry.fs=home")
        .flag("--fs", option)
        .with_api()
        .start();
    let line = vmm.expect_line("guest: fs home", LONG);
    let sum = Command::new("sha256sum")
        .arg(shared.join("from-host"))
        .output()
        .expect("sha256sum, of coreutils");
    let sum = String::from_utf8_lossy(&sum.stdout)
        .chars()
        .take(64)
        .collect::<String>();
    assert!(
        line.contains(&format!("sum={sum}")),
        "{line}, and not {sum}"
    );
    vmm.expect_line("guest: ready", LONG);
    power_off(vmm);
    let back = std::fs::read(shared.join("from-guest")).expect("the guest's file");
    assert!(back == content, "the guest left other bytes");
}

#[test]
fn a_declared_vm_shares_directories_with_its_host() {
    let host = Host::machine_for_linux();
    for tag in ["home", "books"] {
        let folder = host.path("shared").join(tag);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("from-host"), tag).expect("a file");
    }
    let source = |tag: &str| host.path("shared").join(tag).display().to_string();
    let manifest = format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 memory: 512Mi\n\
         \x20 boot: {{kernel: {}, initramfs: {}, cmdline: \"{} skerry.fs=home skerry.fs=books\"}}\n\
         \x20 disks: [{{name: root, base: {}, format: raw}}]\n\
         \x20 shares:\n\
         \x20 - {{tag: home, source: {}}}\n\
         \x20 - {{tag: books, source: {}, readOnly: true}}\n",
        linux::file("vmlinux").display(),
        linux::file("initramfs.cpio").display(),
        linux::COMMAND_LINE,
        linux::root_disk(host.path("root.ext4")).display(),
        source("home"),
        source("books"),
    );
    host.must(&["apply", "-f", &host.manifest(&manifest)]);
    let said = eventually("the guest is ready", LONG, || {
        let said = host.skerry(&["logs", "vm/web"]).out;
        said.contains("guest: ready").then_some(said)
    });
    let line = |tag: &str| {
        let start = format!("guest: fs {tag} ");
        let found = said.lines().find(|line| line.contains(&start));
        found.unwrap_or_else(|| panic!("no {start} in {said}"))
    };
    assert!(line("home").contains("sum=") && !line("home").contains("not written"));
    assert!(line("books").contains("not written: "), "{}", line("books"));
    assert!(line("books").contains("Read-only"), "{}", line("books"));
    let written = |tag: &str| std::fs::read(host.path("shared").join(tag).join("from-guest"));
    assert_eq!(written("home").expect("the guest's file"), b"home");
    assert!(written("books").is_err());
    host.must(&["delete", "vm/web", "--grace", "0"]);
}

#[test]
fn the_kernel_moves_the_frames_of_a_network() {
    let tap = Tap::new();
    let vmm = linux::boot("vmlinux", &format!("skerry.ip={}/24", tap.guest()))
        .flag("--net", format!("tap={},vhost=on", tap.name))
        .with_api()
        .start();
    vmm.expect_line("guest: ready", LONG);
    for bytes in ["56", "1400"] {
        let ping = || {
            let output = Command::new("ping")
                .args(["-c", "3", "-W", "5", "-s", bytes, &tap.guest()])
                .output()
                .expect("ping, of iputils-ping");
            output.status.success().then_some(())
        };
        eventually("the guest answers", Duration::from_secs(60), ping);
    }
    // Queues are taken back from the kernel and given to it again.
    for _ in 0..3 {
        vmm.api().act(Operation::VmPause);
        vmm.api().act(Operation::VmResume);
    }
    let ping = Command::new("ping")
        .args(["-c", "2", "-W", "5", &tap.guest()])
        .output();
    assert!(ping.expect("ping").status.success());
    power_off(vmm);
}

#[test]
fn linux_uses_a_disk_in_every_way_of_waiting() {
    let vmm = linux::boot("vmlinux", "skerry.do=verify,churn skerry.churn-rounds=6");
    let data = vmm.path("data.img");
    disk::create(&data, 24 << 20);
    let vmm = vmm
        .flag("--cpus", "boot=2")
        .flag("--worker", "name=events,poll-max-ns=0")
        .flag("--worker", "name=polled,poll-max-ns=inf")
        .flag("--worker", "name=adaptive,poll-max-ns=100000")
        .flag(
            "--disk",
            format!("path={},num_queues=2,worker=events", data.display()),
        )
        .with_api()
        .start();
    vmm.expect_line("guest: ready", LONG);
    let api = vmm.api();
    let go_to = |worker: &str| {
        api.with(async |c| c.move_queues("_disk1", None, worker).await)
            .expect("vm.move-queues");
    };
    // Each part of the load sees every way, in the middle of it.
    let mut moved = 0;
    let verified = eventually("the load ends", LONG, || {
        go_to(["polled", "adaptive", "events"][moved % 3]);
        moved += 1;
        let lines = vmm.lines();
        let failed = lines
            .iter()
            .find(|l| l.contains("FAILED") || l.contains("verify fail"));
        assert_eq!(failed, None);
        lines
            .iter()
            .any(|l| l.contains("guest: churn ok"))
            .then_some(moved)
    });
    assert!(verified >= 3, "{verified} moves");
    vmm.expect_line("guest: verify ok", LONG);
    power_off(vmm);
}
