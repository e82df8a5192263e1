//! Directories of the host's in VMs (virtio-fs). Each is served by a process of its own, virtiofsd, in a sandbox that has
//! that directory alone; it ends with its VM's monitor, and outlives us as that does.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;

use super::home::{self, Home};
use super::process::Process;
use crate::model::{MOST_SHARES, MicroVmSpec, Share};
use crate::runtime::{RuntimeError, shared, system};

/// Where distributions put what nobody starts by hand.
const ELSEWHERE: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];
/// One that is killed is gone within this.
const KILLED: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// What may be shared, and by what.
pub struct Shares {
    roots: Vec<PathBuf>,
    program: Option<PathBuf>,
}

/// A directory's process.
#[derive(Clone)]
pub struct Daemon {
    n: usize,
    tag: String,
    /// None if it was gone when this agent began.
    process: Option<Process>,
}

impl Daemon {
    /// Has something done with its process, and then with those that it has started before: what it starts later goes
    /// where it is. It blocks.
    ///
    /// # Errors
    /// What comes of that.
    pub fn each(&self, home: &Home, act: impl Fn(i32) -> io::Result<()>) -> io::Result<()> {
        if let Some(process) = &self.process {
            act(process.pid())?;
        }
        let all = holders(&home.share_lock(self.n))?;
        all.iter().map(Process::pid).try_for_each(act)
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        if let Some(process) = &self.process {
            process.ended().await;
        }
    }

    /// Why its VM cannot go on, once it has ended.
    pub fn failure(&self, home: &Home) -> Option<String> {
        let ended = self.process.as_ref().is_none_or(Process::has_ended);
        ended.then(|| {
            let words = home::last_words(&home.share_log(self.n));
            format!("the server of the share {} ended: {words}", self.tag)
        })
    }

    /// Ends it, if it has not ended by itself.
    pub fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }
}

impl Shares {
    /// Of what is below `roots`, by `program`; by the host's own virtiofsd if none is given.
    pub fn new(roots: &[PathBuf], program: Option<&Path>) -> Shares {
        Shares {
            roots: roots.to_vec(),
            program: program.map(Path::to_owned),
        }
    }

    /// Starts what serves a VM's shares; what the monitor is told of each. It blocks.
    ///
    /// # Errors
    /// If a share is not allowed, or its server cannot be started: none runs then.
    pub fn start(
        &self,
        home: &Home,
        spec: &MicroVmSpec,
    ) -> Result<(Vec<Daemon>, Vec<String>), RuntimeError> {
        let (mut daemons, mut flags) = (Vec::new(), Vec::new());
        for (n, share) in spec.shares.iter().enumerate() {
            match self.start_one(home, n, share) {
                Ok(daemon) => daemons.push(daemon),
                Err(e) => {
                    daemons.iter().for_each(Daemon::kill);
                    return Err(e);
                }
            }
            let socket = home.share_socket(n);
            flags.push(format!("tag={},socket={}", share.tag, socket.display()));
        }
        Ok((daemons, flags))
    }

    fn start_one(&self, home: &Home, n: usize, share: &Share) -> Result<Daemon, RuntimeError> {
        let directory = shared::open(&self.roots, &share.source)?;
        let program = self.program()?;
        let tag = &share.tag;
        let lock = take(home, n).map_err(system(format!("lock the share {tag}")))?;
        let socket = home.share_socket(n);
        home::gone(fs::remove_file(&socket)).map_err(system("clean the VM's folder"))?;
        let listener = UnixListener::bind(&socket);
        let listener = listener.map_err(system(format!("listen on {}", socket.display())))?;
        let log = home.share_log(n);
        let words = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log);
        let words = words.map_err(system(format!("open {}", log.display())))?;
        let mut command = Command::new(&program);
        command
            // Those who list processes see whose it is.
            .arg0(format!("virtiofsd of {}", socket.display()))
            .args(["--fd", "0", "--shared-dir", ".", "--log-level", "warn"])
            .args(["--sandbox", sandbox()])
            // It listens before its server begins, so the monitor never comes too early.
            .stdin(Stdio::from(OwnedFd::from(listener)))
            // Nothing is said there: it is held, whatever becomes of us, as long as the server lives.
            .stdout(lock)
            .stderr(words)
            // That very directory, whatever its path leads to by now.
            .current_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))
            .process_group(0);
        if share.read_only {
            refuses_writes(&program)?;
            command.arg("--readonly");
        }
        let child = command.spawn();
        let child = child.map_err(system(format!("start {}", program.display())))?;
        let process = Process::of_child(child);
        let process = process.map_err(system(format!("watch the server of the share {tag}")))?;
        Ok(Daemon {
            n,
            tag: tag.clone(),
            process: Some(process),
        })
    }

    /// The server's program.
    fn program(&self) -> Result<PathBuf, RuntimeError> {
        if let Some(program) = &self.program {
            return Ok(program.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let inside = std::env::split_paths(&path).map(|folder| folder.join("virtiofsd"));
        let mut all = inside.chain(ELSEWHERE.map(PathBuf::from));
        let absent = "shares need virtiofsd, which this host does not have: install it (the package virtiofsd of \
                      most distributions, or `cargo install virtiofsd`), or start `skerry up` with --virtiofsd FILE";
        all.find(|path| path.is_file())
            .ok_or_else(|| RuntimeError::Unfit(absent.to_owned()))
    }
}

/// Refuses a server that would let a guest write all the same.
fn refuses_writes(program: &Path) -> Result<(), RuntimeError> {
    let said = Command::new(program).arg("--help").output();
    let said = said.map_err(system(format!("start {}", program.display())))?;
    let help = String::from_utf8_lossy(&said.stdout);
    match help.contains("--readonly") {
        true => Ok(()),
        false => Err(RuntimeError::Unfit(format!(
            "{} is too old to serve a share with `readOnly` (it has no --readonly): install a newer one, or name it \
             by `skerry up --virtiofsd FILE`",
            program.display()
        ))),
    }
}

/// How a server is locked in: by namespaces of its own, but where the root is the kernel's first, from which nobody can
/// move away (pivot_root(2)), by its root directory.
fn sandbox() -> &'static str {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/"));
    match root.is_some_and(|line| line.contains(" - rootfs ")) {
        true => "chroot",
        false => "namespace",
    }
}

/// Takes the lock of a VM's share. Whoever has it was started by an agent that was killed before its VM had a
/// monitor, and is ended.
fn take(home: &Home, n: usize) -> io::Result<File> {
    let path = home.share_lock(n);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.mode(0o600).open(&path)?;
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < KILLED => {
                for process in holders(&path)? {
                    process.kill();
                }
                std::thread::sleep(LOOK);
            }
            taken => return Ok(taken.map(|()| file)?),
        }
    }
}

/// Those whose standard output a file is: the server and, with namespaces, who waits for it.
fn holders(path: &Path) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = id.and_then(Pid::from_raw) else {
            continue;
        };
        let holds = || {
            let held = fs::read_link(format!("/proc/{}/fd/1", pid.as_raw_nonzero()));
            held.is_ok_and(|held| held == path)
        };
        // As long as it holds it, that number is still its.
        if holds()
            && let Ok(process) = Process::of_pid(pid)
            && holds()
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// The servers of a VM that an agent before has started. It blocks.
pub fn adopt(home: &Home) -> Vec<Daemon> {
    let there = (0..MOST_SHARES).take_while(|n| home.share_lock(*n).exists());
    let adopted = there.map(|n| Daemon {
        n,
        tag: format!("number {}", n + 1),
        process: holders(&home.share_lock(n))
            .ok()
            .and_then(|mut all| all.pop()),
    });
    adopted.collect()
}

/// Forgets a VM's shares, whose servers have ended.
pub fn forget(home: &Home) -> io::Result<()> {
    for n in 0..MOST_SHARES {
        for path in [home.share_lock(n), home.share_socket(n)] {
            home::gone(fs::remove_file(path))?;
        }
    }
    Ok(())
}
