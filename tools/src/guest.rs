//! `cargo xtask guest`: the demo's guest, made of Debian packages after the recipes in images/guest, kept below target/guest.
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::download::{self, Package};
use crate::modules::{self, Modules};
use crate::packages::{self, Need};
use crate::progress::Step;
use crate::{cargo, command, cpio, kernel, workspace};

/// The kernel that Debian makes for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Packages that programs depend on for their installation alone.
const NOT_IN_A_GUEST: [&str; 2] = ["debconf", "debconf-2.0"];
/// Counted up when this file makes the guest differently.
const EDITION: u32 = 3;
/// Size, name and identity of the root file system; fixed, so that two builds are alike.
const ROOT_SIZE: &str = "64M";
const ROOT_LABEL: &str = "skerry-root";
const ROOT_UUID: &str = "5ce44700-0000-4000-8000-000000000001";
const ROOT_TIME: &str = "1700000000";

const MKE2FS: Need = Need {
    program: "mke2fs",
    package: "e2fsprogs",
    major: None,
    why: "the guest's root file system",
};

/// Which guest to build: there is one.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {}

/// A guest's files.
pub struct Guest {
    /// Where they are; tests get this folder's name.
    pub folder: PathBuf,
}

impl Guest {
    /// The kernel as Debian ships it.
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The kernel unpacked to an ELF file with a PVH entry.
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// busybox, drivers, and the script that goes on to the root disk.
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.cpio")
    }

    /// The root disk. To be copied before it is booted from.
    pub fn root_disk(&self) -> PathBuf {
        self.folder.join("root.ext4")
    }

    fn manifest(&self) -> PathBuf {
        self.folder.join("manifest")
    }
}

/// Builds the guest and says where it is.
///
/// # Errors
/// See [`build`].
pub fn run(_: &Arguments) -> Result<ExitCode> {
    let guest = build()?;
    for file in [
        guest.vmlinuz(),
        guest.vmlinux(),
        guest.initramfs(),
        guest.root_disk(),
        guest.manifest(),
    ] {
        println!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the guest, unless it is there already, made by the same recipe of the packages that are current now.
///
/// # Errors
/// When Debian's packages cannot be had or a recipe is wrong.
pub fn build() -> Result<Guest> {
    packages::ensure(&[MKE2FS])?;
    let guest = Guest {
        folder: workspace::target().join("guest"),
    };
    let _lock = workspace::lock(&guest.folder)?;
    let recipe = format!("recipe {:016x}", recipe_digest()?);
    if is_current(&guest, &recipe) {
        return Ok(guest);
    }
    // First of all, so that an interrupted build is never taken for a finished one.
    if guest.manifest().exists() {
        fs::remove_file(guest.manifest()).context("cannot remove the old guest's manifest")?;
    }
    let scratch = guest.folder.join("scratch");
    remove_folder(&scratch)?;
    let used = make(&guest, &scratch)?;
    remove_folder(&scratch)?;
    let versions: String = used
        .iter()
        .map(|package| format!("{} {}\n", package.name, package.version))
        .collect();
    write(
        &guest.manifest(),
        format!("{recipe}\n{versions}").as_bytes(),
    )?;
    Ok(guest)
}

fn is_current(guest: &Guest, recipe: &str) -> bool {
    let Ok(manifest) = fs::read_to_string(guest.manifest()) else {
        return false;
    };
    let mut lines = manifest.lines();
    if lines.next() != Some(recipe) {
        return false;
    }
    let made: Vec<Package> = lines
        .filter_map(|line| line.split_once(' '))
        .map(|(name, version)| Package {
            name: name.to_owned(),
            version: version.to_owned(),
        })
        .collect();
    let names: Vec<&str> = made.iter().map(|package| package.name.as_str()).collect();
    // Without an answer from apt (no network, no lists) the guest that is there is good enough.
    download::candidates(&names)
        .map_or(true, |now| made.iter().all(|package| now.contains(package)))
}

fn make(guest: &Guest, scratch: &Path) -> Result<Vec<Package>> {
    let recipes = workspace::recipes();
    let kernel_package = download::kernel_behind(KERNEL)?;
    let step = Step::start(format!(
        "Guest: downloading {} {}",
        kernel_package.name, kernel_package.version
    ));
    let tree = scratch.join("kernel");
    download::unpack(std::slice::from_ref(&kernel_package), scratch, &tree)?;
    step.done("");

    let programs = list(&recipes.join("packages"))?;
    let names: Vec<&str> = programs.iter().map(String::as_str).collect();
    let used = download::closure(&names, &NOT_IN_A_GUEST)?;
    let step = Step::start(format!(
        "Guest: downloading {} packages for its root file system",
        used.len()
    ));
    let root = scratch.join("root");
    merge_usr(&root)?;
    download::unpack(&used, scratch, &root)?;
    step.done("");

    let step = Step::start("Guest: unpacking the kernel, making initramfs and root disk");
    let image = tree
        .join("boot")
        .join(format!("vmlinuz-{}", modules::release(&tree)?));
    let packed = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    write(
        &guest.vmlinux(),
        &kernel::vmlinux_of(&packed).with_context(|| format!("in {}", image.display()))?,
    )?;
    write(&guest.vmlinuz(), &packed)?;

    let busybox = root.join("usr/bin/busybox");
    let drivers = list(&recipes.join("modules"))?;
    let drivers: Vec<&str> = drivers.iter().map(String::as_str).collect();
    let order = Modules::open(&tree, &busybox)?.load_order(&drivers)?;
    let init = recipes.join("initramfs/init");
    let init =
        fs::read_to_string(&init).with_context(|| format!("cannot read {}", init.display()))?;
    write(
        &guest.initramfs(),
        &cpio::initramfs(&busybox, &order, &init)?,
    )?;

    furnish(&root, &busybox, &recipes)?;
    for (name, built) in [
        ("skerry-churn", cargo::guest_churn()?),
        ("skerry-guest", cargo::guest_agent()?),
    ] {
        let program = root.join("usr/bin").join(name);
        fs::copy(built, &program).with_context(|| format!("cannot write {}", program.display()))?;
    }
    make_disk(&root, &guest.root_disk())?;
    step.done("");

    let kernel_now = download::candidates(&[KERNEL])?;
    Ok([kernel_now, vec![kernel_package], used].concat())
}

/// /bin, /sbin, /lib and /lib64 are links into /usr, as on an installed Debian.
fn merge_usr(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let folder = root.join("usr").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let link = root.join(name);
        std::os::unix::fs::symlink(format!("usr/{name}"), &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(())
}

/// Takes away what a guest doesn't read (documentation, character sets, plugins), and adds busybox's applets and our own files.
fn furnish(root: &Path, busybox: &Path, recipes: &Path) -> Result<()> {
    for unused in ["usr/share", "var", "etc"] {
        remove_folder(&root.join(unused))?;
    }
    for library in folders(&root.join("usr/lib"))? {
        for plugins in folders(&library)? {
            remove_folder(&plugins)?;
        }
    }
    for empty in ["dev", "proc", "sys", "run", "tmp", "root", "mnt"] {
        let folder = root.join(empty);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for applet in command::read(Command::new(busybox).arg("--list"))?.lines() {
        let link = root.join("usr/bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", &link)
                .with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    let files = recipes.join("root/.");
    command::run(
        Command::new("cp")
            .args(["-R", "--preserve=mode"])
            .arg(files)
            .arg(root),
    )
}

fn make_disk(root: &Path, disk: &Path) -> Result<()> {
    let made = disk.with_extension("new");
    if made.exists() {
        fs::remove_file(&made).with_context(|| format!("cannot remove {}", made.display()))?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    // Older and newer releases of e2fsprogs have their own names for "now".
    mke2fs
        .env("E2FSPROGS_FAKE_TIME", ROOT_TIME)
        .env("SOURCE_DATE_EPOCH", ROOT_TIME);
    mke2fs.args([
        "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=4", "-L", ROOT_LABEL, "-U",
        ROOT_UUID,
    ]);
    mke2fs.args([
        "-E",
        &format!("hash_seed={ROOT_UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"),
    ]);
    command::read(mke2fs.arg("-d").arg(root).arg(&made).arg(ROOT_SIZE))?;
    fs::rename(&made, disk).with_context(|| format!("cannot put {} in place", disk.display()))
}

/// A recipe's list: one word a line, `#` begins a comment.
fn list(path: &Path) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// A number that changes whenever anything below images/guest does, or what the agent there says.
fn recipe_digest() -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    EDITION.hash(&mut hasher);
    let mut waiting = vec![workspace::recipes(), workspace::exec()];
    while let Some(path) = waiting.pop() {
        path.strip_prefix(workspace::recipes())
            .unwrap_or(&path)
            .hash(&mut hasher);
        if path.is_dir() {
            waiting.extend(entries(&path)?);
        } else {
            fs::read(&path)
                .with_context(|| format!("cannot read {}", path.display()))?
                .hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?
        .into_iter()
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect())
}

fn remove_folder(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// Writes beside the place and renames, so that nobody sees half a file.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot put {} in place", path.display()))
}
