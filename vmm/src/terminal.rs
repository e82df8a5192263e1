//! The host's side of consoles: standard streams, pseudo-terminals, files, sockets.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use skerry_vmm_api::config::{ConsoleConfig, ConsoleMode};
use thiserror::Error;

use crate::attach::Attached;
use crate::sandbox::Sandbox;

/// Why a console could not be opened.
#[derive(Debug, Error)]
#[error("cannot open the {console} on {target}")]
pub struct TerminalError {
    console: &'static str,
    target: String,
    source: io::Error,
}

/// The host's side of one console.
#[derive(Default)]
pub struct Terminal {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    /// The pseudo-terminal's name, for whoever wants to open it.
    pub pty: Option<PathBuf>,
    /// Keeps the pseudo-terminal alive while nobody has it open.
    _other_side: Option<OwnedFd>,
    _attached: Option<Attached>,
    _raw: Option<RawMode>,
}

impl Terminal {
    /// Opens what `config` names. `console` is what messages call it.
    pub fn open(
        console: &'static str,
        config: &ConsoleConfig,
        sandbox: Sandbox,
    ) -> Result<Terminal, TerminalError> {
        let error = |target: &str| {
            let target = target.to_owned();
            move |source| TerminalError {
                console,
                target,
                source,
            }
        };
        match config.mode {
            ConsoleMode::Off | ConsoleMode::Null => Ok(Terminal::default()),
            ConsoleMode::Tty => Terminal::standard().map_err(error("standard input and output")),
            ConsoleMode::Pty => Terminal::pty().map_err(error("a new pseudo-terminal")),
            ConsoleMode::Socket => {
                let path = config.socket.clone().unwrap_or_default();
                Terminal::attachable(&path, config.file.as_deref(), sandbox)
                    .map_err(error(&path.display().to_string()))
            }
            ConsoleMode::File => {
                let path = config.file.clone().unwrap_or_default();
                let file = File::options()
                    .create(true)
                    .write(true)
                    .truncate(true)
                    // A FIFO that nobody reads is refused (ENXIO) instead of waited for.
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path);
                let file = file.map_err(error(&path.display().to_string()))?;
                rustix::io::ioctl_fionbio(&file, false)
                    .map_err(|e| error(&path.display().to_string())(e.into()))?;
                Ok(Terminal {
                    output: Some(file.into()),
                    ..Terminal::default()
                })
            }
        }
    }

    fn attachable(path: &Path, log: Option<&Path>, sandbox: Sandbox) -> io::Result<Terminal> {
        let attached = Attached::start(path, log, sandbox)?;
        Ok(Terminal {
            input: Some(attached.descriptor()?),
            output: Some(attached.descriptor()?),
            _attached: Some(attached),
            ..Terminal::default()
        })
    }

    fn standard() -> io::Result<Terminal> {
        // Standard input may well be closed; then nobody types.
        let input = io::stdin().as_fd().try_clone_to_owned().ok();
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        let raw = input.as_ref().and_then(|fd| RawMode::enter(fd.as_fd()));
        Ok(Terminal {
            input,
            output: Some(output),
            _raw: raw,
            ..Terminal::default()
        })
    }

    fn pty() -> io::Result<Terminal> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let name = PathBuf::from(name.to_string_lossy().into_owned());
        let slave = File::options().read(true).write(true).open(&name)?;
        let mut mode = tcgetattr(&slave)?;
        mode.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &mode)?;
        // A pseudo-terminal that nobody reads must not stop the guest.
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Terminal {
            input: Some(master.try_clone()?),
            output: Some(master),
            pty: Some(name),
            _other_side: Some(slave.into()),
            ..Terminal::default()
        })
    }

    /// What is typed, if anybody can type.
    pub fn input(&self) -> io::Result<Option<OwnedFd>> {
        self.input.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Where output goes, if anybody looks.
    pub fn output(&self) -> io::Result<Option<OwnedFd>> {
        self.output.as_ref().map(OwnedFd::try_clone).transpose()
    }
}

/// A terminal in raw mode, until dropped.
struct RawMode {
    fd: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// None if it is no terminal.
    fn enter(fd: BorrowedFd<'_>) -> Option<RawMode> {
        let before = tcgetattr(fd).ok()?;
        let fd = fd.try_clone_to_owned().ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // Keep what makes our own lines readable. Ctrl-C is the guest's.
        raw.output_modes = before.output_modes;
        tcsetattr(&fd, OptionalActions::Now, &raw).ok()?;
        Some(RawMode { fd, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.before);
    }
}
