//! How each tier runs.
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::count::{self, Count};
use crate::packages::Need;
use crate::probe::{Probe, probe};
use crate::progress::Step;
use crate::{cargo, command, guest, packages, virtiofsd, workspace};

/// The lab tier's time limit in the lab, in seconds.
const LAB_TIMEOUT: &str = "1800";

/// What the end-to-end tiers' tests use.
const END_TO_END: [Need; 3] = [packages::NETWORK[0], packages::NETWORK[1], packages::IMAGES];

/// Unit, property and documentation tests of all crates but the end-to-end one.
pub fn unit(filter: Option<&str>, count: &mut Count) -> Result<()> {
    packages::ensure(&[packages::IMAGES])?;
    let mut test = Command::new(workspace::cargo());
    test.args([
        "test",
        "--workspace",
        "--exclude",
        "skerry-tests",
        "--no-fail-fast",
        "--",
    ])
    .args(filter);
    counted(test.current_dir(workspace::root()), count)
}

/// The native payload on this host's KVM.
pub fn kvm(filter: Option<&str>, count: &mut Count) -> Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    kvm.context("this tier needs /dev/kvm: load the module kvm_intel or kvm_amd, and be root or in the group kvm")?;
    packages::ensure(&END_TO_END)?;
    let environment = environment(&build_programs()?, None);
    let tests = build_tests("kvm")?;
    counted(
        Command::new(tests)
            .args(filter)
            .envs(environment)
            .current_dir(workspace::root()),
        count,
    )
}

/// Linux guests: on this host's KVM when it can run them, in the lab when not or when told to.
pub fn lab(filter: Option<&str>, in_lab: bool, count: &mut Count) -> Result<()> {
    packages::ensure(&END_TO_END)?;
    let programs = build_programs()?;
    let tests = build_tests("lab")?;
    let guest = guest::build()?;
    let mut environment = environment(&programs, Some(&guest.folder));
    environment.push(("SKERRY_VIRTIOFSD", virtiofsd::ensure()?));
    let words = ["--test-threads=1", "--nocapture"]
        .map(OsString::from)
        .into_iter()
        .chain(filter.map(OsString::from));
    let mut command = if in_lab || must_be_in_lab(&programs.vmm)? {
        let mut lab = Command::new(workspace::this_program()?);
        lab.args(["lab", "--timeout", LAB_TIMEOUT]);
        for (name, value) in environment {
            let pair = [OsString::from(name), value.into_os_string()].join("=".as_ref());
            lab.arg("--env").arg(pair);
        }
        lab.arg("--").arg(tests).args(words);
        lab
    } else {
        let mut native = Command::new(tests);
        native.args(words).envs(environment);
        native
    };
    counted(command.current_dir(workspace::root()), count)
}

fn must_be_in_lab(vmm: &Path) -> Result<bool> {
    match probe(vmm)? {
        Probe::Capable => Ok(false),
        Probe::Incapable(why) => {
            eprintln!(
                "    This host's KVM cannot run Linux, so these tests run in the lab (QEMU TCG): {why}"
            );
            Ok(true)
        }
    }
}

fn build_programs() -> Result<cargo::Programs> {
    let step = Step::start("Building skerry-vmm and skerry-payload (release)");
    let programs = cargo::programs()?;
    step.done("");
    Ok(programs)
}

fn build_tests(tier: &str) -> Result<PathBuf> {
    let step = Step::start(format!("Building the tests of tier {tier}"));
    let program = cargo::tier(tier)?;
    step.done("");
    Ok(program)
}

/// How tests find what they test.
fn environment(programs: &cargo::Programs, guest: Option<&Path>) -> Vec<(&'static str, PathBuf)> {
    let mut pairs = vec![
        ("SKERRY_VMM", programs.vmm.clone()),
        ("SKERRY_PAYLOAD", programs.payload.clone()),
    ];
    pairs.extend(guest.map(|folder| ("SKERRY_GUEST_DIR", folder.to_owned())));
    pairs
}

/// Runs a test program, shows its output as it comes, and adds its cases to the count, also when it fails.
fn counted(command: &mut Command, count: &mut Count) -> Result<()> {
    let shown = command::shown(command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = child
        .stdout
        .take()
        .context("the test program has no output")?;
    let counted = count::pass_on(stdout, std::io::stdout());
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for `{shown}`"))?;
    *count += counted.context("cannot pass on the tests' output")?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}
