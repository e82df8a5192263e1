//! The lab's ingredients, made once and kept below `target/lab`: kernel, modules, initramfs.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::modules::Modules;
use crate::packages::{self, Need};
use crate::progress::Step;
use crate::{cpio, download, kernel, modules, workspace};

const INIT: &str = include_str!("init.sh");
/// The distribution's own kernel, as long as it can say which memory was written (PAGEMAP_SCAN): else the newer one
/// that the release offers.
const KERNEL: &str = "linux-image-amd64";
const OLDEST_KERNEL: (u32, u32) = (6, 7);
/// Loaded before the command runs; all others load by name or when their device file is opened.
const MODULES: [&str; 8] = [
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
    "kvm-amd",
    "tun",
    "vhost_net",
];
/// Counted up when this file makes the lab differently.
const EDITION: u32 = 3;

const QEMU: Need = Need {
    program: "qemu-system-x86_64",
    package: "qemu-system-x86",
    // The first whose TCG has x2APIC, which the IOMMU's interrupt remapping (eim) relies on.
    major: Some(9),
    why: "the lab (it emulates a machine whose KVM can run Linux)",
};

/// A lab that can be started.
pub struct Lab {
    /// The kernel as an ELF file with a PVH entry: no decompressor to emulate.
    pub kernel: PathBuf,
    /// busybox, the modules to start with, and `init.sh`.
    pub initramfs: PathBuf,
    /// The folder whose `RELEASE` folder holds all modules.
    pub modules: PathBuf,
}

/// Makes sure the lab can be started; instant when nothing changed since the last time.
///
/// # Errors
/// When QEMU or Debian's packages cannot be had.
pub fn prepare() -> Result<Lab> {
    packages::ensure(&[QEMU])?;
    let folder = workspace::target().join("lab");
    let _lock = workspace::lock(&folder)?;

    let base = folder.join("base");
    let lab = Lab {
        kernel: base.join("vmlinux"),
        initramfs: base.join("initramfs.cpio"),
        modules: base.join("kernel/lib/modules"),
    };
    let stamp = base.join("stamp");
    let recipe = format!("{EDITION}\n{KERNEL}\n{}\n{INIT}", MODULES.join(" "));
    if fs::read_to_string(&stamp).is_ok_and(|made| made == recipe) {
        return Ok(lab);
    }
    if base.exists() {
        fs::remove_dir_all(&base).with_context(|| format!("cannot remove {}", base.display()))?;
    }
    make(&base, &lab)?;
    fs::write(&stamp, recipe).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(lab)
}

fn make(base: &Path, lab: &Lab) -> Result<()> {
    let package = download::kernel_since(KERNEL, OLDEST_KERNEL)?;
    let step = Step::start(format!(
        "Lab: downloading {} {}",
        package.name, package.version
    ));
    let scratch = base.join("scratch");
    let tree = base.join("kernel");
    let busybox = base.join("busybox/bin/busybox");
    download::unpack(&[package], &scratch, &tree)?;
    download::unpack(
        &download::candidates(&["busybox-static"])?,
        &scratch,
        &base.join("busybox"),
    )?;
    step.done("");

    let step = Step::start("Lab: unpacking the kernel and making its initramfs");
    let image = tree
        .join("boot")
        .join(format!("vmlinuz-{}", modules::release(&tree)?));
    let packed = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    let elf = kernel::vmlinux_of(&packed).with_context(|| format!("in {}", image.display()))?;
    fs::write(&lab.kernel, elf)
        .with_context(|| format!("cannot write {}", lab.kernel.display()))?;
    let order = Modules::open(&tree, &busybox)?.load_order(&MODULES)?;
    let archive = cpio::initramfs(&busybox, &order, INIT)?;
    fs::write(&lab.initramfs, archive)
        .with_context(|| format!("cannot write {}", lab.initramfs.display()))?;
    step.done("");
    Ok(())
}
