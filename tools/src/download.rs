//! Debian packages for guests: downloaded and unpacked, never installed.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{command, packages};

/// A package in the version that apt would install now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The binary package's name.
    pub name: String,
    /// Its full Debian version, epoch included.
    pub version: String,
}

/// The kernel package that a kernel metapackage stands for today.
///
/// # Errors
/// When apt does not know the metapackage, even after refreshing its lists.
pub fn kernel_behind(metapackage: &str) -> Result<Package> {
    kernel_of(metapackage, None)
}

/// The same, of version `oldest` at least (major, minor): from backports, if the release's own is older.
///
/// # Errors
/// When apt does not know the metapackage, even after refreshing its lists, or backports cannot be had.
pub fn kernel_since(metapackage: &str, oldest: (u32, u32)) -> Result<Package> {
    let own = kernel_behind(metapackage)?;
    if kernel_version(&own.version) >= Some(oldest) {
        return Ok(own);
    }
    let backports = packages::backports(metapackage)?;
    let newer = kernel_of(metapackage, Some(&backports))?;
    if kernel_version(&newer.version) < Some(oldest) {
        bail!(
            "a kernel {}.{} is needed, and {backports} has {}",
            oldest.0,
            oldest.1,
            newer.version
        );
    }
    Ok(newer)
}

/// Major and minor version of a kernel package.
fn kernel_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-', '~', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel_of(metapackage: &str, release: Option<&str>) -> Result<Package> {
    with_fresh_lists(|| {
        let release = release.map(|release| format!("APT::Default-Release={release}"));
        let options = release.iter().flat_map(|release| ["-o", release]);
        let text =
            command::read(
                apt_cache()
                    .args(options)
                    .args(["depends", "--important", metapackage]),
            )?;
        let name = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        let name =
            name.with_context(|| format!("{metapackage} depends on no kernel image package"))?;
        candidate(&format!("linux-image-{name}"))
    })
}

/// The candidate versions of packages, and of everything that they need to run.
///
/// `leave_out` names packages that a guest without their machinery (debconf and the like) can do without.
///
/// # Errors
/// When apt does not know one of them, even after refreshing its lists.
pub fn closure(names: &[&str], leave_out: &[&str]) -> Result<Vec<Package>> {
    with_fresh_lists(|| {
        let options = [
            "--recurse",
            "--important",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
            "--no-replaces",
        ];
        let text = command::read(
            apt_cache()
                .arg("depends")
                .args(options)
                .args(["--no-enhances"])
                .args(names),
        )?;
        let mut found: Vec<&str> = text.lines().filter(|line| is_package_line(line)).collect();
        found.retain(|name| !leave_out.contains(name));
        found.sort_unstable();
        found.dedup();
        candidates(&found)
    })
}

/// `apt-cache depends` indents everything but the packages themselves; `<name>` is a virtual one.
fn is_package_line(line: &str) -> bool {
    line.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// The candidate version of one package.
///
/// # Errors
/// When apt does not know it.
fn candidate(name: &str) -> Result<Package> {
    let mut found = candidates(&[name])?;
    found
        .pop()
        .with_context(|| format!("apt knows no package {name}"))
}

/// The candidate versions of packages, as apt's lists are now.
///
/// # Errors
/// When apt does not know one of them.
pub fn candidates(names: &[&str]) -> Result<Vec<Package>> {
    let text = command::read(apt_cache().arg("policy").args(names))?;
    let known = parse_policy(&text);
    if let Some(missing) = names
        .iter()
        .find(|name| !known.iter().any(|package| package.name == **name))
    {
        bail!(
            "apt knows no package {missing}: Debian 12 or later is needed, with its main component enabled"
        );
    }
    Ok(known)
}

/// `name:` at the line's start, `  Candidate: version` below it; `(none)` has none.
fn parse_policy(text: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    let mut name = None;
    for line in text.lines() {
        if let Some(version) = line.trim().strip_prefix("Candidate: ") {
            if let (Some(name), false) = (name.take(), version == "(none)") {
                packages.push(Package {
                    name,
                    version: version.to_owned(),
                });
            }
        } else if !line.starts_with(' ') {
            name = line.strip_suffix(':').map(str::to_owned);
        }
    }
    packages
}

fn apt_cache() -> Command {
    let mut apt = Command::new("apt-cache");
    apt.env("LC_ALL", "C");
    apt
}

/// Tries; when that fails (no lists yet, or lists older than the archive), refreshes apt's lists and tries once more.
fn with_fresh_lists<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    if !packages::in_path("apt-get") {
        bail!(
            "guests are made of Debian packages, and this system has no apt-get: run this on Debian 12 or later"
        );
    }
    attempt().or_else(|error| {
        packages::refresh_lists().with_context(|| format!("after: {error:#}"))?;
        attempt()
    })
}

/// Downloads packages into `scratch` and unpacks them below `root`, through links to folders that are there already.
///
/// # Errors
/// When the archive does not have one, or it cannot be unpacked.
pub fn unpack(packages: &[Package], scratch: &Path, root: &Path) -> Result<()> {
    for folder in [scratch, root] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    with_fresh_lists(|| {
        // As root, apt would try to download as its own user, who cannot write here, and complain.
        let options = ["-q", "-o", "APT::Sandbox::User=root", "download"];
        let wanted = packages
            .iter()
            .map(|package| format!("{}={}", package.name, package.version));
        command::read(
            Command::new("apt-get")
                .args(options)
                .args(wanted)
                .current_dir(scratch),
        )
        .map(drop)
    })?;
    for package in packages {
        let archive = downloaded(package, scratch)?;
        extract(&archive, root)?;
        fs::remove_file(&archive)
            .with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    Ok(())
}

fn downloaded(package: &Package, scratch: &Path) -> Result<PathBuf> {
    let start = format!("{}_", package.name);
    let entries =
        fs::read_dir(scratch).with_context(|| format!("cannot list {}", scratch.display()))?;
    let mut paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let is_it = |path: &PathBuf| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        name.starts_with(&start) && name.ends_with(".deb")
    };
    paths.find(is_it).with_context(|| {
        format!(
            "apt-get download left no {start}*.deb in {}",
            scratch.display()
        )
    })
}

/// `dpkg-deb -x` would put folders where links to folders are (/bin, /lib): tar can be told not to.
fn extract(archive: &Path, root: &Path) -> Result<()> {
    let mut reader = Command::new("dpkg-deb");
    let mut reader = reader
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let tarfile = reader.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--keep-directory-symlink", "--no-same-owner", "-C"])
        .arg(root)
        .stdin(tarfile);
    let unpacked = tar.status().context("cannot start tar")?;
    let read = reader.wait().context("cannot wait for dpkg-deb")?;
    if !unpacked.success() || !read.success() {
        bail!(
            "cannot unpack {}: dpkg-deb {read}, tar {unpacked}",
            archive.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_output_gives_names_and_candidates() {
        let text = "one:\n  Installed: (none)\n  Candidate: 1:2.3-4\n  Version table:\n     1:2.3-4 500\n\
                    two:\n  Installed: 1\n  Candidate: (none)\n";
        let expected = Package {
            name: "one".into(),
            version: "1:2.3-4".into(),
        };
        assert_eq!(parse_policy(text), [expected]);
    }

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(kernel_version("6.1.172-1"), Some((6, 1)));
        assert_eq!(kernel_version("6.12.48-1~bpo12+1"), Some((6, 12)));
        assert!(kernel_version("6.12.48-1~bpo12+1") >= Some((6, 7)));
    }

    #[test]
    fn only_unindented_names_are_packages() {
        assert!(is_package_line("libc6"));
        assert!(!is_package_line("  Depends: libc6"));
        assert!(!is_package_line("<debconf-2.0>"));
    }
}
