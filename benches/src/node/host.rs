//! A host under `skerry up`, and when what is declared there is heard of first.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::{Api, Sent};
use crate::cpu::Used;
use crate::smaps;

/// How long all that is declared may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what it says: small beside what is measured, and no burden.
const LOOK: Duration = Duration::from_micros(100);
const READY: Duration = Duration::from_secs(20);

/// What is run.
pub struct Programs {
    /// `skerry`.
    pub skerry: PathBuf,
    /// The monitor.
    pub vmm: PathBuf,
}

/// A host. It ends with this value, and so does all that runs on it.
pub struct Host {
    up: Child,
    state: TempDir,
    api: Api,
}

/// Something that was declared.
pub struct Declared {
    kind: &'static str,
    name: String,
    uid: String,
}

impl Host {
    /// Starts one in `directory`, with so many monitors that wait for clones.
    pub fn start(programs: &Programs, directory: &Path, warm: usize) -> Result<Host> {
        let state = tempfile::tempdir_in(directory).context("a folder for the host")?;
        let log = std::fs::File::create(state.path().join("up.log")).context("its log")?;
        let mut command = Command::new(&programs.skerry);
        command
            .args(["up", "--no-probe", "--host", "bench", "--state"])
            .arg(state.path())
            .arg("--vmm")
            .arg(&programs.vmm)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // Those before it did not know the option.
        if warm > 0 {
            command.args(["--warm", &warm.to_string()]);
        }
        let up = command.spawn().context("skerry up")?;
        let api = Api::wait(&state.path().join("api.sock"))?;
        let host = Host { up, state, api };
        host.enlarge()?;
        host.waiting(warm)?;
        Ok(host)
    }

    /// Lets its scheduler believe that it has CPUs and memory for all: what is measured is how fast they are, not
    /// how many fit.
    fn enlarge(&self) -> Result<()> {
        let deadline = Instant::now() + READY;
        // The agent says at its start what there is, too, and may come between.
        let enlarged = || {
            let path = "/apis/skerry.io/v1/hosts/bench";
            let mut object = self.api.send("GET", path, &Value::Null)?.answer()?;
            if object["status"]["cpus"] == 1000 {
                return Ok(());
            }
            object["status"]["cpus"] = json!(1000);
            object["status"]["memory"] = json!("1000Gi");
            let written = self.api.send("PUT", &format!("{path}/status"), &object)?;
            written.answer()?;
            bail!("the host is not enlarged")
        };
        loop {
            match enlarged() {
                Ok(()) => return Ok(()),
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until so many monitors wait.
    pub fn waiting(&self, warm: usize) -> Result<()> {
        let deadline = Instant::now() + READY;
        let ready = || {
            let folders = std::fs::read_dir(self.state.path().join("warm"));
            let folders = folders.into_iter().flatten().flatten();
            folders
                .filter(|f| f.path().join("api.sock").exists())
                .count()
        };
        while ready() < warm {
            ensure!(Instant::now() < deadline, "the pool is not filled");
            std::thread::sleep(Duration::from_millis(10));
        }
        // They are made ready after that.
        std::thread::sleep(Duration::from_millis(if warm > 0 { 500 } else { 0 }));
        Ok(())
    }

    /// Sends the declaration of a clone.
    pub fn clone(&self, name: &str, snapshot: &Path, memory: u64) -> Result<Sent> {
        let object = json!({
            "apiVersion": "skerry.io/v1", "kind": "MicroVM", "metadata": { "name": name },
            "spec": { "memory": memory.to_string(), "boot": { "snapshot": snapshot } },
        });
        self.api.send("POST", &path("microvms"), &object)
    }

    /// Sends the declaration of a container.
    pub fn container(&self, name: &str, image: &Path, command: &[&str]) -> Result<Sent> {
        let object = json!({
            "apiVersion": "skerry.io/v1", "kind": "Container", "metadata": { "name": name },
            "spec": { "image": image, "command": command, "restartPolicy": "Never", "cpu": "100m" },
        });
        self.api.send("POST", &path("containers"), &object)
    }

    /// Reads what came of a declaration.
    pub fn declared(&self, sent: Sent, kind: &'static str) -> Result<Declared> {
        let object = sent.answer()?;
        let word = |name: &str| object["metadata"][name].as_str().map(str::to_owned);
        Ok(Declared {
            kind,
            name: word("name").context("no name")?,
            uid: word("uid").context("no uid")?,
        })
    }

    fn log(&self, declared: &Declared) -> PathBuf {
        let (state, uid) = (self.state.path(), &declared.uid);
        match declared.kind {
            "microvms" => state.join("vms").join(uid).join("console.log"),
            _ => state.join("containers/containers").join(uid).join("log"),
        }
    }

    /// Waits until each of them has said something. Gives the times since `begun` of the last and of half of
    /// them.
    pub fn heard(&self, declared: &[Declared], begun: Instant) -> Result<(Duration, Duration)> {
        let mut silent: Vec<PathBuf> = declared.iter().map(|d| self.log(d)).collect();
        let mut times = Vec::new();
        while !silent.is_empty() {
            silent.retain(|log| {
                let speaks = std::fs::metadata(log).is_ok_and(|found| found.size() > 0);
                if speaks {
                    times.push(begun.elapsed());
                }
                !speaks
            });
            if begun.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.state.path().join("up.log"));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                bail!("{} say nothing: {last}", silent.len());
            }
            std::thread::sleep(LOOK);
        }
        let half = times.get(times.len() / 2).copied().unwrap_or_default();
        Ok((times.last().copied().unwrap_or_default(), half))
    }

    /// Waits until each of them is said to run, or to have ended.
    pub fn settled(&self, declared: &[Declared]) -> Result<()> {
        let begun = Instant::now();
        for one in declared {
            loop {
                let object = self.get(one)?;
                let phase = object["status"]["phase"].as_str().unwrap_or_default();
                if ["Running", "Succeeded"].contains(&phase) {
                    break;
                }
                ensure!(begun.elapsed() < PATIENCE, "{} is {phase}", one.name);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    fn get(&self, declared: &Declared) -> Result<Value> {
        let path = format!("{}/{}", path(declared.kind), declared.name);
        self.api.send("GET", &path, &Value::Null)?.answer()
    }

    /// Deletes them at once, and waits until they are gone.
    pub fn delete(&self, declared: &[Declared]) -> Result<()> {
        for one in declared {
            let path = format!("{}/{}", path(one.kind), one.name);
            let options = json!({ "gracePeriodSeconds": 0 });
            self.api.send("DELETE", &path, &options)?.answer()?;
        }
        let begun = Instant::now();
        for one in declared {
            while self.get(one).is_ok() {
                ensure!(begun.elapsed() < PATIENCE, "{} does not go", one.name);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// What `skerry up` has in memory: bytes of RSS, PSS, and what no other process or file has.
    pub fn memory(&self) -> Result<(u64, u64, u64)> {
        let mappings = smaps::of(self.up.id())?;
        let sum = |of: fn(&smaps::Mapping) -> u64| mappings.iter().map(of).sum();
        let anonymous = mappings.iter().filter(|m| !m.path.starts_with('/'));
        Ok((
            sum(|m| m.rss),
            sum(|m| m.pss),
            anonymous.map(|m| m.private).sum(),
        ))
    }

    /// Where it is asked.
    pub fn socket(&self) -> PathBuf {
        self.state.path().join("api.sock")
    }

    /// What it says that all use, as the page asks for it.
    pub fn usage(&self) -> Result<Value> {
        self.api.send("GET", "/usage", &Value::Null)?.answer()
    }

    /// The processes of its monitors.
    pub fn monitors(&self, vmm: &Path) -> Vec<u32> {
        let state = self.state.path().display().to_string();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let ours = ids.filter(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            line.starts_with(vmm.as_os_str().as_encoded_bytes())
                && String::from_utf8_lossy(&line).contains(&state)
        });
        ours.collect()
    }

    /// What its process has used of the CPUs.
    pub fn used(&self) -> Result<Used> {
        Used::by(self.up.id())
    }

    /// What share of a CPU it uses while nothing happens, in percent.
    pub fn idle(&self, time: Duration) -> Result<f64> {
        let (before, begun) = (Used::by(self.up.id())?, Instant::now());
        std::thread::sleep(time);
        let used = Used::by(self.up.id())?.since(before);
        Ok(used.all() as f64 / begun.elapsed().as_nanos() as f64 * 100.0)
    }
}

fn path(plural: &str) -> String {
    format!("/apis/skerry.io/v1/namespaces/default/{plural}")
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nothing is to run on: what was not deleted goes with its monitors.
        let _ = kill_process(Pid::from_child(&self.up), Signal::TERM);
        let _ = self.up.wait();
        let state = self.state.path().display().to_string();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw)
                && String::from_utf8_lossy(&line).contains(&state)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}
