//! Building with cargo, and finding what it built wherever its output goes.
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{command, workspace};

/// What the kvm and lab tiers, and the demo, run. What runs guests is always optimised, so that there is one build for
/// all of them.
pub struct Programs {
    /// The monitor.
    pub vmm: PathBuf,
    /// The payload that runs natively on any KVM.
    pub payload: PathBuf,
    /// The command.
    pub skerry: PathBuf,
}

/// Builds the monitor alone.
///
/// # Errors
/// When the build fails.
pub fn vmm() -> Result<PathBuf> {
    program(
        &built(&["build", "--release", "--package", "skerry-vmm", "--bins"])?,
        "skerry-vmm",
    )
}

/// Builds the monitor, the payload and the command.
///
/// # Errors
/// When the build fails.
pub fn programs() -> Result<Programs> {
    let built = built(&[
        "build",
        "--release",
        "--package",
        "skerry-vmm",
        "--package",
        "skerry-payload",
        "--bins",
    ])?;
    // The unit tests have built nearly all of it, and optimising the rest as a whole takes longer than it would save.
    let skerry = command()?;
    Ok(Programs {
        vmm: program(&built, "skerry-vmm")?,
        payload: program(&built, "skerry-payload")?,
        skerry,
    })
}

/// Builds the command, without optimisation.
///
/// # Errors
/// When the build fails.
pub fn command() -> Result<PathBuf> {
    program(
        &built(&["build", "--package", "skerry", "--bins"])?,
        "skerry",
    )
}

/// Builds the command as it is given to users.
///
/// # Errors
/// When the build fails.
pub fn released_command() -> Result<PathBuf> {
    program(
        &built(&["build", "--release", "--package", "skerry", "--bins"])?,
        "skerry",
    )
}

/// Builds the load of the Linux guest.
///
/// # Errors
/// When the build fails.
pub fn guest_churn() -> Result<PathBuf> {
    guest_program("skerry-guest-churn", "skerry-churn")
}

/// Builds the agent of the Linux guest.
///
/// # Errors
/// When the build fails.
pub fn guest_agent() -> Result<PathBuf> {
    guest_program("skerry-guest", "skerry-guest")
}

/// Builds a program for the guest: linked statically, since the guest's libraries are not this host's.
fn guest_program(package: &str, name: &str) -> Result<PathBuf> {
    program(
        &built(&[
            "rustc",
            "--release",
            "--package",
            package,
            "--bin",
            name,
            "--",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
        ])?,
        name,
    )
}

/// Builds one end-to-end tier's test program.
///
/// # Errors
/// When the build fails, for example because the tier has no tests.
pub fn tier(name: &str) -> Result<PathBuf> {
    program(
        &built(&[
            "test",
            "--no-run",
            "--package",
            "skerry-tests",
            "--test",
            name,
        ])?,
        name,
    )
}

fn program(built: &[(String, PathBuf)], name: &str) -> Result<PathBuf> {
    let found = built.iter().find(|(target, _)| target == name);
    found
        .map(|(_, path)| path.clone())
        .with_context(|| format!("cargo built no program {name}"))
}

/// Runs cargo, its progress and diagnostics on stderr as usual, and returns every executable with its target's name.
fn built(arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = Command::new(workspace::cargo());
    // Behind the subcommand, because words behind `--` are the compiler's.
    let (subcommand, rest) = arguments.split_at(1);
    cargo
        .args(subcommand)
        .arg("--message-format=json-render-diagnostics")
        .args(rest)
        .current_dir(workspace::root());
    let shown = command::shown(&cargo);
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let mut found = Vec::new();
    for line in BufReader::new(stdout).lines() {
        found.extend(executable(&line.context("cannot read cargo's output")?));
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(found)
}

fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?;
    let name = message.get("target")?.get("name")?.as_str()?;
    Some((name.to_owned(), PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_with_an_executable_is_found() {
        let message =
            r#"{"reason":"compiler-artifact","target":{"name":"kvm"},"executable":"/t/kvm-1"}"#;
        assert_eq!(
            executable(message),
            Some(("kvm".into(), PathBuf::from("/t/kvm-1")))
        );
    }

    #[test]
    fn a_library_is_none() {
        assert_eq!(
            executable(r#"{"reason":"compiler-artifact","target":{"name":"x"},"executable":null}"#),
            None
        );
        assert_eq!(executable("not json"), None);
    }
}
