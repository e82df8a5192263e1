//! The lab's process 1 once the root is in place: runs the command, sends its output out, reports its exit code, stops QEMU.
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions};

/// The virtio ports that carry the command's output.
pub const STDOUT_PORT: &str = "lab.stdout";
/// See [`STDOUT_PORT`].
pub const STDERR_PORT: &str = "lab.stderr";
/// A byte comes out of this one every [`PULSE`], as long as the lab's kernel runs programs.
pub const PULSE_PORT: &str = "lab.pulse";
/// See [`PULSE_PORT`].
pub const PULSE: Duration = Duration::from_secs(5);
/// Files in the control folder: the command's words, its environment, its directory …
pub const COMMAND: &str = "command";
/// See [`COMMAND`].
pub const ENVIRONMENT: &str = "environment";
/// See [`COMMAND`].
pub const DIRECTORY: &str = "directory";
/// … and what came of it: its exit code, or why there is none.
pub const EXIT_CODE: &str = "exit-code";
/// See [`EXIT_CODE`].
pub const ERROR: &str = "error";

/// The port of QEMU's isa-debug-exit device: a write ends QEMU at once.
const DEBUG_EXIT_PORT: u64 = 0xf4;
/// How long the output of processes that outlive the command may stay silent before it is cut off.
const QUIET: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// Where the two writable shares are.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// This run's folder
    #[arg(long)]
    control: PathBuf,
    /// The folder for results
    #[arg(long)]
    out: PathBuf,
}

/// Words as they are, each ended by a NUL (which no word can hold).
pub fn pack(words: &[OsString]) -> Vec<u8> {
    words
        .iter()
        .flat_map(|word| [word.as_bytes(), b"\0"].concat())
        .collect()
}

fn unpack(bytes: &[u8]) -> Vec<OsString> {
    let mut words: Vec<OsString> = bytes
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    words.pop();
    words
}

/// Runs the command that the control folder names, then stops the machine. Returns only when it is not the lab's process 1.
///
/// # Errors
/// When called anywhere but in the lab.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if std::process::id() != 1 {
        bail!("lab-inside is the lab's own: use `cargo xtask lab -- COMMAND`");
    }
    let report = match execute(arguments) {
        Ok(code) => fs::write(arguments.control.join(EXIT_CODE), code.to_string()),
        Err(error) => fs::write(arguments.control.join(ERROR), format!("{error:#}")),
    };
    if let Err(error) = report {
        eprintln!("lab: cannot report the result: {error}");
    }
    rustix::fs::sync();
    stop_machine()
}

fn execute(arguments: &Arguments) -> Result<u8> {
    if !Path::new("/dev/kvm").exists() {
        bail!(
            "the lab's kernel has no /dev/kvm: it needs the module kvm-amd and a QEMU whose TCG emulates SVM"
        );
    }
    for (resource, limit) in [
        (Resource::Memlock, None),
        (Resource::Nofile, Some(65536)),
        (Resource::Core, Some(0)),
    ] {
        rustix::process::setrlimit(
            resource,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        )
        .context("cannot set a limit")?;
    }
    let read = |name| {
        fs::read(arguments.control.join(name))
            .with_context(|| format!("cannot read the control file {name}"))
    };
    let words = unpack(&read(COMMAND)?);
    let (program, rest) = words.split_first().context("there is no command to run")?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .current_dir(OsStr::from_bytes(&read(DIRECTORY)?))
        .stdin(Stdio::null());
    command
        .env_clear()
        .envs(environment(&unpack(&read(ENVIRONMENT)?)))
        .env("TMPDIR", "/run/lab/tmp")
        .env("SKERRY_LAB_OUT", &arguments.out);

    let finished = Arc::new(AtomicBool::new(false));
    let (stdout_reader, stdout) = std::io::pipe().context("cannot make a pipe")?;
    let (stderr_reader, stderr) = std::io::pipe().context("cannot make a pipe")?;
    let relays = [
        relay(
            stdout_reader,
            open_port(STDOUT_PORT)?,
            Arc::clone(&finished),
        ),
        relay(
            stderr_reader,
            open_port(STDERR_PORT)?,
            Arc::clone(&finished),
        ),
    ];
    beat(open_port(PULSE_PORT)?);
    command.stdout(stdout).stderr(stderr);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", program.to_string_lossy()))?;
    // The command holds this process's ends of the pipes, too: without them gone, their readers would see no end.
    drop(command);
    let code = reap_until(Pid::from_child(&child))?;
    finished.store(true, Ordering::Release);
    for relay in relays {
        // A relay that panicked has lost output, but the exit code is still worth reporting.
        let _ = relay.join();
    }
    Ok(code)
}

/// The caller's variables, with busybox's tools behind everything else in `PATH`.
fn environment(words: &[OsString]) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    for word in words {
        let bytes = word.as_bytes();
        let Some(equals) = bytes.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        let (name, value) = (
            OsStr::from_bytes(&bytes[..equals]),
            OsStr::from_bytes(&bytes[equals + 1..]),
        );
        variables.retain(|(known, _)| known != name);
        let mut value = value.to_owned();
        if name == "PATH" {
            value.push(":/usr/sbin:/sbin:/run/lab/bin");
        }
        variables.push((name.to_owned(), value));
    }
    variables
}

/// Process 1 inherits every orphan: wait for all of them, until the command itself ends.
fn reap_until(child: Pid) -> Result<u8> {
    loop {
        let waited =
            rustix::process::wait(WaitOptions::empty()).context("cannot wait for the command")?;
        let Some((process, status)) = waited else {
            continue;
        };
        if process == child {
            let code = status
                .exit_status()
                .or(status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(255);
            return Ok(u8::try_from(code).unwrap_or(255));
        }
    }
}

/// The device file of a virtio port, by the name that QEMU gave it.
fn open_port(name: &str) -> Result<File> {
    let class = Path::new("/sys/class/virtio-ports");
    let entries =
        fs::read_dir(class).with_context(|| format!("cannot list {}", class.display()))?;
    let is_it = |port: &PathBuf| {
        fs::read_to_string(port.join("name")).is_ok_and(|found| found.trim() == name)
    };
    let found = entries.flatten().map(|entry| entry.path()).find(is_it);
    let port = found.with_context(|| format!("the lab has no virtio port {name}"))?;
    let device = Path::new("/dev").join(port.file_name().unwrap_or_default());
    OpenOptions::new()
        .write(true)
        .open(&device)
        .with_context(|| format!("cannot open {}", device.display()))
}

/// Shows from now on that programs run here.
fn beat(mut port: File) {
    std::thread::spawn(move || {
        while port.write_all(b".").is_ok() {
            std::thread::sleep(PULSE);
        }
    });
}

/// Copies a pipe to a port: until the pipe ends, or the command has ended and the pipe stays silent.
fn relay(mut pipe: PipeReader, mut port: File, finished: Arc<AtomicBool>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 16384];
        loop {
            // Asked before polling, so that what the command wrote last is still seen.
            let last_call = finished.load(Ordering::Acquire);
            match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&QUIET)) {
                Ok(0) if last_call => return,
                Ok(0) | Err(_) => continue,
                Ok(_) => {}
            }
            let Ok(count @ 1..) = pipe.read(&mut buffer) else {
                return;
            };
            if port.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    })
}

/// Ends QEMU by its exit device; by power-off where that is missing.
fn stop_machine() -> ! {
    // Whoever outlived the command must not write any more; that nobody did is no error.
    let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
    if let Ok(port) = OpenOptions::new().write(true).open("/dev/port") {
        let _ = port.write_at(&[1], DEBUG_EXIT_PORT);
    }
    let failed = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    // Process 1 must not return: the kernel would panic, which at least ends QEMU.
    unreachable!("the machine neither exits nor powers off: {failed:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_packing_exactly() {
        let words = ["a b", "", "\"'$\\\n", "\u{e9}"].map(OsString::from);
        assert_eq!(unpack(&pack(&words)), words);
    }

    #[test]
    fn the_last_value_of_a_variable_wins_and_path_gains_the_tools() {
        let words = ["A=1", "PATH=/bin", "A=2=3"].map(OsString::from);
        let variables = environment(&words);
        assert!(variables.contains(&("A".into(), "2=3".into())));
        assert!(variables.contains(&("PATH".into(), "/bin:/usr/sbin:/sbin:/run/lab/bin".into())));
        assert_eq!(variables.len(), 2);
    }
}
