//! A Linux guest under load that checks itself: a disk and memory whose content it knows, a timer, datagrams
//! that come back, and a vsock port that gives back what it is sent.

use std::path::{Path, PathBuf};

use skerry_tests::datagrams::UdpEcho;
use skerry_tests::disk::{self, qemu_img};
use skerry_tests::vmm::{Builder, LONG, Vmm};
use skerry_tests::vsock::{connect, echo};
use skerry_tests::{Bridge, linux};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use tempfile::TempDir;

/// The guest's second disk, which it writes and checks.
pub const DISK: &str = "_disk1";
const SIZE: u64 = 24 << 20;
const LINE: &str = "guest: churn round";
/// Its port that gives back what it is sent.
const PORT: u32 = 5000;

/// What outlives the guest's monitors: its disks, its network, the server that it sends datagrams to.
pub struct Loaded {
    _server: UdpEcho,
    /// Its first tap is the guest's, the second one that of a target of a migration.
    pub bridge: Bridge,
    folder: TempDir,
}

impl Loaded {
    /// A guest that works, and what it works with.
    pub fn start() -> (Loaded, Vmm) {
        let folder = TempDir::new().expect("a folder");
        let disk = folder.path().join("data.qcow2");
        let size = SIZE.to_string();
        qemu_img(&["create", "-q", "-f", "qcow2"], &[&disk], &[&size]);
        let root = linux::root_disk(folder.path().join("root.ext4"));
        let bridge = Bridge::new();
        let server = UdpEcho::start(&bridge.host());
        let words = format!(
            "{} skerry.do=churn skerry.ip={}/24 skerry.churn-echo={}",
            linux::COMMAND_LINE,
            bridge.guest(),
            server.at
        );
        let loaded = Loaded {
            _server: server,
            bridge,
            folder,
        };
        let vmm = Builder::new(&["--serial", "tty"])
            .flag("--kernel", linux::file("vmlinux"))
            .flag("--initramfs", linux::file("initramfs.cpio"))
            .flag("--cmdline", words)
            .flag("--memory", "size=96M")
            .flag("--disk", format!("path={}", root.display()))
            .flag(
                "--disk",
                format!("path={},image_type=qcow2", disk.display()),
            )
            .flag("--net", format!("id=net,tap={}", loaded.bridge.taps[0]))
            .flag(
                "--vsock",
                format!("cid=3,socket={}", loaded.socket().display()),
            )
            .with_api()
            .start();
        vmm.expect_line("guest: churn running", LONG);
        loaded.works(&vmm);
        (loaded, vmm)
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The socket of its vsock.
    pub fn socket(&self) -> PathBuf {
        self.path("vsock")
    }

    /// A new process that goes on from a snapshot, on new layers in the folder `overlays`.
    pub fn restored(&self, from: &Path, mode: &str, overlays: &Path) -> Vmm {
        std::fs::create_dir_all(overlays).expect("a folder");
        let option = format!(
            "source_url=file://{},mode={mode},overlay_dir={}",
            from.display(),
            overlays.display()
        );
        Builder::new(&["--serial", "tty"])
            .flag("--restore", option)
            .with_api()
            .start()
    }

    /// Waits until the guest has done and checked more of everything, from now on.
    pub fn works(&self, vmm: &Vmm) {
        self.works_through(vmm, &self.socket());
    }

    /// The same where its vsock is another.
    pub fn works_through(&self, vmm: &Vmm, socket: &Path) {
        let lines = vmm.lines();
        let seen = lines.iter().filter(|line| line.contains(LINE)).count();
        // It works meanwhile.
        let mut stream = connect(socket, PORT, LONG);
        echo(&mut stream, &[0x5e; 4096]);
        let before = vmm.expect_nth_line(LINE, seen + 1, LONG);
        // Lost datagrams are sent again, after a while.
        let mut n = seen + 2;
        loop {
            let after = vmm.expect_nth_line(LINE, n, LONG);
            let grew = |key| value(&after, key) > value(&before, key);
            if grew("ticks=") && grew("echoes=") {
                break;
            }
            assert!(n < seen + 40, "it stands still: {before}, {after}");
            n += 1;
        }
        let lines = vmm.lines();
        let failed = lines.iter().find(|line| line.contains("FAILED"));
        assert_eq!(failed, None);
    }

    /// Lets the guest check everything and power off; what it says its disk has is what the image has.
    pub fn ends_well(&self, vmm: Vmm, image: &Path, by_api: bool) {
        let api = vmm.api();
        api.act(Operation::VmPowerButton);
        let line = vmm.expect_line("guest: churn ok", LONG);
        if by_api {
            // Such a monitor stays when its guest ends.
            api.expect_state(VmState::Shutdown, LONG);
            api.act(Operation::VmmShutdown);
        }
        let exit = vmm.wait(LONG);
        assert_eq!(exit.code, Some(0), "{exit}");
        qemu_img(&["check", "-q", "-f", "qcow2"], &[image], &[]);
        let plain = image.with_extension("plain");
        let convert = ["convert", "-O", "raw", "-f", "qcow2"];
        qemu_img(&convert, &[image, &plain], &[]);
        let sum = disk::checksum(&plain);
        assert!(
            line.contains(&format!("sum={sum}")),
            "{line}, and not {sum}"
        );
    }
}

/// A number of a line about the load.
fn value(line: &str, key: &str) -> u64 {
    let mut words = line.split_whitespace();
    let number = words.find_map(|word| word.strip_prefix(key)?.parse().ok());
    number.unwrap_or_else(|| panic!("no {key} in `{line}`"))
}
