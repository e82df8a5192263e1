//! `cargo xtask cloud`: a Debian cloud image, made by Debian's tools after the recipe in images/cloud, kept below target/cloud.
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::packages::{self, Need};
use crate::progress::Step;
use crate::{command, kernel, modules, sources, workspace};

/// Counted up when this file makes the image differently.
const EDITION: u32 = 1;
/// The root file system's size: what it has, and a little to write.
const SIZE: &str = "800M";

const NEEDS: [Need; 3] = [
    Need {
        program: "mmdebstrap",
        package: "mmdebstrap",
        major: None,
        why: "a Debian cloud image for the lab",
    },
    Need {
        program: "mke2fs",
        package: "e2fsprogs",
        major: None,
        why: "its root file system",
    },
    packages::IMAGES,
];

/// Which image to make: there is one.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {}

/// Makes the image and says where it is.
///
/// # Errors
/// See [`build`].
pub fn run(_: &Arguments) -> Result<ExitCode> {
    println!("{}", build()?.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes the image, unless it is there already, made by the same recipe; its folder.
///
/// # Errors
/// When Debian's packages cannot be had or a recipe is wrong.
pub fn build() -> Result<PathBuf> {
    let folder = workspace::target().join("cloud");
    let _lock = workspace::lock(&folder)?;
    let (manifest, recipe) = (folder.join("manifest"), recipe_digest()?);
    if fs::read_to_string(&manifest).is_ok_and(|made| made == recipe) {
        return Ok(folder);
    }
    packages::ensure(&NEEDS)?;
    let step = Step::start("Making a Debian cloud image");
    let root = folder.join("root");
    for old in [&manifest, &root] {
        remove(old)?;
    }
    bootstrap(&folder, &root)?;
    furnish(&root)?;
    take_kernel(&folder, &root)?;
    make_disk(&folder, &root)?;
    remove(&root)?;
    fs::write(&manifest, recipe).context("cannot write the image's manifest")?;
    step.done("");
    Ok(folder)
}

/// Installs Debian, from where this machine has its packages.
fn bootstrap(folder: &Path, root: &Path) -> Result<()> {
    let codename = packages::codename()?;
    let source = folder.join("archive.sources");
    let stanza = sources::release_stanza(Path::new("/etc/apt"), &codename)?;
    fs::write(&source, stanza).context("cannot write the image's sources")?;
    let include = list("packages")?.join(",");
    let mut make = Command::new("mmdebstrap");
    make.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    make.arg(format!("--include={include}"));
    for unread in ["doc", "man", "locale", "info"] {
        make.arg(format!("--dpkgopt=path-exclude=/usr/share/{unread}/*"));
    }
    make.arg(&codename).arg(root).arg(&source);
    command::read(&mut make).map(drop)
}

/// Says what starts, and what cloud-init does.
fn furnish(root: &Path) -> Result<()> {
    let put = |name: &str, text: &str| {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let config = recipes().join("cloud.cfg");
    let config =
        fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    put("etc/cloud/cloud.cfg.d/90_skerry.cfg", &config)?;
    put("etc/fstab", "/dev/vda / ext4 noatime 0 1\n")?;
    // It is given one by its first boot.
    put("etc/machine-id", "")?;
    put(
        "etc/initramfs-tools/modules",
        "virtio_pci\nvirtio_blk\next4\n",
    )?;
    put(
        "etc/initramfs-tools/conf.d/skerry",
        "MODULES=list\nCOMPRESS=gzip\n",
    )?;
    for unit in list("masked")? {
        let link = root.join("etc/systemd/system").join(unit);
        remove(&link)?;
        std::os::unix::fs::symlink("/dev/null", &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
    }
    let keys = fs::read_dir(root.join("etc/ssh")).context("the image has no /etc/ssh")?;
    for key in keys.flatten() {
        // Each guest makes its own.
        if key.file_name().to_string_lossy().starts_with("ssh_host_") {
            remove(&key.path())?;
        }
    }
    for words in [
        &["systemctl", "enable", "systemd-networkd", "ssh"][..],
        &["update-initramfs", "-u", "-k", "all"],
    ] {
        command::read(Command::new("chroot").arg(root).args(words))?;
    }
    Ok(())
}

/// Takes the kernel out, unpacked, and its initramfs: the monitor starts it without a boot loader.
fn take_kernel(folder: &Path, root: &Path) -> Result<()> {
    let release = modules::release(root)?;
    let boot = root.join("boot");
    let image = boot.join(format!("vmlinuz-{release}"));
    let packed = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    let unpacked =
        kernel::vmlinux_of(&packed).with_context(|| format!("in {}", image.display()))?;
    fs::write(folder.join("vmlinux"), unpacked).context("cannot write the image's kernel")?;
    let initrd = boot.join(format!("initrd.img-{release}"));
    fs::copy(&initrd, folder.join("initrd.img"))
        .with_context(|| format!("cannot copy {}", initrd.display()))?;
    Ok(())
}

fn make_disk(folder: &Path, root: &Path) -> Result<()> {
    let (raw, disk) = (folder.join("disk.img"), folder.join("disk.qcow2"));
    remove(&raw)?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    mke2fs.args(["-q", "-t", "ext4", "-b", "4096", "-m", "0"]);
    command::read(mke2fs.arg("-d").arg(root).arg(&raw).arg(SIZE))?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
    command::read(convert.arg(&raw).arg(&disk))?;
    remove(&raw)
}

fn recipes() -> PathBuf {
    workspace::root().join("images/cloud")
}

/// A recipe's list: one word a line, `#` begins a comment.
fn list(name: &str) -> Result<Vec<String>> {
    let path = recipes().join(name);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim);
    let words = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(words.map(str::to_owned).collect())
}

/// A text that changes whenever the recipe does.
fn recipe_digest() -> Result<String> {
    let mut hasher = DefaultHasher::new();
    EDITION.hash(&mut hasher);
    for name in ["packages", "masked", "cloud.cfg"] {
        let path = recipes().join(name);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        bytes.hash(&mut hasher);
    }
    Ok(format!("recipe {:016x}\n", hasher.finish()))
}

/// Removes a file, a link or a folder that may not be there.
fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
