//! Linux guests: the demo's guest, as `cargo xtask guest` makes it.

use std::path::{Path, PathBuf};

use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{ConsoleConfig, ConsoleMode, DiskConfig};

use crate::given;
use crate::vmm::Builder;

/// A file of the guest.
pub fn file(name: &str) -> PathBuf {
    given("SKERRY_GUEST_DIR").join(name)
}

/// What every guest's command line starts with: messages on the serial port, a panic that is final.
pub const COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1";

/// Copies the root disk into `folder`.
pub fn root_disk(target: PathBuf) -> PathBuf {
    std::fs::copy(file("root.ext4"), &target).expect("a copy of the root disk");
    target
}

/// A monitor that boots the guest from flags, with its root disk and its serial port on standard
/// output. `words` are added to the kernel's command line.
pub fn boot(kernel: &str, words: &str) -> Builder {
    boot_path(&file(kernel), words)
}

/// The same with a kernel anywhere.
pub fn boot_path(kernel: &Path, words: &str) -> Builder {
    let vmm = Builder::new(&["--serial", "tty"])
        .flag("--kernel", kernel)
        .flag("--initramfs", file("initramfs.cpio"))
        .flag("--cmdline", format!("{COMMAND_LINE} {words}"))
        .flag("--memory", "size=512M");
    let root = root_disk(vmm.path("root.ext4"));
    vmm.flag("--disk", format!("path={}", root.display()))
}

/// The same as a configuration for the API.
pub fn config(root: PathBuf, words: &str) -> VmConfig {
    let mut config = VmConfig::default();
    config.payload.kernel = Some(file("vmlinux"));
    config.payload.initramfs = Some(file("initramfs.cpio"));
    config.payload.cmdline = Some(format!("{COMMAND_LINE} {words}"));
    config.disks.push(DiskConfig {
        path: root,
        ..DiskConfig::default()
    });
    config.serial = ConsoleConfig {
        mode: ConsoleMode::Tty,
        ..ConsoleConfig::default()
    };
    config.console.mode = ConsoleMode::Off;
    config
}
