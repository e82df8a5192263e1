//! The process that looks after one container: it outlives the agent, and everything that it knows is
//! in the container's directory.
//!
//! It makes the root file system, the bundle and the container, keeps its output, answers on a socket,
//! waits for its end, writes that down, and leaves nothing behind. Plain threads, no runtime.

pub mod child;
mod control;
mod daemon;
mod exec;
pub mod log;
mod loopback;
pub mod reaper;
mod terminal;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};

use self::daemon::{Placed, Ready, Side};
use self::reaper::{Ended, Reaper};
use super::bundle::{self, Circumstances};
use super::cgroup::{self, Cgroup};
use super::check;
use super::error::ContainerError;
use super::home::Home;
use super::image::{Images, Limits, Rooted};
use super::oci::{ContainerStreams, Oci};
use super::overlay;
use super::passwd;
use super::record;
use super::spec::{ContainerSpec, Exit, MountSpec, Network, Started, State};

/// How long output may still come when the container has ended.
const DRAIN: Duration = Duration::from_secs(2);
/// How long those who wait for the container's end have to be told.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the shim's threads share.
#[derive(Debug)]
struct Shared {
    home: Home,
    spec: ContainerSpec,
    reaper: Reaper,
    /// The container's first process: it stays the same one.
    init: OwnedFd,
    state: Mutex<State>,
    ended: Condvar,
    /// How many commands were run in it.
    commands: AtomicU64,
}

impl Shared {
    fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Waits for the container's end.
    fn wait(&self, limit: Duration) -> State {
        let end = Instant::now() + limit;
        let mut state = self.state.lock();
        while !matches!(*state, State::Exited(_)) {
            if self.ended.wait_until(&mut state, end).timed_out() {
                break;
            }
        }
        state.clone()
    }

    /// Sends the container's first process a signal.
    fn signal(&self, signal: i32) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open, and no information is passed.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.init.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match sent {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Runs a shim for the container in a directory. Returns in the process that was started, as soon as
/// the container runs; the shim itself never returns.
pub fn run(path: &Path) -> Result<(), String> {
    let path = std::path::absolute(path).map_err(|e| e.to_string())?;
    let home = Home::at(&path).map_err(|e| e.to_string())?;
    let log = home.file("shim.log");
    let own = home
        .shim_cgroup()
        .map_err(|e| format!("cannot find the cgroups: {e}"))?;
    let split = daemon::split(&log, |shim| own.enter(shim));
    match split.map_err(|e| format!("cannot start a process: {e}"))? {
        Side::Starter(reader) => daemon::hear(reader),
        Side::Shim(ready, placed) => {
            let code = match look_after(home, ready, placed) {
                Ok(()) => 0,
                Err(e) => {
                    eprintln!("{}", e.chain());
                    1
                }
            };
            std::process::exit(code)
        }
    }
}

/// Everything from the container's start to its end.
fn look_after(home: Home, ready: Ready, placed: Placed) -> Result<(), ContainerError> {
    let begun = begin(&home, placed);
    let Begun {
        shared,
        cgroup,
        init,
        listener,
        collector,
        _lock,
    } = match begun {
        Ok(begun) => begun,
        Err(e) => {
            ready.fail(&e.chain());
            return Err(e);
        }
    };
    let talks = control::serve(listener, shared.clone());
    ready.say();
    let ended = shared.reaper.wait(init, None).unwrap_or(Ended {
        code: 255,
        signal: None,
    });
    let oom_kills = cgroup.oom_kills();
    let started = match shared.state() {
        State::Running(started) => Some(started.at),
        _ => None,
    };
    let exit = Exit {
        code: ended.code,
        signal: ended.signal,
        started,
        ended: SystemTime::now(),
        oom_kills,
        reason: None,
    };
    // The disk and the kernel are waited for at the same time.
    let (written, cleaned) = std::thread::scope(|scope| {
        let written = scope.spawn(|| home.write_exit(&exit));
        let cleaned = home.end(&cgroup);
        let end = Instant::now() + DRAIN;
        while !collector.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
        (written.join(), cleaned)
    });
    *shared.state.lock() = State::Exited(exit);
    shared.ended.notify_all();
    talks.end(FAREWELL);
    // A panic would have ended this process.
    cleaned.and(written.unwrap_or(Ok(())))
}

/// A container that runs.
struct Begun {
    shared: Arc<Shared>,
    cgroup: Cgroup,
    init: i32,
    listener: std::os::unix::net::UnixListener,
    collector: std::thread::JoinHandle<()>,
    _lock: File,
}

fn begin(home: &Home, placed: Placed) -> Result<Begun, ContainerError> {
    let lock = home.lock()?.ok_or_else(|| ContainerError::Running {
        id: home.id().into(),
    })?;
    let spec = home.spec()?;
    home.forget_run()?;
    home.write_run(None)?;
    let cgroup = Cgroup::new(&home.cgroup_path(Some(&spec)))
        .map_err(ContainerError::system("find the cgroup of", home.path()))?;
    // What an earlier run has left, if it was killed.
    home.clean(&cgroup)?;
    let begun = bring_up(home, &spec, placed);
    match begun {
        Ok((shared, init, listener, collector)) => Ok(Begun {
            shared,
            cgroup,
            init,
            listener,
            collector,
            _lock: lock,
        }),
        Err(e) => {
            // The reason for the failure is what is told.
            if let Err(e) = home.clean(&cgroup).and_then(|()| home.forget_run()) {
                eprintln!("{}", e.chain());
            }
            Err(e)
        }
    }
}

type Up = (
    Arc<Shared>,
    i32,
    std::os::unix::net::UnixListener,
    std::thread::JoinHandle<()>,
);

fn bring_up(home: &Home, spec: &ContainerSpec, placed: Placed) -> Result<Up, ContainerError> {
    check::check(spec)?;
    describe(home, spec)?;
    let cannot = |what| ContainerError::system(what, home.path());
    let (stdout, stdout_in) = io::pipe().map_err(cannot("make a pipe for"))?;
    let (stderr, stderr_in) = io::pipe().map_err(cannot("make a pipe for"))?;
    // A service that ends its own cgroup would end the container. And whoever finds this shim killed
    // finds those there whom it had started.
    placed
        .wait()
        .map_err(cannot("make a cgroup for the shim of"))?;
    let oci = Oci::new(&spec.runtime, home.path(), home.id());
    // Before there are threads.
    let making = oci.create(ContainerStreams {
        output: stdout_in.into(),
        error: stderr_in.into(),
    })?;
    let reaper = Reaper::start().map_err(cannot("start a thread for"))?;
    let log_path = home.file("log");
    let log =
        log::Log::open(&log_path, spec.log).map_err(ContainerError::system("open", &log_path))?;
    let collector = std::thread::Builder::new()
        .name("log".into())
        .spawn(move || log::collect(log, stdout.into(), stderr.into()))
        .map_err(cannot("start a thread for"))?;
    let init = oci.created(making, &reaper)?;
    if spec.network == Network::New {
        loopback::switch_on(init).map_err(cannot("switch the loopback on in"))?;
    }
    let pid = Pid::from_raw(init).ok_or_else(|| ContainerError::Runtime {
        what: "make the container",
        why: "it has no process".into(),
    })?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())
        .map_err(|e| cannot("watch the first process of")(e.into()))?;
    let listener = home
        .listen(super::wire::SOCKET)
        .map_err(cannot("listen in"))?;
    oci.start(&reaper)?;
    let started = Started {
        pid: init,
        at: SystemTime::now(),
    };
    home.write_run(Some(started.clone()))?;
    let shared = Shared {
        home: home.clone(),
        spec: spec.clone(),
        reaper,
        init: pidfd,
        state: Mutex::new(State::Running(started)),
        ended: Condvar::new(),
        commands: AtomicU64::new(0),
    };
    Ok((Arc::new(shared), init, listener, collector))
}

/// Makes the root file system and the bundle.
fn describe(home: &Home, spec: &ContainerSpec) -> Result<(), ContainerError> {
    for mount in &spec.mounts {
        if let MountSpec::Bind { source, .. } = mount
            && !source.exists()
        {
            let value = source.display().to_string();
            let remedy = "there is nothing on the host: make it, or mount something else";
            return Err(ContainerError::spec("mounts.bind.source", value, remedy));
        }
    }
    if let Network::Path(path) = &spec.network
        && !path.exists()
    {
        let value = path.display().to_string();
        return Err(ContainerError::spec(
            "network.path",
            value,
            "there is no such namespace",
        ));
    }
    let containers = home.path().parent().unwrap_or(Path::new("/"));
    let root = containers.parent().unwrap_or(Path::new("/"));
    let images = Images::new(root, Limits::default());
    let layers: Vec<_> = spec
        .image
        .layers
        .iter()
        .map(|id| images.layer(id))
        .collect();
    overlay::separate()?;
    let root = overlay::assemble(home.path(), &layers)?;
    let inside = Rooted::open(&root).map_err(ContainerError::system("open", &root))?;
    let directory = bundle::working_dir(spec);
    inside.make_way(&directory).map_err(ContainerError::system(
        "make the working directory in",
        &root,
    ))?;
    let circumstances = Circumstances {
        identity: passwd::identity(&inside, bundle::user(spec))?,
        cgroup: home.cgroup_path(Some(spec)),
        cgroups: cgroup::version(),
        swap_counted: cgroup::swap_counted(),
        files: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
    };
    let config = bundle::build(spec, home.id(), &circumstances)?;
    let path = home.file("bundle").join("config.json");
    record::note(&path, &config).map_err(ContainerError::system("write", path))
}
