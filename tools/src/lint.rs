//! `cargo xtask lint`: formatting, clippy and the documentation's build, every warning an error.
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::progress::Step;
use crate::{command, workspace};

/// Runs the three checks, the cheapest first.
///
/// # Errors
/// At the first check that fails.
pub fn run() -> Result<ExitCode> {
    check(&["fmt", "--all", "--check"], &[])?;
    check(
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    )?;
    check(
        &[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ],
        &[("RUSTDOCFLAGS", "-Dwarnings")],
    )?;
    Ok(ExitCode::SUCCESS)
}

fn check(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let step = Step::start(format!("cargo {}", arguments.join(" ")));
    let mut cargo = Command::new(workspace::cargo());
    command::run(
        cargo
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(workspace::root()),
    )?;
    step.done("");
    Ok(())
}
