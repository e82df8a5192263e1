//! Running programs: every failure names the program, its arguments and what it said.
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A command as a person would type it, for messages.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

fn why_not_started(command: &Command, error: std::io::Error) -> anyhow::Error {
    let hint = if error.kind() == ErrorKind::NotFound {
        " (is it installed, and in PATH?)"
    } else {
        ""
    };
    anyhow::Error::new(error).context(format!("cannot start `{}`{hint}", shown(command)))
}

/// Runs a command with the caller's output; anything but exit code 0 is an error.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| why_not_started(command, error))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command silently and returns its output whatever its exit code.
///
/// # Errors
/// When it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| why_not_started(command, error))
}

/// Runs a command silently and returns what it printed; on failure its output is in the error.
///
/// # Errors
/// When it cannot be started, fails, or prints something that is not UTF-8.
pub fn read(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!(
            "`{}` failed: {}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&said).trim_end()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that is not UTF-8", shown(command)))
}
