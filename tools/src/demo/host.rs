//! The demo's second part: a host under `skerry up`, with VMs and containers that reach each other whoever is killed.
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use skerry_stage::{ADDRESSES, Machine, container, layout, linux};

use crate::command;
use crate::guest::Guest;
use crate::progress::Step;

const LIMIT: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(300);
const WORDS: &str = "console=ttyS0 quiet panic=-1";
const WORKLOADS: [&str; 4] = ["vm/alpha", "vm/beta", "container/gamma", "container/delta"];

/// A host of its own: processes, mounts and network end with it.
struct Host {
    skerry: PathBuf,
    vmm: PathBuf,
    folder: PathBuf,
    /// None once it is switched off for good.
    machine: Option<Machine>,
    up: Child,
}

impl Host {
    fn start(skerry: &Path, vmm: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("skerry-host-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let machine = Machine::switched_on().context("cannot make a machine for the host")?;
        let up = up(&machine, skerry, vmm, &folder)?;
        let host = Self {
            skerry: skerry.to_owned(),
            vmm: vmm.to_owned(),
            folder,
            machine: Some(machine),
            up,
        };
        host.answers()?;
        Ok(host)
    }

    /// Starts the agent again, which has ended.
    fn up_again(&mut self) -> Result<()> {
        self.up.wait().context("cannot wait for skerry")?;
        let machine = self.machine.as_ref().context("the host is switched off")?;
        self.up = up(machine, &self.skerry, &self.vmm, &self.folder)?;
        self.answers()
    }

    fn answers(&self) -> Result<()> {
        eventually("skerry up answers", || {
            Ok(self.ask(&["get", "hosts"]).is_ok())
        })
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn skerry(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.skerry);
        command
            .args(words)
            .env("SKERRY_SOCKET", self.state().join("api.sock"));
        command
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        command::read(&mut self.skerry(words))
    }

    /// Runs a command of ours for everyone to see.
    fn show(&self, words: &[&str]) -> Result<()> {
        println!("$ skerry {}", words.join(" "));
        let said = self.ask(words)?;
        said.lines().for_each(|line| println!("| {line}"));
        Ok(())
    }

    /// Shows the workloads by the stock client, if it is here.
    fn show_by_kubectl(&self) {
        let Some(machine) = &self.machine else { return };
        let mut kubectl = machine.enter("kubectl");
        kubectl
            .arg("--kubeconfig")
            .arg(self.state().join("kubeconfig"))
            // What another host at this address had is of no use.
            .arg("--cache-dir")
            .arg(self.folder.join("kube"))
            .args(["get", "vms,containers"]);
        match command::read(&mut kubectl) {
            Ok(said) => {
                println!("$ kubectl get vms,containers");
                said.lines().for_each(|line| println!("| {line}"));
            }
            Err(e) => eprintln!("    kubectl does not show them: {e:#}"),
        }
    }

    /// Waits until every workload has reached every other, from now on.
    fn reach_each_other(&self) -> Result<()> {
        let count = |workload: &str, peer: &str| {
            let line = format!("reaches {peer}");
            let log = self.ask(&["logs", workload]).unwrap_or_default();
            log.lines().filter(|said| said.contains(&line)).count()
        };
        for (at, workload) in WORKLOADS.into_iter().enumerate() {
            for peer in ADDRESSES {
                if ADDRESSES[at] == peer {
                    continue;
                }
                let before = count(workload, peer);
                eventually(&format!("{workload} reaches {peer}"), || {
                    Ok(count(workload, peer) > before)
                })?;
            }
        }
        Ok(())
    }

    /// Kills the processes of a program's verb with a folder of the host's in their command lines.
    fn kill(&self, folder: &Path, program: &str, verb: &str) -> Result<()> {
        let path = folder.display().to_string();
        let mut killed = 0;
        for entry in fs::read_dir("/proc").context("no processes")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let mut words = line.split('\0');
            let is_it = words.next().is_some_and(|first| first.ends_with(program))
                && words.next().is_some_and(|second| second.starts_with(verb));
            let id = entry.file_name().to_string_lossy().parse();
            if is_it
                && line.contains(&path)
                && let Some(pid) = id.ok().and_then(Pid::from_raw)
            {
                kill_process(pid, Signal::KILL).context("cannot kill it")?;
                killed += 1;
            }
        }
        if killed == 0 {
            bail!("no {program} of {path} runs");
        }
        Ok(())
    }

    fn uid(&self, workload: &str) -> Result<String> {
        let (kind, name) = workload.split_once('/').context("a kind and a name")?;
        let object: serde_json::Value =
            serde_json::from_str(&self.ask(&["get", kind, name, "--output", "json"])?)?;
        let uid = object["metadata"]["uid"].as_str().context("no uid")?;
        Ok(uid.to_owned())
    }

    fn run_again(&self, workload: &str) -> Result<()> {
        let (kind, name) = workload.split_once('/').context("a kind and a name")?;
        eventually(&format!("{workload} runs again"), || {
            let object = self.ask(&["get", kind, name, "--output", "json"])?;
            let object: serde_json::Value = serde_json::from_str(&object)?;
            let status = &object["status"];
            Ok(status["phase"] == "Running" && status["restarts"].as_u64() > Some(0))
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.machine = None;
        let _ = self.up.wait();
        for _ in 0..50 {
            // Mounts of the machine are gone a moment after it.
            if fs::remove_dir_all(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(LOOK);
        }
        eprintln!("xtask: cannot remove {}", self.folder.display());
    }
}

fn up(machine: &Machine, skerry: &Path, vmm: &Path, folder: &Path) -> Result<Child> {
    let log = File::create(folder.join("up.log")).context("cannot make a log")?;
    let mut up = machine.enter(skerry);
    up.arg("up").arg("--state").arg(folder.join("state"));
    up.arg("--vmm").arg(vmm);
    up.args(["--host", "demo", "--listen", "127.0.0.1:6443"]);
    println!("$ skerry up --state … --listen 127.0.0.1:6443");
    up.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start skerry")
}

fn eventually(what: &str, mut seen: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !seen()? {
        if begun.elapsed() > LIMIT {
            bail!("{what}: not within {} s", LIMIT.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Runs two VMs and two containers on a host, kills what there is to kill, switches the host off and on, and removes them.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn show(skerry: &Path, vmm: &Path, guest: &Guest) -> Result<()> {
    let step = Step::start("Starting a host");
    let mut host = Host::start(skerry, vmm)?;
    let image = host.folder.join("image");
    layout(&image).context("cannot make an image for containers")?;
    let manifest = host.folder.join("all.yaml");
    let all = [
        linux("alpha", &guest.folder, WORDS, ADDRESSES[0]),
        linux("beta", &guest.folder, WORDS, ADDRESSES[1]),
        container("gamma", &image, ADDRESSES[2]),
        container("delta", &image, ADDRESSES[3]),
    ];
    fs::write(&manifest, all.concat()).context("cannot write the manifest")?;
    let manifest = manifest.display().to_string();
    step.done("");

    let step = Step::start("Declaring two VMs and two containers in one file");
    host.show(&["apply", "--wait", "-f", &manifest])?;
    host.reach_each_other()?;
    host.show(&["get", "vms"])?;
    host.show(&["get", "containers"])?;
    step.done("each reaches each other");

    let step = Step::start("Killing the agent: kill -9");
    host.kill(&host.state(), "/skerry", "up")?;
    host.up_again()?;
    host.reach_each_other()?;
    host.show(&["get", "vms"])?;
    step.done("nobody noticed");

    let step = Step::start("Killing a monitor, and a container: kill -9");
    host.kill(
        &host.state().join("vms").join(host.uid("vm/alpha")?),
        "/skerry-vmm",
        "",
    )?;
    let containers = host.state().join("containers/containers");
    host.kill(&containers.join(host.uid("container/delta")?), "", "shim")?;
    host.run_again("vm/alpha")?;
    host.run_again("container/delta")?;
    host.reach_each_other()?;
    host.show(&["get", "vms"])?;
    host.show(&["get", "containers"])?;
    step.done("both run again");

    let step = Step::start("Switching the host off, and on again");
    host.machine = None;
    host.machine = Some(Machine::switched_on().context("cannot make a machine for the host")?);
    host.up_again()?;
    host.reach_each_other()?;
    host.show_by_kubectl();
    host.show(&["get", "vms"])?;
    step.done("all of it runs again");

    let step = Step::start("Removing everything");
    host.show(&["delete", "-f", &manifest])?;
    step.done("");
    Ok(())
}
