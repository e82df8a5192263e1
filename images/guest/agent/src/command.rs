//! A command: started in a session of its own, waited for, and ended with all that it started.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command as Program, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use skerry_exec::{ExecSpec, Inlet, Kind, Streams, TerminalSize};

/// Where programs are found if nothing else is said.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs.
pub struct Command {
    child: Child,
    /// Its process group, which is its own; none once its number may be another's.
    group: Arc<Mutex<Option<Pid>>>,
}

/// Starts a command.
///
/// # Errors
/// Why it does not run, for whoever asked.
pub fn start(spec: &ExecSpec) -> Result<(Command, Streams), String> {
    let [name, arguments @ ..] = spec.args.as_slice() else {
        return Err("there is no command: give one".to_owned());
    };
    if let Some(user) = &spec.user {
        return Err(format!(
            "the agent in the guest changes no users: run it as `su {user} -c …`"
        ));
    }
    let mut program = Program::new(name);
    program.args(arguments);
    if std::env::var_os("PATH").is_none() {
        program.env("PATH", PATH);
    }
    program.envs(spec.env.iter().map(|(name, value)| (name, value)));
    program.current_dir(spec.working_dir.as_deref().unwrap_or("/".as_ref()));
    let cannot = |what: &str, e: io::Error| format!("cannot {what}: {e}");
    let streams = match spec.terminal {
        Some(size) => on_terminal(&mut program, size).map_err(|e| cannot("make a terminal", e))?,
        None => on_pipes(&mut program).map_err(|e| cannot("make pipes", e))?,
    };
    let child = program
        .spawn()
        .map_err(|e| cannot(&format!("run `{name}`"), e))?;
    let group = Arc::new(Mutex::new(Some(Pid::from_child(&child))));
    Ok((Command { child, group }, streams))
}

fn on_pipes(program: &mut Program) -> io::Result<Streams> {
    let (input, inlet) = io::pipe()?;
    let (stdout, output) = io::pipe()?;
    let (stderr, error) = io::pipe()?;
    program.stdin(input).stdout(output).stderr(error);
    program.process_group(0);
    Ok(Streams {
        inlet: Inlet::Pipe(inlet.into()),
        outlets: vec![(Kind::Output, stdout.into()), (Kind::Error, stderr.into())],
    })
}

fn on_terminal(program: &mut Program, size: TerminalSize) -> io::Result<Streams> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, rustix::fs::Mode::empty())?;
    size.give(&theirs)?;
    let stream = |fd: &OwnedFd| fd.try_clone().map(Stdio::from);
    program.stdin(stream(&theirs)?).stdout(stream(&theirs)?);
    program.stderr(theirs);
    let lead = || {
        // What keys send is heard, also where we do not hear it ourselves (started in a shell's background, say).
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP] {
            // SAFETY: a call that may be made between fork and exec; the default action is no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // The terminal is standard input by now.
        // SAFETY: both are calls that may be made between fork and exec, and take plain numbers.
        match unsafe { libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) != -1 } {
            true => Ok(()),
            false => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: `lead` makes a few system calls and allocates nothing.
    unsafe { program.pre_exec(lead) };
    Ok(Streams {
        outlets: vec![(Kind::Output, ours.try_clone()?)],
        inlet: Inlet::Terminal(ours),
    })
}

impl Command {
    /// What ends it and all that it started, if it has not ended.
    pub fn killer(&self) -> impl Fn() + Send + 'static {
        let group = self.group.clone();
        move || {
            let group = group.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(group) = *group {
                // It may have ended meanwhile.
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
    }

    /// Waits for its end; its exit code, or 128 and the signal's number.
    pub fn wait(mut self) -> i32 {
        let pid = Pid::from_child(&self.child);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(
            waitid(WaitId::Pid(pid), options),
            Err(rustix::io::Errno::INTR)
        ) {}
        // Its number may be another's as soon as it is collected.
        *self.group.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let status = self.child.wait();
        let code =
            status.map(|status| status.code().or(status.signal().map(|signal| 128 + signal)));
        code.ok().flatten().unwrap_or(255)
    }
}
