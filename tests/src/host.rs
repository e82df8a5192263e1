//! A host under `skerry up`, and the commands and clients that ask it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use skerry_stage::Machine;
use tempfile::TempDir;

use crate::tap::ip;
use crate::vmm::SHORT;
use crate::{eventually, given};

/// A host, and what it keeps. All of it goes when it is dropped: nothing may run on then.
pub struct Host {
    folder: TempDir,
    up: Option<Child>,
    port: u16,
    probe: bool,
    /// Monitors that it has ready for clones.
    warm: usize,
    /// The network namespace that is its own, if it has one.
    apart: Option<String>,
    /// The machine that it is, if it can be switched off.
    machine: Option<Machine>,
    /// Parts of what it keeps that are small file systems of their own.
    small: Vec<PathBuf>,
    /// The monitor it is given.
    vmm: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Said {
    /// Whether it went well.
    pub good: bool,
    /// What it printed.
    pub out: String,
    /// What it said on standard error.
    pub errors: String,
}

impl Host {
    /// A host whose VMs are payloads.
    pub fn start() -> Host {
        Host::new().upped()
    }

    /// The same with so many monitors that wait for clones.
    pub fn warm(waiting: usize) -> Host {
        let mut host = Host::new();
        host.warm = waiting;
        host.upped()
    }

    /// The same, of which everything it keeps is in so many mebibytes.
    pub fn small(mebibytes: u64) -> Host {
        let mut host = Host::new();
        std::fs::create_dir(host.state()).expect("a folder");
        host.narrow("", &format!("{mebibytes}m"));
        host.upped()
    }

    /// The same, with a monitor that is at `vmm` beside what it keeps, or is not.
    pub fn with_monitor(vmm: &str) -> Host {
        let mut host = Host::new();
        host.vmm = host.path(vmm);
        host.upped()
    }

    /// The same with a network namespace of its own. There is no TCP then, and so no stock client.
    pub fn apart() -> Host {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("skt{}n{n}", std::process::id());
        ip(&["netns", "add", &name]);
        let mut host = Host::new();
        host.apart = Some(name);
        host.upped()
    }

    /// The same as a machine that can be switched off.
    pub fn machine() -> Host {
        let mut host = Host::new();
        host.machine = Some(switched_on());
        host.upped()
    }

    /// The same, whose VMs are Linux.
    pub fn machine_for_linux() -> Host {
        let mut host = Host::new();
        host.machine = Some(switched_on());
        host.probe = true;
        host.upped()
    }

    fn new() -> Host {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        Host {
            folder: TempDir::new().expect("a folder"),
            up: None,
            port,
            probe: false,
            warm: 0,
            apart: None,
            machine: None,
            small: Vec::new(),
            vmm: given("SKERRY_VMM"),
        }
    }

    fn upped(mut self) -> Host {
        self.up();
        self
    }

    /// Starts `skerry up` again.
    pub fn up(&mut self) {
        let mut command = match (&self.machine, &self.apart) {
            (Some(machine), _) => machine.enter(given("SKERRY_COMMAND")),
            // It becomes the command: its process is that one's.
            (None, Some(name)) => {
                let mut enter = Command::new("nsenter");
                let path = format!("--net=/run/netns/{name}");
                enter.arg(path).arg(given("SKERRY_COMMAND"));
                enter
            }
            (None, None) => Command::new(given("SKERRY_COMMAND")),
        };
        command
            .args(["up", "--host", "here", "--state"])
            .arg(self.state())
            .arg("--share")
            .arg(self.path("shared"));
        if self.apart.is_none() {
            command.args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        }
        command
            .arg("--vmm")
            .arg(&self.vmm)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if !self.probe {
            command.arg("--no-probe");
        }
        if let Some(server) = std::env::var_os("SKERRY_VIRTIOFSD") {
            command.arg("--virtiofsd").arg(server);
        }
        if self.warm > 0 {
            command.args(["--warm", &self.warm.to_string()]);
        }
        self.up = Some(command.spawn().expect("skerry starts"));
        eventually("the host answers", SHORT, || {
            let ready = self.skerry(&["get", "hosts", "here"]);
            ready.good.then_some(())
        });
    }

    /// Kills `skerry up` at once.
    pub fn kill(&mut self) {
        if let Some(mut up) = self.up.take() {
            if self.machine.is_some() {
                // What entered the machine waits for what it started there.
                self.agents().into_iter().for_each(kill);
            } else {
                up.kill().expect("it is ours");
            }
            up.wait().expect("it is ours");
        }
    }

    /// The processes of `skerry up` itself.
    fn agents(&self) -> Vec<i32> {
        let is_up = |id: &i32| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            line.starts_with(given("SKERRY_COMMAND").as_os_str().as_encoded_bytes())
                && line.windows(4).any(|bytes| bytes == b"\0up\0")
        };
        processes(&self.state()).into_iter().filter(is_up).collect()
    }

    /// Switches the machine off and on again: all that ran on it is gone at once, without a word.
    pub fn reboot(&mut self) {
        drop(self.machine.take().expect("a machine"));
        if let Some(mut up) = self.up.take() {
            up.wait().expect("it is ours");
        }
        self.machine = Some(switched_on());
        self.up();
    }

    /// Asks it to end, and waits for that.
    pub fn down(&mut self) {
        if let Some(mut up) = self.up.take() {
            kill_process(Pid::from_child(&up), Signal::TERM).expect("it is ours");
            assert!(up.wait().expect("it is ours").success());
        }
    }

    /// Makes a part of what it keeps a file system of its own, of a size; or gives it another one.
    pub fn narrow(&mut self, part: &str, size: &str) {
        let (place, size) = (self.state().join(part), format!("size={size}"));
        if self.small.contains(&place) {
            return run("mount", &["-o", &format!("remount,{size}")], &place);
        }
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs"], &place);
        self.small.push(place);
    }

    /// Where it serves the network.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The network namespace of a host that is apart.
    pub fn namespace(&self) -> &str {
        self.apart.as_deref().expect("a host that is apart")
    }

    /// The process of `skerry up`.
    pub fn pid(&self) -> Option<u32> {
        self.up.as_ref().map(Child::id)
    }

    /// What it keeps.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A path beside that.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command of ours.
    pub fn skerry(&self, arguments: &[&str]) -> Said {
        let output = self.command(arguments).stdin(Stdio::null()).output();
        said(output.expect("skerry starts"))
    }

    /// The same with something to read; its exit code, too.
    pub fn skerry_reading(&self, arguments: &[&str], input: &[u8]) -> (Option<i32>, Said) {
        let mut command = self.command(arguments);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.stderr(Stdio::piped()).spawn().expect("skerry starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        // It may end without having read all.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("skerry ends");
        writer.join().expect("nobody panics");
        (output.status.code(), said(output))
    }

    /// A command of ours, to be started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(given("SKERRY_COMMAND"));
        let socket = self.state().join("api.sock");
        command.args(arguments).env("SKERRY_SOCKET", socket);
        command
    }

    /// The same, which must go well; what it printed.
    pub fn must(&self, arguments: &[&str]) -> String {
        let said = self.skerry(arguments);
        assert!(said.good, "skerry {arguments:?}: {said:?}");
        said.out
    }

    /// The stock client.
    pub fn kubectl(&self, arguments: &[&str]) -> Said {
        let mut kubectl = match &self.machine {
            Some(machine) => machine.enter("kubectl"),
            None => Command::new("kubectl"),
        };
        let output = kubectl
            .arg("--kubeconfig")
            .arg(self.state().join("kubeconfig"))
            .args(arguments)
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .output();
        said(output.expect("kubectl, of kubernetes-client"))
    }

    /// The same, which must go well; what it printed.
    pub fn kubectl_must(&self, arguments: &[&str]) -> String {
        let said = self.kubectl(arguments);
        assert!(said.good, "kubectl {arguments:?}: {said:?}");
        said.out
    }

    /// Writes a manifest; its path.
    pub fn manifest(&self, text: &str) -> String {
        let path = self.path("manifest.yaml");
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }

    /// An object, as it is.
    pub fn object(&self, kind: &str, name: &str) -> Value {
        let text = self.must(&["get", kind, name, "--output", "json"]);
        serde_json::from_str(&text).expect("JSON")
    }

    /// Waits until an object's status is as `judge` says.
    pub fn until(
        &self,
        kind: &str,
        name: &str,
        limit: Duration,
        judge: impl Fn(&Value) -> bool,
    ) -> Value {
        let start = Instant::now();
        loop {
            let object = self.object(kind, name);
            if judge(&object["status"]) {
                return object;
            }
            assert!(
                start.elapsed() < limit,
                "{kind} {name} is not as it should be: {}",
                object["status"]
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until an object is in a phase.
    pub fn until_phase(&self, kind: &str, name: &str, phase: &str) -> Value {
        self.until(kind, name, SHORT, |status| status["phase"] == phase)
    }

    /// A program on its machine.
    pub fn try_on_machine(&self, program: &str, arguments: &[&str]) -> Said {
        let machine = self.machine.as_ref().expect("a machine");
        let mut command = machine.enter(program);
        let output = command.args(arguments).stdin(Stdio::null()).output();
        said(output.expect("nsenter"))
    }

    /// The same, which must go well; what it printed.
    pub fn on_machine(&self, program: &str, arguments: &[&str]) -> String {
        let said = self.try_on_machine(program, arguments);
        assert!(said.good, "{program} {arguments:?}: {said:?}");
        said.out
    }

    /// What there still is of workloads that are gone, by their uids: processes, ports, mounts, control groups,
    /// network namespaces, loop devices, files.
    pub fn left<'a>(&self, uids: impl Iterator<Item = &'a String>) -> Vec<String> {
        let state = self.state();
        let mut left = Vec::new();
        for part in ["vms", "containers", "netns"] {
            let ids = processes(&state.join(part)).into_iter();
            left.extend(ids.map(|id| format!("process {id}")));
        }
        for folder in [
            "vms",
            "containers/containers",
            "containers/volumes",
            "netns",
        ] {
            left.extend(inside(&state.join(folder)));
        }
        let halves = inside(&state.join("containers/layers")).into_iter();
        left.extend(halves.filter(|path| path.contains(".partial")));
        let groups =
            uids.flat_map(|uid| [crate::containers::cgroups(uid), vm_cgroups(uid)].concat());
        left.extend(groups.map(|path| format!("control group {}", path.display())));
        let text = state.display().to_string();
        let mounts = match &self.machine {
            Some(_) => self.on_machine("cat", &["/proc/self/mountinfo"]),
            None => std::fs::read_to_string("/proc/self/mountinfo").expect("mounts"),
        };
        let mounts = mounts.lines().filter(|line| line.contains(&text));
        left.extend(mounts.map(|line| format!("mount {line}")));
        for device in inside(Path::new("/sys/block")) {
            let file = std::fs::read_to_string(Path::new(&device).join("loop/backing_file"));
            if file.is_ok_and(|file| file.contains(&text)) {
                left.push(format!("loop device {device}"));
            }
        }
        let links = match (&self.machine, &self.apart) {
            (Some(_), _) => self.on_machine("ip", &["-o", "link"]),
            (None, Some(name)) => {
                let links = Command::new("ip").args(["-n", name, "-o", "link"]).output();
                said(links.expect("ip runs")).out
            }
            (None, None) => String::new(),
        };
        let ports = links.lines().filter(|line| {
            let name = line.split_whitespace().nth(1).unwrap_or_default();
            !matches!(name, "lo:" | "skerry0:")
        });
        left.extend(ports.map(|line| format!("link {line}")));
        left
    }

    /// The monitors that run for it.
    pub fn monitors(&self) -> Vec<i32> {
        processes(&self.state().join("vms"))
    }

    /// The monitors that were started to wait for clones, also those that have become one.
    pub fn waited(&self) -> Vec<i32> {
        processes(&self.state().join("warm"))
    }
}

impl Host {
    /// Ends what is still mounted below its folder, the last first: small parts, and what containers left.
    fn unmount(&self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = mounts.lines().rev().filter_map(|line| {
            let place = Path::new(line.split(' ').nth(4)?);
            place.starts_with(self.folder.path()).then_some(place)
        });
        for place in below {
            run("umount", &["--lazy"], place);
        }
    }

    /// Removes the cgroups of VMs that were killed here, once the kernel lets them go. It may be part of a failure, and
    /// must not be another one.
    fn remove_cgroups(&self) {
        let vms = std::fs::read_dir(self.state().join("vms"));
        let deadline = Instant::now() + SHORT;
        for vm in vms.into_iter().flatten().flatten() {
            let uid = vm.file_name().to_string_lossy().into_owned();
            let remove = |path: &PathBuf| std::fs::remove_dir(path).is_ok();
            while !vm_cgroups(&uid).iter().all(remove) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn switched_on() -> Machine {
    Machine::switched_on().expect("a machine: this needs root, util-linux and iproute2")
}

/// The processes whose command line has a path.
pub fn processes(path: &Path) -> Vec<i32> {
    let path = path.display().to_string();
    let entries = std::fs::read_dir("/proc").expect("the processes");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let with = |id: &i32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&path)
    };
    ids.filter(with).collect()
}

/// A VM's cgroups that are there, in every hierarchy.
pub fn vm_cgroups(uid: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(top).into_iter().flatten().flatten();
    let roots = below.map(|entry| entry.path()).chain([top.to_owned()]);
    let all = roots.map(|root| root.join("skerry.vms").join(uid));
    all.filter(|path| path.exists()).collect()
}

/// Kills a process at once.
pub fn kill(id: i32) {
    let pid = Pid::from_raw(id).expect("a process");
    kill_process(pid, Signal::KILL).expect("it is there");
}

/// The same with one that may be gone.
pub fn kill_if_there(id: i32) {
    if let Some(pid) = Pid::from_raw(id) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Paths in a folder; none if there is none.
fn inside(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().display().to_string())
        .collect()
}

/// Runs a program on a path.
fn run(program: &str, words: &[&str], path: &Path) {
    let status = Command::new(program).args(words).arg(path).status();
    assert!(status.expect("it runs").success(), "{program} {words:?}");
}

fn said(output: Output) -> Said {
    Said {
        good: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        self.machine = None;
        self.monitors().into_iter().for_each(kill);
        self.waited().into_iter().for_each(kill);
        self.remove_cgroups();
        self.unmount();
        if let Some(name) = &self.apart {
            ip(&["netns", "del", name]);
        }
    }
}
