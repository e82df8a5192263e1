//! A container's cgroups: where they are, who is in them, and their end.
//!
//! The runtime makes them. Their end is ours, with one way for all cases, that of a killed shim too.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How much of a cgroup's file is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// How deep cgroups may be nested in a container's.
const DEPTH: usize = 32;

/// One container's cgroups: of every hierarchy of version 1, and of version 2.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: String,
    roots: Vec<PathBuf>,
}

impl Cgroup {
    /// The cgroups of this path, from the root of every hierarchy. They need not be there.
    pub fn new(path: &str) -> io::Result<Cgroup> {
        Ok(Cgroup {
            path: path.trim_matches('/').into(),
            roots: hierarchies(&fs::read_to_string("/proc/self/mountinfo")?),
        })
    }

    /// Those of another path.
    pub fn beside(&self, path: &str) -> Cgroup {
        Cgroup {
            path: path.trim_matches('/').into(),
            roots: self.roots.clone(),
        }
    }

    /// Where the hierarchies are mounted.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Those that are there.
    pub fn directories(&self) -> Vec<PathBuf> {
        let all = self.roots.iter().map(|root| root.join(&self.path));
        all.filter(|path| path.is_dir()).collect()
    }

    /// How many of its processes the kernel killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let counts = self.directories().into_iter().flat_map(|path| {
            let files = ["memory.events", "memory.oom_control"];
            files.map(|file| counter(&path.join(file), "oom_kill"))
        });
        counts.flatten().max().unwrap_or(0)
    }

    /// Everybody in it and in those nested in it.
    pub fn processes(&self) -> Vec<Pid> {
        let mut all = Vec::new();
        for directory in self.directories() {
            processes(&directory, 0, &mut all);
        }
        all.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        all.dedup();
        all
    }

    /// Kills everybody and waits until they are gone.
    pub fn kill(&self, limit: Duration) -> io::Result<()> {
        let start = Instant::now();
        loop {
            for directory in self.directories() {
                // Linux 5.14, version 2: nobody can fork away from this.
                let _ = fs::write(directory.join("cgroup.kill"), "1");
                // Version 1: those who are frozen do not end.
                let _ = fs::write(directory.join("freezer.state"), "THAWED");
            }
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            for pid in &left {
                // Whoever is gone is what is wanted.
                let _ = kill_process(*pid, Signal::KILL);
            }
            if start.elapsed() > limit {
                let message = format!(
                    "{} processes do not end, {} among them",
                    left.len(),
                    left[0]
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes it from every hierarchy. What it is in stays: others may be about to make theirs there.
    pub fn remove(&self, limit: Duration) -> io::Result<()> {
        let start = Instant::now();
        for directory in self.directories() {
            // The kernel lets go of a cgroup a little after its last process.
            loop {
                match remove(&directory, 0) {
                    Ok(()) => break,
                    Err(_) if start.elapsed() < limit => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Moves a process in, in the hierarchy that systemd ends a service by.
    pub fn enter(&self, process: i32) -> io::Result<()> {
        // Each hierarchy costs the kernel milliseconds, so it is one.
        let unified = |root: &&PathBuf| root.join("cgroup.controllers").exists();
        let named = |root: &&PathBuf| root.ends_with("systemd");
        let root = self.roots.iter().find(unified);
        let root = root
            .or_else(|| self.roots.iter().find(named))
            .or(self.roots.first());
        let root = root.ok_or_else(|| io::Error::other("no cgroups are mounted"))?;
        let directory = root.join(&self.path);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("cgroup.procs"), process.to_string())
    }
}

/// Which cgroups a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy.
    Two,
}

/// This host's.
pub fn version() -> CgroupVersion {
    match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => CgroupVersion::Two,
        false => CgroupVersion::One,
    }
}

/// Whether what is swapped can be limited.
pub fn swap_counted() -> bool {
    match version() {
        CgroupVersion::One => {
            Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
        }
        CgroupVersion::Two => Path::new("/proc/swaps").exists(),
    }
}

/// Where hierarchies are mounted with their root, each once.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    let mut devices = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let mut fields = before.split(' ');
        let (Some(device), Some(root), Some(place)) = (fields.nth(2), fields.next(), fields.next())
        else {
            continue;
        };
        let kind = after.split(' ').next().unwrap_or("");
        if !matches!(kind, "cgroup" | "cgroup2") || root != "/" || devices.contains(&device) {
            continue;
        }
        devices.push(device);
        roots.push(PathBuf::from(place.replace("\\040", " ")));
    }
    roots
}

fn counter(path: &Path, name: &str) -> Option<u64> {
    let text = read(path).ok()?;
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .filter(|(key, _)| *key == name)
        .find_map(|(_, value)| value.trim().parse().ok())
}

/// A cgroup's file.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(LONGEST)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn nested(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let directories = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

fn processes(directory: &Path, depth: usize, all: &mut Vec<Pid>) {
    if let Ok(text) = read(&directory.join("cgroup.procs")) {
        let pids = text
            .lines()
            .filter_map(|line| Pid::from_raw(line.parse().ok()?));
        all.extend(pids);
    }
    if depth < DEPTH {
        for nested in nested(directory) {
            processes(&nested, depth + 1, all);
        }
    }
}

fn remove(directory: &Path, depth: usize) -> io::Result<()> {
    if depth < DEPTH {
        for nested in nested(directory) {
            remove(&nested, depth + 1)?;
        }
    }
    match fs::remove_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "cgroup_test.rs"]
mod tests;
