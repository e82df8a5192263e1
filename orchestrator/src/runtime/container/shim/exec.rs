//! A command in the container, with its streams over the connection that asked for it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use oci_spec::runtime::Spec;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use skerry_exec::{Inlet, Streams};

use super::super::bundle;
use super::super::error::ContainerError;
use super::super::image::Rooted;
use super::super::oci::{Oci, Streams as Ends};
use super::super::passwd;
use super::super::record;
use super::super::removal::remove_path;
use super::super::spec::ExecSpec;
use super::super::wire::{self, Answer, Kind};
use super::{Shared, terminal};

/// A command that runs.
struct Command {
    pid: i32,
    streams: Streams,
}

/// Runs a command and serves its connection until its end.
pub fn run(mut connection: UnixStream, shared: &Arc<Shared>, spec: &ExecSpec) -> io::Result<()> {
    let command = match start(shared, spec) {
        Ok(command) => command,
        Err(e) => {
            return wire::send_json(&mut connection, Kind::Answer, &Answer::Refused(e.chain()));
        }
    };
    // A command nobody listens to any more is killed, so one handle on it is kept.
    let pidfd = Pid::from_raw(command.pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let pidfd = pidfd.and_then(Result::ok);
    let kill = move || {
        if let Some(pidfd) = &pidfd {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    };
    wire::send_json(&mut connection, Kind::Answer, &Answer::Done)?;
    let ended = || {
        let ended = shared.reaper.wait(command.pid, None);
        ended.map_or(255, |ended| ended.code)
    };
    skerry_exec::serve(connection.into(), command.streams, kill, ended)
}

fn start(shared: &Shared, spec: &ExecSpec) -> Result<Command, ContainerError> {
    let number = shared.commands.fetch_add(1, Ordering::Relaxed);
    let home = &shared.home;
    let folder = home.file("exec");
    fs::create_dir_all(&folder).map_err(ContainerError::system("make", &folder))?;
    let name = |what: &str| format!("exec/{number}.{what}");
    let started = prepare(shared, spec, &name);
    for what in ["json", "pid", "sock"] {
        // They have served.
        let _ = remove_path(&home.file(&name(what)));
    }
    started
}

fn prepare(
    shared: &Shared,
    spec: &ExecSpec,
    name: &dyn Fn(&str) -> String,
) -> Result<Command, ContainerError> {
    let home = &shared.home;
    let path = home.file("bundle").join("config.json");
    let config: Option<Spec> =
        record::read(&path).map_err(ContainerError::system("read", &path))?;
    let config = config.ok_or_else(|| ContainerError::None {
        id: home.id().into(),
    })?;
    let identity = match &spec.user {
        Some(user) => {
            let root = home.file("bundle").join(bundle::ROOT);
            let root = Rooted::open(&root).map_err(ContainerError::system("open", root))?;
            Some(passwd::identity(&root, user)?)
        }
        None => None,
    };
    let process = bundle::exec_process(&config, spec, &shared.spec, identity)?;
    let path = home.file(&name("json"));
    record::note(&path, &process).map_err(ContainerError::system("write", path))?;
    let oci = Oci::new(&shared.spec.runtime, home.path(), home.id());
    let cannot = |e| ContainerError::system("make the streams of a command in", home.path())(e);
    match spec.terminal {
        Some(size) => {
            let socket = name("sock");
            let listener = home.listen(&socket).map_err(cannot)?;
            // A command may ask at once how large its terminal is.
            let thread = std::thread::Builder::new().name("terminal".into());
            let receiver = thread.spawn(move || {
                let terminal = terminal::receive(&listener)?;
                // The command may have ended at once.
                let _ = size.give(&terminal);
                io::Result::Ok(terminal)
            });
            let receiver = receiver.map_err(cannot)?;
            let (json, pid) = (name("json"), name("pid"));
            let pid = oci.exec(&json, &pid, Some(&socket), Ends::none(), &shared.reaper)?;
            let panicked = |_| Err(io::Error::other("its thread ended"));
            let terminal = receiver.join().unwrap_or_else(panicked).map_err(cannot)?;
            let other = terminal.try_clone().map_err(cannot)?;
            let streams = Streams {
                inlet: Inlet::Terminal(terminal),
                outlets: vec![(Kind::Output, other)],
            };
            Ok(Command { pid, streams })
        }
        None => {
            let (input, inlet) = io::pipe().map_err(cannot)?;
            let (stdout, output) = io::pipe().map_err(cannot)?;
            let (stderr, error) = io::pipe().map_err(cannot)?;
            let ends = Ends {
                input: Stdio::from(OwnedFd::from(input)),
                output: OwnedFd::from(output).into(),
                error: OwnedFd::from(error).into(),
            };
            let pid = oci.exec(&name("json"), &name("pid"), None, ends, &shared.reaper)?;
            let streams = Streams {
                inlet: Inlet::Pipe(inlet.into()),
                outlets: vec![(Kind::Output, stdout.into()), (Kind::Error, stderr.into())],
            };
            Ok(Command { pid, streams })
        }
    }
}
