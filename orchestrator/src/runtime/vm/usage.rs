//! What VMs use: their monitors are asked, and the kernel's files of their processes are read.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::iter;
use skerry_vmm_api::client::Client;
use skerry_vmm_api::requests::VmUsage;
use tokio::time::timeout;

use crate::runtime::usage::{Queue, Usage, Vcpu, Worker};

/// Monitors that are asked at a time.
const AT_A_TIME: usize = 8;
/// A monitor that does not answer within this is asked another time.
const PATIENCE: Duration = Duration::from_millis(500);
/// Threads of a monitor that are looked at.
const THREADS: usize = 1024;

/// A VM that runs.
pub struct Running {
    pub uid: String,
    pub pid: i32,
    /// Its monitor's socket.
    pub socket: PathBuf,
}

/// What a monitor's process has and did, as the kernel says.
#[derive(Default)]
struct Process {
    resident: u64,
    seconds: f64,
    /// Seconds of the threads that are CPUs, by number.
    vcpus: BTreeMap<usize, f64>,
}

/// Looks at all of them.
pub async fn look(vms: Vec<Running>) -> HashMap<String, Usage> {
    let pids: Vec<i32> = vms.iter().map(|vm| vm.pid).collect();
    let processes =
        tokio::task::spawn_blocking(move || pids.into_iter().map(process).collect::<Vec<_>>());
    let asked = iter(vms).map(|vm| async move {
        let client = Client::new(&vm.socket);
        let said = timeout(PATIENCE, client.usage()).await;
        // One that pauses, or of a version before, says nothing: its process still does.
        (vm.uid, said.ok().and_then(Result::ok).unwrap_or_default())
    });
    let said: Vec<_> = asked.buffered(AT_A_TIME).collect().await;
    let processes = processes.await.unwrap_or_default();
    let both = said.into_iter().zip(processes);
    both.filter_map(|((uid, said), process)| Some((uid, usage(said, process?))))
        .collect()
}

fn usage(said: VmUsage, process: Process) -> Usage {
    let cpus = said.cpus.len().max(process.vcpus.len());
    let mut exits = said.cpus.into_iter();
    let vcpus = (0..cpus).map(|index| Vcpu {
        cpu_seconds: process.vcpus.get(&index).copied().unwrap_or_default(),
        exits: named(exits.next().unwrap_or_default()),
    });
    let workers = said.workers.into_iter().map(|worker| Worker {
        name: worker.name,
        sleeps: worker.sleeps,
        polled_seconds: worker.polled_ns as f64 / 1e9,
        capped: worker.capped,
        queues: worker
            .queues
            .into_iter()
            .map(|queue| Queue {
                name: queue.name,
                polled: queue.polled,
                budget_ns: queue.budget_ns,
            })
            .collect(),
    });
    Usage {
        cpu_seconds: process.seconds,
        memory_bytes: process.resident,
        vcpus: vcpus.collect(),
        devices: said.devices,
        workers: workers.collect(),
        ..Usage::default()
    }
}

/// Kinds of exits without the word that all have.
fn named(exits: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let named = exits.into_iter().map(|(name, n)| match name.as_str() {
        "exits" => ("all".to_owned(), n),
        name => (name.trim_end_matches("_exits").to_owned(), n),
    });
    named.collect()
}

/// What the kernel says of a process, if there is one (proc(5)).
fn process(pid: i32) -> Option<Process> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let statm = fs::read_to_string(folder.join("statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let (_, seconds) = stat(&folder.join("stat"))?;
    let threads = fs::read_dir(folder.join("task")).ok()?.flatten();
    let threads = threads
        .take(THREADS)
        .filter_map(|thread| stat(&thread.path().join("stat")));
    let vcpus = threads.filter_map(|(name, seconds)| {
        let index = name.strip_prefix("vcpu")?.parse().ok()?;
        Some((index, seconds))
    });
    Some(Process {
        resident: pages * rustix::param::page_size() as u64,
        seconds,
        vcpus: vcpus.collect(),
    })
}

/// The name of a process or thread, and its seconds.
fn stat(path: &Path) -> Option<(String, f64)> {
    // A name may have anything in it, also parentheses.
    let text = fs::read_to_string(path).ok()?;
    let (before, after) = text.rsplit_once(") ")?;
    let (_, name) = before.split_once(" (")?;
    let mut times = after.split(' ').skip(11);
    let mut ticks = || times.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    let a_second = rustix::param::clock_ticks_per_second().max(1);
    Some((name.to_owned(), ticks as f64 / a_second as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let seen = process(std::process::id() as i32).expect("it runs");
        assert!(seen.resident > 0 && seen.vcpus.is_empty());
        assert!(process(-1).is_none());
    }

    #[test]
    fn kinds_of_exits_have_short_names() {
        let exits = [("exits", 3), ("io_exits", 2), ("mmio_exits", 1)];
        let exits = exits.map(|(name, n)| (name.to_owned(), n)).into();
        let short: Vec<_> = named(exits).into_keys().collect();
        assert_eq!(short, ["all", "io", "mmio"]);
    }
}
