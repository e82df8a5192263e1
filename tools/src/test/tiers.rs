//! How each tier runs.
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use super::count::{self, Report};
use crate::lab::STOOD_STILL;
use crate::packages::Need;
use crate::probe::{Probe, probe};
use crate::progress::Step;
use crate::{cargo, cloud, command, guest, package, packages, virtiofsd, workspace};

/// The lab tier's time limit in the lab, in seconds.
const LAB_TIMEOUT: &str = "3600";
/// So many more labs are tried when the emulator breaks down.
const MORE_LABS: u32 = 3;

/// What the end-to-end tiers' tests use.
const END_TO_END: [Need; 10] = [
    packages::NETWORK[0],
    packages::NETWORK[1],
    packages::IMAGES,
    packages::CONTAINERS[0],
    packages::CONTAINERS[1],
    packages::REGISTRY[0],
    packages::REGISTRY[1],
    packages::SEEING[0],
    packages::SEEING[1],
    packages::SEEING[2],
];

/// The oldest minor version of Kubernetes's client (1.x) that speaks all that the tests ask it for. Debian 12 has an
/// older one, so it is not installed from there.
const KUBECTL: u64 = 27;

/// Which of a tier's cases.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Those with this in their names, or all of them.
    Like(Option<&'a str>),
    /// Those with these names, one after the other.
    Exactly(&'a [String]),
}

impl Which<'_> {
    /// How libtest is told.
    fn arguments(self) -> Vec<String> {
        match self {
            Which::Like(filter) => filter.map(str::to_owned).into_iter().collect(),
            Which::Exactly(names) => {
                let mut all = vec!["--exact".to_owned(), "--test-threads=1".to_owned()];
                all.extend_from_slice(names);
                all
            }
        }
    }
}

/// Refuses a host without a client that the API is tested with.
fn ensure_kubectl() -> Result<()> {
    let remedy = format!(
        "this tier asks the API by kubectl 1.{KUBECTL} or newer: put one into PATH (https://kubernetes.io/docs/tasks/tools has it)"
    );
    let mut version = Command::new("kubectl");
    version.args(["version", "--client", "--output", "json"]);
    let said = command::read(&mut version).with_context(|| remedy.clone())?;
    let said: serde_json::Value = serde_json::from_str(&said).with_context(|| remedy.clone())?;
    let minor = said["clientVersion"]["minor"].as_str().unwrap_or_default();
    let digits = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    if digits.parse::<u64>().is_ok_and(|minor| minor >= KUBECTL) {
        return Ok(());
    }
    bail!("kubectl here is 1.{minor}: {remedy}")
}

/// Unit, property and documentation tests of all crates but the end-to-end one.
pub fn unit(which: Which<'_>, report: &mut Report) -> Result<()> {
    packages::ensure(&[packages::IMAGES, packages::REGISTRY[1]])?;
    let mut test = Command::new(workspace::cargo());
    test.args([
        "test",
        "--workspace",
        "--exclude",
        "skerry-tests",
        "--no-fail-fast",
        "--",
    ])
    .args(which.arguments());
    counted(test.current_dir(workspace::root()), report)
}

/// The native payload on this host's KVM.
pub fn kvm(which: Which<'_>, report: &mut Report) -> Result<()> {
    kvm_with(which, &[], report)
}

/// The same, with variables that say how much.
pub fn kvm_with(which: Which<'_>, how_much: &[(&str, u64)], report: &mut Report) -> Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    kvm.context("this tier needs /dev/kvm: load the module kvm_intel or kvm_amd, and be root or in the group kvm")?;
    packages::ensure(&END_TO_END)?;
    ensure_kubectl()?;
    let programs = build_programs()?;
    let mut environment = environment(&programs, None);
    // What is in the package of tests is not optimised, but for the monitor.
    let package = package::build(&[programs.skerry, programs.vmm])?;
    environment.push(("SKERRY_PACKAGE", package));
    environment.push(("SKERRY_CLEAN_SYSTEM", package::clean_system()?));
    environment.push(("SKERRY_VIRTIOFSD", virtiofsd::ensure()?));
    let tests = build_tests("kvm")?;
    // Most of a case's time is waiting: for a guest, for a disk, for what is not to happen.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    counted(
        Command::new(tests)
            .args(which.arguments())
            .env("RUST_TEST_THREADS", (2 * cpus).to_string())
            .envs(environment)
            .envs(how_much.iter().map(|(name, n)| (name, n.to_string())))
            .current_dir(workspace::root()),
        report,
    )
}

/// Linux guests: on this host's KVM when it can run them, in the lab when not or when told to.
pub fn lab(which: Which<'_>, in_lab: bool, report: &mut Report) -> Result<()> {
    lab_with(which, in_lab, &[], report)
}

/// The same, with variables that say how much.
pub fn lab_with(
    which: Which<'_>,
    in_lab: bool,
    how_much: &[(&'static str, u64)],
    report: &mut Report,
) -> Result<()> {
    packages::ensure(&END_TO_END)?;
    let programs = build_programs()?;
    let tests = build_tests("lab")?;
    let guest = guest::build()?;
    let mut environment = environment(&programs, Some(&guest.folder));
    environment.push(("SKERRY_VIRTIOFSD", virtiofsd::ensure()?));
    let how_much = how_much.iter();
    environment.extend(how_much.map(|(name, n)| (*name, n.to_string().into())));
    let mut left = match which {
        Which::Like(filter) => names(&tests, filter)?,
        Which::Exactly(names) => names.to_vec(),
    };
    if left.iter().any(|name| name.starts_with("cloud::")) {
        packages::ensure(&[packages::LOGIN])?;
        environment.push(("SKERRY_CLOUD_DIR", cloud::stored(&programs.skerry)?));
    }
    let in_lab = in_lab || must_be_in_lab(&programs.vmm)?;
    for attempt in 0.. {
        if left.is_empty() {
            break;
        }
        let mut one_by_one = vec![OsString::from("sh"), "-c".into(), ONE_BY_ONE.into()];
        one_by_one.push(tests.clone().into());
        one_by_one.extend(left.iter().map(OsString::from));
        let mut command = if in_lab {
            let mut lab = Command::new(workspace::this_program()?);
            lab.args(["lab", "--timeout", LAB_TIMEOUT]);
            for (name, value) in &environment {
                let pair = [OsString::from(name), value.into()].join("=".as_ref());
                lab.arg("--env").arg(pair);
            }
            lab.arg("--").args(one_by_one);
            lab
        } else {
            let mut native = Command::new(&one_by_one[0]);
            native
                .args(&one_by_one[1..])
                .envs(environment.iter().cloned());
            native
        };
        let mut done = Report::default();
        let status = run_counted(command.current_dir(workspace::root()), &mut done)?;
        left.drain(..left.len().min(done.count.all()));
        report.add(done);
        if status.code() == Some(STOOD_STILL.into()) && attempt < MORE_LABS {
            eprintln!(
                "    Another lab for the {} tests that were not finished.",
                left.len()
            );
        } else if !status.success() {
            bail!(
                "{} of the lab's tests failed: {status}",
                report.count.failed
            );
        } else if !left.is_empty() {
            bail!("{} tests of the lab did not run", left.len());
        }
    }
    Ok(())
}

/// A process a test, so that each has its own result line, also if the lab breaks down after it.
const ONE_BY_ONE: &str = r#"for test; do "$0" --exact "$test" --test-threads=1 --nocapture || failed=1; done; exit ${failed:-0}"#;

/// The tests of a program, by name.
fn names(tests: &Path, filter: Option<&str>) -> Result<Vec<String>> {
    let mut list = Command::new(tests);
    list.args(["--list", "--format", "terse"]).args(filter);
    let listed = command::read(&mut list)?;
    let names = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
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
    let step = Step::start("Building skerry-vmm, skerry-payload (release), and skerry");
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
        ("SKERRY_COMMAND", programs.skerry.clone()),
    ];
    pairs.extend(guest.map(|folder| ("SKERRY_GUEST_DIR", folder.to_owned())));
    pairs
}

/// Runs a test program, shows its output as it comes, and adds its cases to the report, also when it fails.
fn counted(command: &mut Command, report: &mut Report) -> Result<()> {
    let shown = command::shown(command);
    let status = run_counted(command, report)?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// The same, whatever comes of it.
fn run_counted(command: &mut Command, report: &mut Report) -> Result<ExitStatus> {
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
    report.add(counted.context("cannot pass on the tests' output")?);
    Ok(status)
}
