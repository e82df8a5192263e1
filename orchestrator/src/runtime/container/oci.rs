//! Asking a runtime: the one that is built in and any with runc's command line are asked alike.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::builtin;
use super::error::ContainerError;
use super::shim::child;
use super::shim::reaper::{Ended, Reaper};
use super::spec::Runtime;

/// How long a runtime may take to do one thing.
const LIMIT: Duration = Duration::from_secs(30);
/// Where it keeps its state, in the container's directory.
const ROOT: &str = "runtime";
/// Where it says why something failed.
const LOG: &str = "runtime.log";
/// How much of what it says of a failure is shown, in bytes.
const SHOWN: usize = 2000;

/// What a new process has as its standard input, output and error.
pub struct Streams {
    /// What it reads.
    pub input: Stdio,
    /// Where its output goes.
    pub output: Stdio,
    /// Where its errors go.
    pub error: Stdio,
}

/// Where a container's output and errors go.
pub struct ContainerStreams {
    /// Its output.
    pub output: OwnedFd,
    /// Its errors.
    pub error: OwnedFd,
}

impl Streams {
    /// Nothing.
    pub fn none() -> Streams {
        Streams {
            input: Stdio::null(),
            output: Stdio::null(),
            error: Stdio::null(),
        }
    }
}

/// A runtime, and the container's directory that it works in.
pub struct Oci<'a> {
    runtime: &'a Runtime,
    home: &'a Path,
    id: &'a str,
}

/// A container that is being made, by a process of the runtime.
pub struct Making(i32);

impl<'a> Oci<'a> {
    /// A runtime for one container.
    pub fn new(runtime: &'a Runtime, home: &'a Path, id: &'a str) -> Oci<'a> {
        Oci { runtime, home, id }
    }

    /// Begins to make the container. This process must have one thread yet.
    pub fn create(&self, streams: ContainerStreams) -> Result<Making, ContainerError> {
        let what = "make the container";
        let failed = |e: io::Error| ContainerError::Runtime {
            what,
            why: self.unstartable(&e),
        };
        if *self.runtime == Runtime::BuiltIn {
            // A program would have to be loaded first.
            let log = self.home.join(LOG);
            let (home, id) = (self.home, self.id);
            let work = || {
                std::env::set_current_dir(home).map_err(|e| e.to_string())?;
                let created = builtin::create(
                    Path::new(ROOT),
                    id,
                    Path::new("bundle"),
                    Path::new("init.pid"),
                );
                created.map_err(|e| e.chain())
            };
            return child::run(streams.output, streams.error, &log, work)
                .map(Making)
                .map_err(failed);
        }
        let arguments = ["create", "--bundle", "bundle", "--pid-file", "init.pid"];
        let mut command = self.command(&arguments.map(String::from));
        command
            .stdin(Stdio::null())
            .stdout(streams.output)
            .stderr(streams.error);
        let child = command.spawn().map_err(failed)?;
        Ok(Making(child.id() as i32))
    }

    /// Waits until it is made. Says its first process, which waits to be started.
    pub fn created(&self, making: Making, reaper: &Reaper) -> Result<i32, ContainerError> {
        self.wait("make the container", making.0, reaper)?;
        read_pid(&self.home.join("init.pid"))
    }

    /// Starts it.
    pub fn start(&self, reaper: &Reaper) -> Result<(), ContainerError> {
        let what = "start the container";
        if *self.runtime == Runtime::BuiltIn {
            // It only writes to a socket.
            let started = builtin::start(&self.home.join(ROOT), self.id);
            return started.map_err(|e| ContainerError::Runtime {
                what,
                why: e.chain(),
            });
        }
        self.run(what, &["start".into()], Streams::none(), reaper)
    }

    /// Starts another process in it, described by a file. Says its number. All paths are from the
    /// container's directory.
    pub fn exec(
        &self,
        process: &str,
        pid_file: &str,
        console: Option<&str>,
        streams: Streams,
        reaper: &Reaper,
    ) -> Result<i32, ContainerError> {
        let arguments = [
            "exec",
            "--detach",
            "--process",
            process,
            "--pid-file",
            pid_file,
        ];
        let mut arguments = arguments.map(String::from).to_vec();
        if let Some(socket) = console {
            arguments.extend(["--console-socket".into(), socket.into()]);
        }
        self.run(
            "start a command in the container",
            &arguments,
            streams,
            reaper,
        )?;
        read_pid(&self.home.join(pid_file))
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = match self.runtime {
            // The program that runs, whatever has taken its name meanwhile.
            Runtime::BuiltIn => {
                let mut command = Command::new("/proc/self/exe");
                command.args(["shim", "oci"]);
                command
            }
            Runtime::Program(path) => Command::new(path),
        };
        command
            .current_dir(self.home)
            .args(["--root", ROOT, "--log", LOG])
            .args(arguments)
            .arg(self.id);
        command
    }

    fn run(
        &self,
        what: &'static str,
        arguments: &[String],
        streams: Streams,
        reaper: &Reaper,
    ) -> Result<(), ContainerError> {
        let mut command = self.command(arguments);
        command
            .stdin(streams.input)
            .stdout(streams.output)
            .stderr(streams.error);
        let pid = reaper
            .spawn(&mut command)
            .map_err(|e| ContainerError::Runtime {
                what,
                why: self.unstartable(&e),
            })?;
        // The streams' descriptors here would keep pipes open.
        drop(command);
        self.wait(what, pid, reaper)
    }

    fn wait(&self, what: &'static str, pid: i32, reaper: &Reaper) -> Result<(), ContainerError> {
        match reaper.wait(pid, Some(LIMIT)) {
            Some(Ended { code: 0, .. }) => Ok(()),
            Some(ended) => Err(ContainerError::Runtime {
                what,
                why: said(&self.home.join(LOG)).unwrap_or_else(|| ended.to_string()),
            }),
            None => {
                reaper.kill(pid);
                Err(ContainerError::Slow {
                    what: format!("the runtime, asked to {what},"),
                    limit: LIMIT,
                })
            }
        }
    }

    fn unstartable(&self, e: &io::Error) -> String {
        match self.runtime {
            Runtime::BuiltIn => format!("it cannot be run: {e}"),
            Runtime::Program(path) => format!("{} cannot be run: {e}", path.display()),
        }
    }
}

/// The last thing that a runtime logged.
fn said(log: &PathBuf) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    // runc writes JSON if its log's format is set so, else key="value".
    let message = line
        .split_once("msg=\"")
        .map_or(line, |(_, message)| message);
    let message = message.strip_suffix('"').unwrap_or(message);
    Some(message.replace("\\\"", "\"").chars().take(SHOWN).collect())
}

fn read_pid(path: &Path) -> Result<i32, ContainerError> {
    let text = fs::read_to_string(path).map_err(ContainerError::system("read", path))?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
    pid.ok_or_else(|| {
        let wrong = std::io::Error::other(format!("{text:?} is no process"));
        ContainerError::system("read", path)(wrong)
    })
}
