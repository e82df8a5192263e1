//! What a host uses, as its kernel says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What `/proc/stat` counts, in its order.
const MODES: [&str; 8] = [
    "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal",
];

/// What a host has and uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostUsage {
    /// Its name.
    pub name: String,
    /// The agent's version.
    pub version: String,
    /// Its kernel.
    pub kernel: String,
    /// CPUs.
    pub cpus: u64,
    /// Seconds of all CPUs, by what they did: `user`, `system`, `idle` …
    pub cpu_seconds: BTreeMap<String, f64>,
    /// What waits to run, on average over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Those that workloads could still have.
    pub memory_available_bytes: u64,
    /// Bytes of the file system that the state directory is on.
    pub disk_bytes: u64,
    /// Those that are free.
    pub disk_free_bytes: u64,
    /// Huge pages, and those that are free.
    pub hugepages: [u64; 2],
    /// Seconds in which something waited for `cpu`, `memory` or `io`; empty where the kernel does not count that.
    pub waited_seconds: BTreeMap<String, f64>,
    /// CPU time of the agent itself, in seconds.
    pub agent_cpu_seconds: f64,
    /// Bytes of memory of the agent itself.
    pub agent_memory_bytes: u64,
}

/// Looks at this host, whose workloads' files lie in `state`. It blocks.
pub fn look(name: &str, state: &Path) -> HostUsage {
    let meminfo = text("/proc/meminfo");
    let load = text("/proc/loadavg");
    let mut loads = load.split(' ').map(|n| n.parse().unwrap_or_default());
    let (disk_bytes, disk_free_bytes) = match rustix::fs::statvfs(state) {
        Ok(found) => (
            found.f_blocks.saturating_mul(found.f_frsize),
            found.f_bavail.saturating_mul(found.f_frsize),
        ),
        Err(_) => (0, 0),
    };
    let (agent_cpu_seconds, agent_memory_bytes) = agent();
    HostUsage {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        cpu_seconds: cpu_seconds(&text("/proc/stat")),
        load: std::array::from_fn(|_| loads.next().unwrap_or_default()),
        memory_bytes: field(&meminfo, "MemTotal:") << 10,
        memory_available_bytes: field(&meminfo, "MemAvailable:") << 10,
        disk_bytes,
        disk_free_bytes,
        hugepages: ["HugePages_Total:", "HugePages_Free:"].map(|name| field(&meminfo, name)),
        waited_seconds: waited(),
        agent_cpu_seconds,
        agent_memory_bytes,
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

fn a_second() -> f64 {
    rustix::param::clock_ticks_per_second().max(1) as f64
}

fn cpu_seconds(stat: &str) -> BTreeMap<String, f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks = line.unwrap_or_default().split_whitespace();
    let ticks = ticks.map(|n| n.parse::<u64>().unwrap_or_default() as f64 / a_second());
    MODES.map(str::to_owned).into_iter().zip(ticks).collect()
}

/// What `/proc/pressure` counts.
fn waited() -> BTreeMap<String, f64> {
    let found = ["cpu", "memory", "io"].into_iter().filter_map(|what| {
        let text = text(&format!("/proc/pressure/{what}"));
        let some = text.lines().find(|line| line.starts_with("some"))?;
        let total = some.split("total=").nth(1)?.trim().parse::<u64>().ok()?;
        Some((what.to_owned(), total as f64 / 1e6))
    });
    found.collect()
}

/// CPU seconds and bytes of memory of this process.
fn agent() -> (f64, u64) {
    let statm = text("/proc/self/statm");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or_default();
    let stat = text("/proc/self/stat");
    let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    let times = after.split(' ').skip(11).take(2);
    let ticks: u64 = times.filter_map(|n| n.parse::<u64>().ok()).sum();
    (
        ticks as f64 / a_second(),
        pages * rustix::param::page_size() as u64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_seen() {
        let seen = look("here", Path::new("/"));
        assert!(seen.memory_bytes > seen.memory_available_bytes && seen.memory_available_bytes > 0);
        assert!(seen.disk_bytes > 0 && seen.agent_memory_bytes > 0);
        assert_eq!(seen.cpu_seconds.len(), MODES.len());
    }
}
