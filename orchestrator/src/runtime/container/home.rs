//! A container's directory: what is in it, and what that says about the container.
//!
//! Everything is derived from here, so that anybody can take over: an agent after its own restart, and
//! one that finds a shim killed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::error::ContainerError;
use super::overlay;
use super::record;
use super::removal::remove_path;
use super::spec::{ContainerSpec, Exit, Started, State};
use super::wire;

/// How long processes and cgroups may take to end.
const LIMIT: Duration = Duration::from_secs(10);
/// The version of the records here.
const VERSION: u32 = 1;

/// A record and what it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tagged<T> {
    kind: String,
    version: u32,
    record: T,
}

/// What a shim says of itself when it begins.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// The shim's process.
    pub shim: i32,
    /// The host's boot that it belongs to.
    pub boot: String,
    /// The container, as soon as it runs.
    pub started: Option<Started>,
}

/// A container's directory.
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
    id: String,
}

impl Home {
    /// The directory at a path, whose last name is the container's.
    pub fn at(path: &Path) -> Result<Home, ContainerError> {
        let id = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        check_id(&id)?;
        Ok(Home {
            path: path.into(),
            id,
        })
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes it, with what the container is to be.
    pub fn make(&self, spec: &ContainerSpec) -> Result<(), ContainerError> {
        let mut builder = fs::DirBuilder::new();
        match builder.mode(0o700).create(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ContainerError::Exists {
                    id: self.id.clone(),
                });
            }
            other => other.map_err(ContainerError::system("make", &self.path))?,
        }
        // After a power cut its owner makes it again: it is not kept waiting for the disk.
        self.write("spec", spec)
    }

    fn write<T: Serialize>(&self, kind: &str, record: T) -> Result<(), ContainerError> {
        let path = self.file(&format!("{kind}.json"));
        let record = tagged(kind, record);
        record::note(&path, &record).map_err(ContainerError::system("write", path))
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        kind: &str,
    ) -> Result<Option<T>, ContainerError> {
        let path = self.file(&format!("{kind}.json"));
        let record: Option<Tagged<T>> =
            record::read(&path).map_err(ContainerError::system("read", &path))?;
        let Some(record) = record else {
            return Ok(None);
        };
        if record.kind != kind || record.version != VERSION {
            let message = format!("it is a {} of version {}", record.kind, record.version);
            return Err(ContainerError::system("understand", path)(
                io::Error::other(message),
            ));
        }
        Ok(Some(record.record))
    }

    /// What the container is to be.
    pub fn spec(&self) -> Result<ContainerSpec, ContainerError> {
        self.read("spec")?.ok_or_else(|| ContainerError::None {
            id: self.id.clone(),
        })
    }

    /// Notes that a shim has begun, and forgets an earlier end.
    pub fn write_run(&self, started: Option<Started>) -> Result<(), ContainerError> {
        let run = Run {
            shim: std::process::id() as i32,
            boot: boot(),
            started,
        };
        self.write("run", run)
    }

    /// What a shim said of itself.
    pub fn run(&self) -> Result<Option<Run>, ContainerError> {
        self.read("run")
    }

    /// Forgets that the container ever ran.
    pub fn forget_run(&self) -> Result<(), ContainerError> {
        for file in ["exit.json", "run.json"] {
            let path = self.file(file);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(ContainerError::system("remove", path)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps how the container ended, durably.
    pub fn write_exit(&self, exit: &Exit) -> Result<(), ContainerError> {
        let path = self.file("exit.json");
        record::keep(&path, &tagged("exit", exit)).map_err(ContainerError::system("write", path))
    }

    /// Takes the lock that a shim has as long as it lives. Nothing if another has it.
    pub fn lock(&self) -> Result<Option<File>, ContainerError> {
        let path = self.file("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(ContainerError::system("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(ContainerError::system("lock", path)(e)),
        }
    }

    /// Whether a shim lives.
    pub fn is_alive(&self) -> Result<bool, ContainerError> {
        let path = self.file("lock");
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(ContainerError::system("open", &path))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(ContainerError::system("lock", path)(e)),
        }
    }

    /// What the container is doing.
    pub fn state(&self) -> Result<State, ContainerError> {
        // In this order: a shim writes the end before it lets the lock go.
        let alive = self.is_alive()?;
        let run = self.run()?;
        // One that a power cut has broken says nothing.
        if let Ok(Some(exit)) = self.read::<Exit>("exit") {
            return Ok(State::Exited(exit));
        }
        Ok(match (alive, run) {
            (
                true,
                Some(Run {
                    started: Some(started),
                    ..
                }),
            ) => State::Running(started),
            (true, _) => State::Starting,
            (false, Some(_)) => State::Lost,
            (false, None) => State::Created,
        })
    }

    /// The container's cgroup. If what it is to be cannot be read, that is where it would be.
    pub fn cgroup_path(&self, spec: Option<&ContainerSpec>) -> String {
        let given = spec.and_then(|spec| spec.cgroup.clone());
        given.unwrap_or_else(|| format!("/skerry/{}", self.id))
    }

    /// The cgroup that the shim is in, and those whom it has started: as long as they are not in the
    /// container's.
    pub fn shim_cgroup(&self) -> io::Result<Cgroup> {
        Cgroup::new(&format!("/skerry.shims/{}", self.id))
    }

    /// Ends a shim, whether it answers or not, and those whom it had started.
    pub fn end_shim(&self) -> Result<(), ContainerError> {
        let own = self
            .shim_cgroup()
            .map_err(ContainerError::system("find the shim of", &self.path))?;
        own.kill(LIMIT)
            .map_err(ContainerError::system("end the shim of", &self.path))?;
        own.remove(LIMIT).map_err(ContainerError::system(
            "remove the shim's cgroup of",
            &self.path,
        ))
    }

    /// Ends a run: its processes, cgroups, and the runtime's files.
    pub fn end(&self, cgroup: &Cgroup) -> Result<(), ContainerError> {
        let cannot = |what| ContainerError::system(what, &self.path);
        cgroup.kill(LIMIT).map_err(cannot("end the processes of"))?;
        cgroup
            .remove(LIMIT)
            .map_err(cannot("remove the cgroup of"))?;
        self.remove(&["runtime", "exec", wire::SOCKET, "init.pid"])
    }

    /// Ends what is left of a run, and makes room for the next.
    pub fn clean(&self, cgroup: &Cgroup) -> Result<(), ContainerError> {
        self.end(cgroup)?;
        overlay::take_down(&self.path)?;
        self.remove(&["bundle", "lower", "work"])
    }

    fn remove(&self, names: &[&str]) -> Result<(), ContainerError> {
        for name in names {
            let path = self.file(name);
            remove_path(&path).map_err(ContainerError::system("remove", &path))?;
        }
        Ok(())
    }

    /// Ends what a killed shim left, and keeps that as the container's end.
    pub fn recover(&self) -> Result<Exit, ContainerError> {
        self.end_shim()?;
        let spec = self.spec().ok();
        let cgroup = Cgroup::new(&self.cgroup_path(spec.as_ref()))
            .map_err(ContainerError::system("find the cgroup of", &self.path))?;
        let run = self.run().ok().flatten();
        let oom_kills = cgroup.oom_kills();
        self.clean(&cgroup)?;
        let rebooted = run.as_ref().is_some_and(|run| run.boot != boot());
        let reason = match rebooted {
            true => "the host was started anew",
            false => "the process that looked after it was killed",
        };
        let exit = Exit {
            code: 137,
            signal: Some(libc::SIGKILL),
            started: run.and_then(|run| run.started).map(|started| started.at),
            ended: SystemTime::now(),
            oom_kills,
            reason: Some(reason.into()),
        };
        self.write_exit(&exit)?;
        Ok(exit)
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(CWD, &self.path, flags, Mode::empty())?)
    }

    /// Listens on a socket in it. Its path may be longer than a socket's may.
    pub fn listen(&self, name: &str) -> io::Result<UnixListener> {
        let directory = self.open()?;
        remove_path(&self.file(name))?;
        UnixListener::bind(through(&directory, name))
    }

    /// Connects to a socket in it.
    pub fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let directory = self.open()?;
        UnixStream::connect(through(&directory, name))
    }
}

fn tagged<T>(kind: &str, record: T) -> Tagged<T> {
    Tagged {
        kind: kind.into(),
        version: VERSION,
        record,
    }
}

/// A short path to a name in an open directory.
fn through(directory: &impl AsFd, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()).into()
}

/// What tells one boot of the host from another.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().into()
}

/// Refuses what cannot name a container.
pub fn check_id(id: &str) -> Result<(), ContainerError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let first = id.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    match first && id.len() <= 128 && id.chars().all(plain) {
        true => Ok(()),
        false => Err(ContainerError::Name { id: id.into() }),
    }
}
