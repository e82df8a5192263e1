//! `cargo xtask package`: the Debian package, by cargo-deb, which cargo builds once below `target/tools`.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::packages::{self, Need};
use crate::progress::Step;
use crate::{cargo, command, sources, workspace};

/// The version of cargo-deb.
const VERSION: &str = "3.8.0";

/// What building takes beside cargo-deb.
const TOOLS: [Need; 2] = [
    Need {
        program: "strip",
        package: "binutils",
        major: None,
        why: "making programs of a package smaller",
    },
    Need {
        program: "dpkg-shlibdeps",
        package: "dpkg-dev",
        major: None,
        why: "finding out which libraries a package depends on",
    },
];

/// A system of Debian's smallest, in which the package is tried.
const CHROOT: [Need; 1] = [Need {
    program: "mmdebstrap",
    package: "mmdebstrap",
    major: None,
    why: "a clean system to install the package in",
}];

/// How the package is made.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// With a command that is not optimised: as the tests have it, sooner
    #[arg(long)]
    quick: bool,
}

/// Makes it, and says where it is.
///
/// # Errors
/// When a build fails.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let programs = match arguments.quick {
        true => {
            let programs = cargo::programs()?;
            [programs.skerry, programs.vmm]
        }
        false => [cargo::released_command()?, cargo::vmm()?],
    };
    println!("{}", build(&programs)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes the package of these programs: the command and the monitor.
///
/// # Errors
/// When cargo-deb cannot be had, or refuses.
pub fn build(programs: &[PathBuf; 2]) -> Result<PathBuf> {
    packages::ensure(&TOOLS)?;
    let deb = cargo_deb()?;
    let step = Step::start("Making the Debian package");
    let stage = workspace::target().join("package");
    let _lock = workspace::lock(&stage)?;
    for part in ["bin", "man", "completion"] {
        let part = stage.join(part);
        // What an older command said must not stay.
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    }
    for (program, name) in programs.iter().zip(["skerry", "skerry-vmm"]) {
        let to = stage.join("bin").join(name);
        fs::copy(program, &to).with_context(|| format!("cannot copy {}", program.display()))?;
        // Symbols are most of what a command is that is not optimised.
        command::run(Command::new("strip").arg(&to))?;
    }
    let skerry = &programs[0];
    command::run(Command::new(skerry).arg("man").arg(stage.join("man")))?;
    for (shell, file) in [
        ("bash", "skerry"),
        ("zsh", "_skerry"),
        ("fish", "skerry.fish"),
    ] {
        let said = command::read(Command::new(skerry).args(["completion", shell]))?;
        let to = stage.join("completion").join(file);
        fs::write(&to, said).with_context(|| format!("cannot write {}", to.display()))?;
    }
    let to = stage.join("skerry.deb");
    command::read(
        Command::new(deb)
            .args(["--no-build", "--no-strip", "--fast", "--manifest-path"])
            .arg(workspace::root().join("orchestrator/Cargo.toml"))
            .arg("--output")
            .arg(&to)
            .current_dir(workspace::root()),
    )?;
    step.done(&to.display().to_string());
    Ok(to)
}

/// cargo-deb, built if it is not there.
fn cargo_deb() -> Result<PathBuf> {
    let root = workspace::target().join("tools");
    let program = root.join("bin/cargo-deb");
    let _lock = workspace::lock(&root)?;
    let version = command::read(Command::new(&program).arg("--version")).unwrap_or_default();
    if version.trim().ends_with(VERSION) {
        return Ok(program);
    }
    let step = Step::start(format!("Building cargo-deb {VERSION}"));
    let scratch = root.join("build");
    command::read(
        Command::new(workspace::cargo())
            .args(["install", "cargo-deb", "--locked", "--no-default-features"])
            .args(["--debug", "--version", VERSION, "--root"])
            .arg(&root)
            .env("CARGO_TARGET_DIR", &scratch)
            .current_dir(workspace::root()),
    )?;
    // Only the program is of use.
    let _ = fs::remove_dir_all(scratch);
    step.done("");
    Ok(program)
}

/// Debian's smallest system as an archive, made if it is not there, from where this host's packages come.
///
/// # Errors
/// When it cannot be made.
pub fn clean_system() -> Result<PathBuf> {
    packages::ensure(&CHROOT)?;
    let root = workspace::target().join("tools");
    let made = root.join("minbase.tar");
    let _lock = workspace::lock(&root)?;
    if made.exists() {
        return Ok(made);
    }
    let step = Step::start("Making a clean Debian system to install the package in");
    let (half, source) = (root.join("minbase.half.tar"), root.join("minbase.sources"));
    let codename = packages::codename()?;
    let stanza = sources::release_stanza(Path::new("/etc/apt"), &codename)?;
    fs::write(&source, stanza).with_context(|| format!("cannot write {}", source.display()))?;
    command::read(
        Command::new("mmdebstrap")
            .args(["--variant=essential", "--quiet", &codename])
            .args([&half, &source]),
    )?;
    fs::rename(&half, &made).context("cannot keep the clean system")?;
    step.done("");
    Ok(made)
}
