//! Installing what a command needs on this host: says what and why, then lets apt do it.
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use crate::progress::Step;
use crate::{command, sources};

/// A program that a command needs, and the Debian package that brings it.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The program looked for in `PATH` (and in the sbin folders).
    pub program: &'static str,
    /// The Debian package to install when it is missing.
    pub package: &'static str,
    /// The oldest major version that will do, where that matters: of the package, and of what `--version` says.
    pub major: Option<u32>,
    /// What it is needed for, for the person who reads along.
    pub why: &'static str,
}

/// What reaching guests over a network takes.
pub const NETWORK: [Need; 2] = [
    Need {
        program: "ip",
        package: "iproute2",
        major: None,
        why: "the guest's network interface (tap) on this host",
    },
    Need {
        program: "ping",
        package: "iputils-ping",
        major: None,
        why: "reaching the guest over it",
    },
];

/// What judges disk images from outside.
pub const IMAGES: Need = Need {
    program: "qemu-img",
    package: "qemu-utils",
    major: None,
    why: "making and checking disk images that tests compare ours with",
};

/// What logs in to guests.
pub const LOGIN: Need = Need {
    program: "ssh",
    package: "openssh-client",
    major: None,
    why: "logging in to a guest made of a cloud image",
};

/// What containers are made of in tests, and what ours are compared with.
pub const CONTAINERS: [Need; 2] = [
    Need {
        program: "busybox",
        package: "busybox-static",
        major: None,
        why: "what runs in the tests' containers",
    },
    Need {
        program: "runc",
        package: "runc",
        major: None,
        why: "the other runtime that containers are tested with",
    },
];

/// What images come from in tests, and what judges the file systems that are made of them.
pub const REGISTRY: [Need; 2] = [
    Need {
        program: "docker-registry",
        package: "docker-registry",
        major: None,
        why: "a registry that images are pulled from in tests",
    },
    Need {
        program: "e2fsck",
        package: "e2fsprogs",
        major: None,
        why: "checking file systems that are made of images",
    },
];

/// What judges what users see: metrics and alert rules, and the web page.
pub const SEEING: [Need; 3] = [
    Need {
        program: "promtool",
        package: "prometheus",
        major: None,
        why: "checking metrics and alert rules",
    },
    Need {
        program: "chromium",
        package: "chromium",
        major: None,
        why: "looking at the web page",
    },
    Need {
        program: "chromedriver",
        package: "chromium-driver",
        major: None,
        why: "driving the browser that looks at it",
    },
];

impl Need {
    fn is_met(&self) -> bool {
        in_path(self.program)
            && self.major.is_none_or(|major| {
                let said = command::read(Command::new(self.program).arg("--version"));
                said.is_ok_and(|said| major_version(&said).is_some_and(|found| found >= major))
            })
    }

    /// Whether a plan of apt's installs this package in a version that will do.
    fn is_planned(&self, plan: &str) -> bool {
        let Some(major) = self.major else { return true };
        let start = format!("Inst {} ", self.package);
        let versions = plan
            .lines()
            .filter_map(|line| line.strip_prefix(&start)?.split_once('('));
        versions
            .map(|(_, version)| version)
            .any(|version| upstream_major(version).is_some_and(|found| found >= major))
    }

    fn shown(&self) -> String {
        self.major.map_or_else(
            || self.program.to_owned(),
            |major| format!("{} {major} or later", self.program),
        )
    }
}

/// `QEMU emulator version 10.0.2 (…)` → 10.
fn major_version(said: &str) -> Option<u32> {
    let words = said.lines().next()?.split_whitespace();
    words
        .filter_map(|word| word.split_once('.'))
        .find_map(|(major, _)| major.parse().ok())
}

/// `1:10.0.2+ds-2 …` → 10: what is before the first dot, without the epoch.
fn upstream_major(version: &str) -> Option<u32> {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version
        .split(|character: char| !character.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// The file that holds the backports entry, so that it can be seen and removed.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/skerry-backports.sources";

/// Installs the programs that are missing or too old, after saying which and why.
///
/// # Errors
/// When apt cannot install them, or when there is no apt: the error names the packages.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<Need> = needs
        .iter()
        .filter(|need| !need.is_met())
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Missing on this host (or too old), to be installed with apt:");
    for need in &missing {
        eprintln!("  {:<18} for {}", need.package, need.why);
    }
    let names: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !in_path("apt-get") {
        let programs: Vec<String> = missing.iter().map(Need::shown).collect();
        bail!(
            "this system has no apt-get: install {} (Debian's packages {}) with its own package tool",
            programs.join(", "),
            names.join(", ")
        );
    }
    let step = Step::start(format!("Installing {}", names.join(" ")));
    install(&missing, &names)?;
    if let Some(need) = missing.iter().find(|need| !need.is_met()) {
        bail!(
            "{} is installed, but {} is still not in PATH",
            need.package,
            need.shown()
        );
    }
    step.done("installed");
    Ok(())
}

fn install(needs: &[Need], names: &[&str]) -> Result<()> {
    let release = choose_release(needs, names)?;
    apt_get(&install_arguments(names, release.as_deref())).or_else(|error| {
        // Lists older than the archive name versions that are gone.
        refresh_lists().with_context(|| format!("after: {error:#}"))?;
        let release = choose_release(needs, names)?;
        apt_get(&install_arguments(names, release.as_deref()))
    })
}

/// Refreshes apt's lists, at most once in this process.
///
/// # Errors
/// When apt cannot, or when this is neither root nor a user with sudo.
pub fn refresh_lists() -> Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if !*done {
        update_lists()?;
        *done = true;
    }
    Ok(())
}

/// Whether a program is to be found in `PATH` or in the folders for administration.
pub fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(sbin)
        .any(|folder| folder.join(program).is_file())
}

/// `None` when the system's own release can install the packages, else the name of the backports suite, made available.
fn choose_release(needs: &[Need], names: &[&str]) -> Result<Option<String>> {
    if installable(needs, names, None)? {
        return Ok(None);
    }
    refresh_lists()?;
    if installable(needs, names, None)? {
        return Ok(None);
    }
    let backports = format!("{}-backports", codename()?);
    if !installable(needs, names, Some(&backports))? {
        enable_backports()?;
    }
    if !installable(needs, names, Some(&backports))? {
        let said = command::read(apt_simulation(names, Some(&backports)).env("LC_ALL", "C"));
        let said = said.map_or_else(
            |error| format!("{error:#}"),
            |plan| format!("apt's plan:\n{plan}"),
        );
        let wanted: Vec<String> = needs.iter().map(Need::shown).collect();
        bail!(
            "apt offers no suitable {} here, nor in {backports}: install it by hand; {said}",
            wanted.join(", ")
        );
    }
    Ok(Some(backports))
}

/// The name of the backports suite, made available: it has a newer `package`.
pub fn backports(package: &str) -> Result<String> {
    let suite = format!("{}-backports", codename()?);
    if !installable(&[], &[package], Some(&suite))? {
        enable_backports()?;
    }
    Ok(suite)
}

/// Whether apt could install the packages, new enough and without removing anything.
fn installable(needs: &[Need], names: &[&str], release: Option<&str>) -> Result<bool> {
    let output = command::output(apt_simulation(names, release).env("LC_ALL", "C"))?;
    let plan = String::from_utf8_lossy(&output.stdout);
    let removes = plan.lines().any(|line| line.starts_with("Remv "));
    Ok(output.status.success() && !removes && needs.iter().all(|need| need.is_planned(&plan)))
}

fn apt_simulation(names: &[&str], release: Option<&str>) -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("--simulate")
        .args(install_arguments(names, release));
    apt
}

fn install_arguments(names: &[&str], release: Option<&str>) -> Vec<String> {
    let mut arguments: Vec<String> = ["install", "-y", "-q", "--no-install-recommends"]
        .map(str::to_owned)
        .into();
    if let Some(release) = release {
        arguments.extend(["-t".to_owned(), release.to_owned()]);
    }
    arguments.extend(names.iter().map(|name| (*name).to_owned()));
    arguments
}

/// The name of this release.
///
/// # Errors
/// When the system does not say it.
pub fn codename() -> Result<String> {
    let path = "/etc/os-release";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.with_context(|| {
        format!("{path} has no VERSION_CODENAME: cannot name this release's backports")
    })?;
    Ok(name.trim_matches('"').to_owned())
}

fn enable_backports() -> Result<()> {
    let stanza = sources::backports_stanza(Path::new("/etc/apt"), &codename()?)?;
    eprintln!(
        "    adding backports, which this release's own packages cannot replace, as {BACKPORTS_FILE}"
    );
    let made = std::env::temp_dir().join(format!("skerry-backports-{}", std::process::id()));
    std::fs::write(&made, stanza).with_context(|| format!("cannot write {}", made.display()))?;
    let copied = as_root(
        "install",
        &[
            OsStr::new("-m"),
            OsStr::new("0644"),
            made.as_os_str(),
            OsStr::new(BACKPORTS_FILE),
        ],
    );
    let removed = std::fs::remove_file(&made);
    copied?;
    removed.with_context(|| format!("cannot remove {}", made.display()))?;
    update_lists()
}

fn update_lists() -> Result<()> {
    eprintln!("    apt-get update");
    apt_get(&["update".to_owned(), "-q".to_owned()])
        .context("cannot refresh apt's lists: check the network and apt's sources")
}

fn apt_get(arguments: &[String]) -> Result<()> {
    let fixed = [
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=300",
    ];
    let words: Vec<&OsStr> = fixed
        .iter()
        .map(AsRef::as_ref)
        .chain(arguments.iter().map(AsRef::as_ref))
        .collect();
    as_root("env", &words)
}

/// Runs a program as root: directly, or through sudo. Its output is shown only when it fails.
fn as_root(program: &str, arguments: &[&OsStr]) -> Result<()> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else if in_path("sudo") {
        let mut sudo = Command::new("sudo");
        sudo.arg(program);
        sudo
    } else {
        bail!(
            "installing packages needs root, and there is no sudo here: run this command as root once"
        );
    };
    command::read(command.args(arguments)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: Need = Need {
        program: "qemu",
        package: "qemu-system-x86",
        major: Some(9),
        why: "a test",
    };

    #[test]
    fn a_plan_with_an_old_version_will_not_do() {
        assert!(!NEED.is_planned("Inst qemu-system-x86 (1:7.2+dfsg-7 Debian:12 [amd64])\n"));
        assert!(
            NEED.is_planned(
                "Inst qemu-system-x86 [1:7.2] (1:10.0.2+ds-2 Debian Backports [amd64])\n"
            )
        );
    }

    #[test]
    fn a_plan_for_another_package_will_not_do() {
        assert!(!NEED.is_planned(
            "Inst qemu-system-x86-64 (1:10.0 Debian [amd64])\nConf qemu-system-x86 (1:10.0)\n"
        ));
    }

    #[test]
    fn what_a_program_says_about_its_version_is_understood() {
        assert_eq!(
            major_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"),
            Some(10)
        );
        assert_eq!(major_version("no version"), None);
    }
}
