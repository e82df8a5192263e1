//! `cargo xtask lab`: one command in a machine of its own, where KVM is like hardware's and everything else like here.
//!
//! QEMU's TCG emulates a CPU with SVM and an IOMMU; Debian's stock kernel runs on it; the host's file system is its root, under
//! a layer of memory. So the build tree and all tools are at the same paths, and nothing the command writes stays, except below
//! `target/lab/out`.
pub mod inside;
mod prepare;
mod qemu;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The usual size: MiB, CPUs, seconds. One CPU, because QEMU 10.0's TCG loses a CPU's state (the lab's kernel crashes, or its
/// guest stands still, within minutes) when a thread that runs a vCPU moves to another CPU. Guests can have several all the same.
const MEMORY: u32 = 4096;
const CPUS: u32 = 1;
const TIMEOUT: u64 = 1800;

/// The exit code when the emulator broke down and another attempt is worth it (sysexits' EX_TEMPFAIL).
pub const STOOD_STILL: u8 = 75;

/// Variables of the caller that the command sees too; `--env` gives others.
const PASSED_ON: [&str; 5] = ["PATH", "HOME", "USER", "LANG", "TERM"];
/// … and those that begin with one of these.
const PASSED_ON_PREFIXES: [&str; 3] = ["RUST_", "SKERRY_", "PROPTEST_"];

/// What runs in the lab, and how big the lab is.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Memory of the lab in MiB
    #[arg(long, default_value_t = MEMORY, value_name = "MIB")]
    pub memory: u32,
    /// CPUs of the lab; with more than one, QEMU's emulated SVM now and then breaks when a vCPU's thread changes its CPU
    #[arg(long, default_value_t = CPUS, value_name = "N")]
    pub cpus: u32,
    /// Give up after so many seconds
    #[arg(long, default_value_t = TIMEOUT, value_name = "SECONDS")]
    pub timeout: u64,
    /// A variable for the command's environment (repeatable)
    #[arg(long = "env", value_name = "NAME=VALUE")]
    pub environment: Vec<String>,
    /// One more argument for QEMU, such as a device to pass through (repeatable)
    #[arg(long = "qemu", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub qemu: Vec<OsString>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl Arguments {
    /// A lab of the usual size for one command.
    pub fn for_command(command: Vec<OsString>) -> Self {
        Self {
            memory: MEMORY,
            cpus: CPUS,
            timeout: TIMEOUT,
            environment: Vec::new(),
            qemu: Vec::new(),
            command,
        }
    }
}

/// Runs the command in the lab; its exit code is the result, or [`STOOD_STILL`].
///
/// # Errors
/// When the lab cannot be made, panics, or takes too long: the error shows the end of its console.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = prepare::prepare()?;
    let folder = workspace::target().join("lab");
    remove_abandoned(&folder)?;
    let run = Run::create(&folder, &lab, arguments)?;
    let ended = qemu::run(&lab, &run, arguments);
    let console = folder.join("console.log");
    let kept = fs::rename(run.control.join(qemu::CONSOLE), &console);
    let ended = ended?;
    kept.with_context(|| format!("cannot keep the lab's console as {}", console.display()))?;
    let why = match ended {
        qemu::Ended::StoodStill => {
            eprintln!(
                "xtask: the lab stood still for {} s: nothing ran in it any more; the end of {}:\n{}",
                qemu::STILL.as_secs(),
                console.display(),
                last_lines(&console, 5)
            );
            return Ok(ExitCode::from(STOOD_STILL));
        }
        qemu::Ended::TimedOut => format!("the lab did not finish within {} s", arguments.timeout),
        qemu::Ended::Exited(status) => match run.result()? {
            Some(code) => return Ok(ExitCode::from(code)),
            None => format!("the lab died before its command ended (QEMU: {status})"),
        },
    };
    let qemu_said = fs::read_to_string(run.control.join(qemu::LOG)).unwrap_or_default();
    bail!(
        "{why}; the end of {}:\n{}{}",
        console.display(),
        last_lines(&console, 25),
        qemu_said
    );
}

/// One run's folder: what goes in (command, environment, paths) and what comes out (exit code, console). Removed when dropped.
struct Run {
    control: PathBuf,
    out: PathBuf,
}

impl Run {
    fn create(folder: &Path, lab: &prepare::Lab, arguments: &Arguments) -> Result<Self> {
        let run = Self {
            control: folder.join(format!("run-{}", std::process::id())),
            out: folder.join("out"),
        };
        for folder in [&run.control, &run.out] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let directory = std::env::current_dir().context("the current directory is gone")?;
        run.write("control-path", &lines([run.control.as_os_str()]))?;
        run.write("out-path", &lines([run.out.as_os_str()]))?;
        run.write("modules-path", &lines([lab.modules.as_os_str()]))?;
        run.write(inside::DIRECTORY, directory.as_os_str().as_bytes())?;
        run.write(inside::COMMAND, &inside::pack(&arguments.command))?;
        run.write(
            inside::ENVIRONMENT,
            &inside::pack(&environment(&arguments.environment)?),
        )?;
        // A copy, because a rebuild may replace the original while the lab runs.
        let program = workspace::this_program()?;
        let copy = run.control.join("xtask");
        fs::copy(&program, &copy)
            .with_context(|| format!("cannot copy {} to {}", program.display(), copy.display()))?;
        Ok(run)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.control.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The command's exit code, or `None` when it never ended.
    fn result(&self) -> Result<Option<u8>> {
        if let Ok(why) = fs::read_to_string(self.control.join(inside::ERROR)) {
            bail!("in the lab: {why}");
        }
        let Ok(code) = fs::read_to_string(self.control.join(inside::EXIT_CODE)) else {
            return Ok(None);
        };
        code.trim()
            .parse()
            .map(Some)
            .with_context(|| format!("the lab reported the exit code {code:?}"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.control) {
            eprintln!("xtask: cannot remove {}: {error}", self.control.display());
        }
    }
}

/// Removes the folders of runs whose xtask was killed.
fn remove_abandoned(folder: &Path) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix("run-") else {
            continue;
        };
        if !Path::new("/proc").join(process).exists() {
            // Somebody else may be at it as well; what counts is that it goes.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

fn lines<'a>(lines: impl IntoIterator<Item = &'a std::ffi::OsStr>) -> Vec<u8> {
    lines
        .into_iter()
        .flat_map(|line| [line.as_bytes(), b"\n"].concat())
        .collect()
}

fn environment(given: &[String]) -> Result<Vec<OsString>> {
    if let Some(wrong) = given.iter().find(|pair| !pair.contains('=')) {
        bail!("--env {wrong}: give it as NAME=VALUE");
    }
    let passed = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        PASSED_ON.contains(&name.as_ref())
            || PASSED_ON_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
    });
    let joined = passed.map(|(name, value)| [name, value].join("=".as_ref()));
    Ok(joined.chain(given.iter().map(OsString::from)).collect())
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| format!("  {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_word_without_a_value_is_refused() {
        assert!(
            environment(&["ONLY_A_NAME".into()])
                .expect_err("no value")
                .to_string()
                .contains("NAME=VALUE")
        );
    }

    #[test]
    fn given_variables_come_last_so_that_they_win() {
        let words = environment(&["PATH=/mine".into()]).expect("a variable");
        assert_eq!(words.last().expect("one word at least"), "PATH=/mine");
    }
}
