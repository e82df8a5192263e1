//! Containers on this host, from OCI image layouts; for the agent, and usable without it.
//!
//! All is blocking, with bounds. Nothing is kept in memory: a second [`Containers`] on the same directory
//! knows what the first one did, whatever became of it.
//!
//! ```text
//! ROOT/images, ROOT/layers      images and their unpacked layers, shared (image/)
//! ROOT/containers/ID            one container's directory (home.rs)
//!   spec.json                   what it is to be
//!   upper, work                 what it has written, and overlayfs' scratch
//!   log, log.1, …               its output
//!   run.json, exit.json         a shim has begun; how it ended
//!   lock, shim.sock, shim.log   a shim's lock, socket and last words
//! ```

pub mod builtin;
mod bundle;
mod cgroup;
mod check;
mod error;
mod exec;
mod home;
mod image;
mod oci;
mod overlay;
mod passwd;
mod program;
mod record;
mod removal;
mod seccomp;
pub mod shim;
mod signal;
mod spec;
mod usage;
mod wire;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use skerry_images::store::{Manifest, Store};

pub use self::error::ContainerError;
pub use self::signal::number as signal_number;
pub use self::{
    exec::{Exec, ExecEvent, ExecInput},
    image::{Image, ImageError, Layout, fits_here},
    spec::{
        ContainerSpec, ExecSpec, Exit, LogLimits, MountSpec, Network, ResourceLimits, Runtime,
        Started, State, TerminalSize,
    },
};

pub(super) use self::cgroup::Cgroup;
use self::home::Home;
use self::image::{Images, Limits};
use self::program::Program;
use self::removal::remove_path;
use self::wire::{Answer, Kind, Request};
use super::usage::Usage;

/// How long a container may take to start.
const START: Duration = Duration::from_secs(90);
/// How long a shim may take to answer beyond what it waits for.
const ANSWER: Duration = Duration::from_secs(40);
/// How long a shim may take to end when its container has.
const END: Duration = Duration::from_secs(10);
/// How long to sleep between two looks at a container's directory.
const PAUSE: Duration = Duration::from_millis(2);
/// What the name of a directory begins with that is being removed.
const GONE: &str = ".gone-";

/// A container that was found.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub id: String,
    /// What it is to be, if that can be read.
    pub spec: Option<ContainerSpec>,
    /// What it is doing.
    pub state: State,
}

/// The containers in a directory.
#[derive(Debug, Clone)]
pub struct Containers {
    root: PathBuf,
    images: Images,
    program: Arc<OnceLock<Program>>,
}

impl Containers {
    /// Those in `root`, which is made if it is not there.
    pub fn new(root: &Path) -> Result<Containers, ContainerError> {
        let root = std::path::absolute(root).map_err(ContainerError::system("find", root))?;
        let containers = root.join("containers");
        fs::create_dir_all(&containers).map_err(ContainerError::system("make", containers))?;
        let images = Images::new(&root, Limits::default());
        Ok(Containers {
            root,
            images,
            program: Arc::default(),
        })
    }

    fn home(&self, id: &str) -> Result<Home, ContainerError> {
        home::check_id(id)?;
        Home::at(&self.root.join("containers").join(id))
    }

    /// A container's directory that is there.
    fn existing(&self, id: &str) -> Result<Home, ContainerError> {
        let home = self.home(id)?;
        match home.path().is_dir() {
            true => Ok(home),
            false => Err(ContainerError::None { id: id.into() }),
        }
    }

    /// Unpacks an image of a layout as far as the cache lacks it. `name` is the image's in the layout,
    /// or its manifest's digest; without one the layout must hold one image.
    pub fn prepare(&self, layout: &Path, name: Option<&str>) -> Result<Image, ContainerError> {
        Ok(self.images.prepare(&Layout::open(layout)?, name)?)
    }

    /// The same of an image of the image store.
    pub fn prepare_stored(&self, store: &Store, image: Manifest) -> Result<Image, ContainerError> {
        let layout = Layout::Stored(Box::new((store.clone(), image)));
        Ok(self.images.prepare(&layout, None)?)
    }

    /// An image that was prepared before, by its manifest's digest.
    pub fn image(&self, digest: &str) -> Result<Option<Image>, ContainerError> {
        Ok(self.images.get(digest)?)
    }

    /// Removes all images but `kept`, by their digests, and all layers that no image or container has.
    /// Says how many layers went.
    pub fn prune(&self, kept: &HashSet<String>) -> Result<usize, ContainerError> {
        let mut used = HashSet::new();
        for id in self.ids()? {
            // Without its record a container cannot be started either.
            if let Ok(spec) = self.home(&id)?.spec() {
                used.extend(spec.image.layers);
            }
        }
        Ok(self.images.prune(kept, &used)?)
    }

    /// Makes a container. Nothing runs yet.
    pub fn create(&self, id: &str, spec: &ContainerSpec) -> Result<(), ContainerError> {
        check::check(spec)?;
        self.home(id)?.make(spec)
    }

    /// Starts a container that was made, or that has ended: with what it had written.
    pub fn start(&self, id: &str) -> Result<(), ContainerError> {
        let home = self.existing(id)?;
        match home.state()? {
            State::Created | State::Exited(_) => {}
            State::Lost => {
                home.recover()?;
            }
            State::Starting | State::Running(_) => {
                return Err(ContainerError::Running { id: id.into() });
            }
        }
        // A shim whose container has ended may still say so to somebody.
        self.await_unlocked(&home, END)?;
        let failed = |why: String| ContainerError::Start { id: id.into(), why };
        let path = std::env::var_os("PATH")
            .unwrap_or_else(|| OsString::from("/usr/sbin:/usr/bin:/sbin:/bin"));
        let program = self.program()?;
        let child = Command::new(program.path())
            .args(["shim", "--dir"])
            .arg(home.path())
            .env_clear()
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|e| failed(format!("its shim cannot be run: {e}")))?;
        let mut said = String::new();
        let errors = child.stderr.take();
        // The starter says all that it has to say and ends; the shim keeps nothing of this open.
        let end = Instant::now() + START;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_micros(500)),
                Ok(None) => {
                    // Its shim is found by the lock.
                    let _ = child.kill();
                    let _ = child.wait();
                    home.end_shim()?;
                    return Err(ContainerError::Slow {
                        what: format!("starting container {id}"),
                        limit: START,
                    });
                }
                Err(e) => return Err(failed(e.to_string())),
            }
        };
        if status.success() {
            return Ok(());
        }
        if let Some(errors) = errors {
            // What is no text is not shown.
            let _ = errors.take(16 << 10).read_to_string(&mut said);
        }
        let said = said.trim();
        let said = said.strip_prefix("skerry: ").unwrap_or(said);
        Err(failed(match said.is_empty() {
            true => format!("its shim ended with {status}"),
            false => said.into(),
        }))
    }

    /// The program that shims run. It is opened once: a mount's end costs the kernel milliseconds.
    fn program(&self) -> Result<&Program, ContainerError> {
        if let Some(program) = self.program.get() {
            return Ok(program);
        }
        let program = Program::open().map_err(ContainerError::system(
            "make a read-only mount (Linux 5.12) of",
            "/proc/self/exe",
        ))?;
        Ok(self.program.get_or_init(|| program))
    }

    /// All containers that are there, after the agent's start or at any time. What killed shims have left
    /// is ended, and said to have exited; what was half made or half removed is removed.
    pub fn adopt(&self) -> Result<Vec<Found>, ContainerError> {
        let containers = self.root.join("containers");
        for path in listed(&containers)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let half_made = !path.join("spec.json").exists() && !path.join("lock").exists();
            if name.starts_with(GONE) || half_made {
                remove_path(&path).map_err(ContainerError::system("remove", &path))?;
            }
        }
        let mut all = Vec::new();
        for id in self.ids()? {
            let home = self.home(&id)?;
            let state = match home.state()? {
                State::Lost => State::Exited(home.recover()?),
                state => state,
            };
            let spec = home.spec().ok();
            all.push(Found { id, spec, state });
        }
        Ok(all)
    }

    /// What a container is doing.
    pub fn state(&self, id: &str) -> Result<State, ContainerError> {
        self.existing(id)?.state()
    }

    /// What a container is to be.
    pub fn spec(&self, id: &str) -> Result<ContainerSpec, ContainerError> {
        self.existing(id)?.spec()
    }

    /// Waits for a container's end, or as long as is said.
    pub fn wait(&self, id: &str, limit: Duration) -> Result<State, ContainerError> {
        let home = self.existing(id)?;
        let end = Instant::now().checked_add(limit);
        loop {
            let left = end.map_or(limit, |end| end.saturating_duration_since(Instant::now()));
            let limit_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            if let Ok(Answer::State(state)) = self.ask(
                &home,
                &Request::Wait { limit_ms },
                left.saturating_add(ANSWER),
            ) {
                return Ok(state);
            }
            // It is about to start or to end, it has ended, or its shim was killed.
            let state = home.state()?;
            if !matches!(state, State::Starting | State::Running(_)) || left.is_zero() {
                return Ok(state);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Sends a container's first process a signal.
    pub fn signal(&self, id: &str, signal: i32) -> Result<(), ContainerError> {
        let home = self.running(id)?;
        self.ask(&home, &Request::Kill { signal }, ANSWER)
            .map(|_| ())
    }

    /// Asks a container to end, and kills it if it has not after `grace`. It is no error if it does not
    /// run.
    pub fn stop(&self, id: &str, grace: Duration) -> Result<State, ContainerError> {
        let home = self.existing(id)?;
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let end = Instant::now() + START;
        while home.state()? == State::Starting && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
        match home.state()? {
            State::Running(_) | State::Starting => {}
            State::Lost => return Ok(State::Exited(home.recover()?)),
            state => return Ok(state),
        }
        match self.ask(
            &home,
            &Request::Stop { grace_ms },
            grace.saturating_add(ANSWER),
        ) {
            Ok(Answer::State(state)) => Ok(state),
            Ok(_) => home.state(),
            Err(e) => match self.wait(id, END)? {
                // It ended by itself meanwhile.
                State::Exited(exit) => Ok(State::Exited(exit)),
                State::Lost => Ok(State::Exited(home.recover()?)),
                _ => Err(e),
            },
        }
    }

    /// Runs a command in a container that runs.
    pub fn exec(&self, id: &str, spec: &ExecSpec) -> Result<Exec, ContainerError> {
        let connection = self.exec_connection(id, spec)?;
        Ok(Exec::new(id, connection))
    }

    /// The same; the connection over which its streams go. Whoever closes it ends the command.
    pub fn exec_connection(&self, id: &str, spec: &ExecSpec) -> Result<UnixStream, ContainerError> {
        let home = self.running(id)?;
        let request = Request::Exec(spec.clone());
        let (connection, answer) = self.talk(&home, &request, ANSWER)?;
        match answer {
            Answer::Done => {
                let cannot = ContainerError::system("talk to the shim in", home.path());
                connection.set_read_timeout(None).map_err(cannot)?;
                Ok(connection)
            }
            _ => Err(refusal(id, "it answered something else")),
        }
    }

    /// What those use that run, of these, by their names.
    pub fn usage(&self, ids: Vec<String>) -> HashMap<String, Usage> {
        // Where cgroups are is the same for all of them.
        let Ok(all) = Cgroup::new("") else {
            return HashMap::new();
        };
        let used = ids.into_iter().filter_map(|id| {
            let path = self.home(&id).ok()?.cgroup_path(None);
            Some((id, usage::of(&all.beside(&path))?))
        });
        used.collect()
    }

    /// Where a container's output is kept. Older output is in `.1`, `.2` and so on behind the name.
    pub fn logs(&self, id: &str) -> Result<PathBuf, ContainerError> {
        Ok(self.existing(id)?.file("log"))
    }

    /// Ends a container and removes all of it: processes, cgroups, mounts and files. It is no error if
    /// there is none.
    pub fn delete(&self, id: &str) -> Result<(), ContainerError> {
        let home = self.home(id)?;
        if !home.path().exists() {
            return Ok(());
        }
        if let Ok(State::Running(_)) = home.state() {
            // One that does not answer is killed below, as is one that has not come so far.
            let _ = self.ask(&home, &Request::Delete, ANSWER);
            let _ = self.await_unlocked(&home, END);
        }
        home.end_shim()?;
        let spec = home.spec().ok();
        let cgroup = Cgroup::new(&home.cgroup_path(spec.as_ref()))
            .map_err(ContainerError::system("find the cgroup of", home.path()))?;
        home.clean(&cgroup)?;
        let gone = self.root.join("containers").join(format!("{GONE}{id}"));
        remove_path(&gone).map_err(ContainerError::system("remove", &gone))?;
        fs::rename(home.path(), &gone).map_err(ContainerError::system("remove", home.path()))?;
        remove_path(&gone).map_err(ContainerError::system("remove", gone))
    }

    fn ids(&self) -> Result<Vec<String>, ContainerError> {
        let names = listed(&self.root.join("containers"))?.into_iter();
        let names = names.filter_map(|path| path.file_name()?.to_str().map(String::from));
        let mut ids: Vec<String> = names.filter(|id| home::check_id(id).is_ok()).collect();
        ids.sort();
        Ok(ids)
    }

    fn running(&self, id: &str) -> Result<Home, ContainerError> {
        let home = self.existing(id)?;
        let state = match home.state()? {
            State::Running(_) => return Ok(home),
            State::Created => "not started",
            State::Starting => "being started",
            State::Exited(_) => "ended",
            State::Lost => "without its shim, which was killed",
        };
        Err(ContainerError::NotRunning {
            id: id.into(),
            state,
        })
    }

    fn ask(
        &self,
        home: &Home,
        request: &Request,
        limit: Duration,
    ) -> Result<Answer, ContainerError> {
        self.talk(home, request, limit).map(|(_, answer)| answer)
    }

    fn talk(
        &self,
        home: &Home,
        request: &Request,
        limit: Duration,
    ) -> Result<(UnixStream, Answer), ContainerError> {
        let cannot = |e: io::Error| match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ContainerError::Slow {
                what: format!("the shim of container {}", home.id()),
                limit,
            },
            _ => ContainerError::system("talk to the shim in", home.path())(e),
        };
        let mut connection = home.connect(wire::SOCKET).map_err(cannot)?;
        connection.set_read_timeout(Some(limit)).map_err(cannot)?;
        connection.set_write_timeout(Some(ANSWER)).map_err(cannot)?;
        wire::send_json(&mut connection, Kind::Request, request).map_err(cannot)?;
        let answer = wire::receive_json(&mut connection, Kind::Answer).map_err(cannot)?;
        match answer {
            Answer::Refused(why) => Err(refusal(home.id(), &why)),
            answer => Ok((connection, answer)),
        }
    }

    fn await_unlocked(&self, home: &Home, limit: Duration) -> Result<(), ContainerError> {
        let end = Instant::now() + limit;
        while home.is_alive()? {
            if Instant::now() > end {
                return Err(ContainerError::Slow {
                    what: format!("the end of the shim of container {}", home.id()),
                    limit,
                });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn refusal(id: &str, why: &str) -> ContainerError {
    ContainerError::Refused {
        id: id.into(),
        why: why.into(),
    }
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>, ContainerError> {
    let cannot = || ContainerError::system("list", folder);
    let entries = fs::read_dir(folder).map_err(cannot())?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<io::Result<_>>().map_err(cannot())
}
