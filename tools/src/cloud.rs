//! `cargo xtask cloud`: a Debian cloud image, made by Debian's tools after the recipe in images/cloud, kept below target/cloud.
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::packages::{self, Need};
use crate::progress::Step;
use crate::{command, sources, workspace};

/// Counted up when this file makes the image differently.
const EDITION: u32 = 2;
/// Mebibytes of the root file system: what it has, and a little to write.
const SIZE: u64 = 800;

const NEEDS: [Need; 4] = [
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
    Need {
        program: "sfdisk",
        package: "fdisk",
        major: None,
        why: "its partition table",
    },
    packages::IMAGES,
];

/// The image's name in its store.
pub const NAME: &str = "debian:12";

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

/// Two partitions, as Debian's own have them: what a BIOS would start, and the root.
fn make_disk(folder: &Path, root: &Path) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let (raw, disk) = (folder.join("disk.img"), folder.join("disk.qcow2"));
    remove(&raw)?;
    let file = fs::File::create(&raw).context("cannot make the image's disk")?;
    // The root begins after 4 MiB, and the table's copy is at the end.
    let sized = file.set_len((4 + SIZE + 1) * MIB);
    sized.context("cannot make the image's disk")?;
    let table = format!(
        "label: gpt\nunit: sectors\n\
         14: start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649\n\
         1: start=8192, size={}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root\n",
        SIZE * MIB / 512
    );
    let script = folder.join("partitions");
    fs::write(&script, table).context("cannot write the image's partitions")?;
    let script = fs::File::open(&script).context("cannot read the image's partitions")?;
    let mut sfdisk = with_sbin("sfdisk");
    let made = sfdisk.arg("--quiet").arg(&raw).stdin(script).status();
    if !made.context("cannot start sfdisk")?.success() {
        bail!("sfdisk cannot make the image's partitions");
    }
    let mut mke2fs = with_sbin("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]);
    mke2fs.arg("-E").arg(format!("offset={}", 4 * MIB));
    command::read(mke2fs.arg("-d").arg(root).arg(&raw).arg(format!("{SIZE}M")))?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
    command::read(convert.arg(&raw).arg(&disk))?;
    remove(&raw)
}

/// A program that may be where only the administrator looks.
fn with_sbin(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Brings the image into an image store of its own, in one piece and with its kernel found, which an emulated machine would
/// take minutes for; the folder with `images`, the store.
///
/// # Errors
/// When the image cannot be made, or the store refuses it.
pub fn stored(skerry: &Path) -> Result<PathBuf> {
    let folder = build()?;
    let store = folder.join("images");
    let _lock = workspace::lock(&folder)?;
    let step = Step::start("Importing the Debian cloud image");
    remove(&store)?;
    let mut import = Command::new(skerry);
    import.args(["image", "import", "--name", NAME, "--output", "json"]);
    let said = command::read(
        import
            .arg("--store")
            .arg(&store)
            .arg(folder.join("disk.qcow2")),
    )?;
    let said: serde_json::Value = serde_json::from_str(&said).context("what import said")?;
    let digest = said["digest"].as_str().context("import said no digest")?;
    let mut find = Command::new(skerry);
    find.args(["image", "find-boot", digest, "--store"]);
    command::read(find.arg(&store))?;
    step.done("");
    Ok(folder)
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
