//! virtiofsd, which serves a directory to a guest: Debian 12 has no package of it that is current, so cargo builds it
//! from crates.io, below `target/tools`, once.
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::packages::{self, Need};
use crate::progress::Step;
use crate::{command, workspace};

const VERSION: &str = "1.14.0";

const LIBRARIES: [Need; 2] = [
    Need {
        program: "/usr/include/cap-ng.h",
        package: "libcap-ng-dev",
        major: None,
        why: "building virtiofsd, which shares directories with guests in the tests",
    },
    Need {
        program: "/usr/include/seccomp.h",
        package: "libseccomp-dev",
        major: None,
        why: "building virtiofsd",
    },
];

/// The program, built if it is not there.
///
/// # Errors
/// When its libraries or its source cannot be had.
pub fn ensure() -> Result<PathBuf> {
    let root = workspace::target().join("tools");
    let program = root.join("bin/virtiofsd");
    let _lock = workspace::lock(&root)?;
    let version = command::read(Command::new(&program).arg("--version")).unwrap_or_default();
    if version.trim().ends_with(VERSION) {
        return Ok(program);
    }
    packages::ensure(&LIBRARIES)?;
    let step = Step::start(format!("Building virtiofsd {VERSION}"));
    let scratch = root.join("build");
    command::read(
        Command::new(workspace::cargo())
            .args([
                "install",
                "virtiofsd",
                "--locked",
                "--version",
                VERSION,
                "--root",
            ])
            .arg(&root)
            .env("CARGO_TARGET_DIR", &scratch)
            .current_dir(workspace::root()),
    )?;
    // Only the program is of use.
    let _ = std::fs::remove_dir_all(scratch);
    step.done("");
    Ok(program)
}
