//! What workloads do a second: two samples, and what lies between them.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::runtime::Usage;
use crate::telemetry::{HostUsage, Sample, WorkloadUsage};

/// A workload's line.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its kind.
    pub kind: String,
    /// Its tenant.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its name among all of all times.
    pub uid: String,
    /// How far it has come.
    pub phase: String,
    /// Whether it is ready.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// Percent of one CPU.
    pub cpu_percent: f64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Exits of all its CPUs, a second.
    pub exits: f64,
    /// The kinds of exits of its CPUs, a second.
    pub exit_kinds: BTreeMap<String, f64>,
    /// Bytes a second from and to its disks.
    pub disk: f64,
    /// Bytes a second from and to its networks.
    pub network: f64,
    /// Queues that its workers look into by themselves now, and all queues.
    pub polled_queues: [usize; 2],
    /// Percent of one CPU that its workers look in vain.
    pub polling_percent: f64,
    /// Its CPUs.
    pub vcpus: Vec<VcpuRow>,
    /// Its devices' numbers, a second.
    pub devices: BTreeMap<String, BTreeMap<String, f64>>,
    /// Its queues: name, worker, polled, nanoseconds of its budget.
    pub queues: Vec<(String, String, bool, u64)>,
}

/// A CPU's line.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VcpuRow {
    /// Percent of one CPU.
    pub cpu_percent: f64,
    /// Exits a second, by kind.
    pub exits: BTreeMap<String, f64>,
}

/// A host's line.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostRow {
    /// Its name.
    pub name: String,
    /// CPUs.
    pub cpus: u64,
    /// Percent of all its CPUs.
    pub cpu_percent: f64,
    /// Percent of one CPU that the agent takes.
    pub agent_percent: f64,
    /// What waits to run.
    pub load: [f64; 3],
    /// Bytes of memory, and those that are used.
    pub memory: [u64; 2],
    /// Bytes of the disk, and those that are used.
    pub disk: [u64; 2],
}

/// All that is shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Rates {
    /// The host, unless it is not told.
    pub host: Option<HostRow>,
    /// The workloads.
    pub workloads: Vec<Row>,
}

/// How much more there is now, a second; nothing after a new beginning.
fn rate(before: f64, now: f64, seconds: f64) -> f64 {
    ((now - before) / seconds).max(0.0)
}

/// The same of numbers with names.
fn rates(
    before: Option<&BTreeMap<String, u64>>,
    now: &BTreeMap<String, u64>,
    seconds: f64,
) -> BTreeMap<String, f64> {
    let one = |(name, now): (&String, &u64)| {
        // What was not there before has no rate yet.
        let before = before.and_then(|before| before.get(name)).unwrap_or(now);
        (name.clone(), rate(*before as f64, *now as f64, seconds))
    };
    now.iter().map(one).collect()
}

/// What lies between two samples. If there is one alone, what is not a rate is there all the same.
pub fn between(before: Option<&Sample>, now: &Sample) -> Rates {
    let before = before.filter(|before| before.at < now.at).unwrap_or(now);
    let seconds = match now.at - before.at {
        seconds if seconds > 0.0 => seconds,
        _ => 1.0,
    };
    let old: HashMap<&str, &WorkloadUsage> = before
        .workloads
        .iter()
        .map(|one| (one.uid.as_str(), one))
        .collect();
    let workloads = now.workloads.iter().map(|one| {
        let old = old.get(one.uid.as_str()).and_then(|old| old.usage.as_ref());
        row(one, old, seconds)
    });
    Rates {
        host: now
            .host
            .as_ref()
            .map(|host| host_row(before.host.as_ref().unwrap_or(host), host, seconds)),
        workloads: workloads.collect(),
    }
}

fn host_row(before: &HostUsage, now: &HostUsage, seconds: f64) -> HostRow {
    let busy = |host: &HostUsage| {
        let idle = ["idle", "iowait", "steal"];
        let busy = host.cpu_seconds.iter();
        let busy = busy.filter(|(mode, _)| !idle.contains(&mode.as_str()));
        busy.map(|(_, seconds)| seconds).sum::<f64>()
    };
    let cpus = now.cpus.max(1) as f64;
    let agent = [before, now].map(|host| host.agent_cpu_seconds);
    HostRow {
        name: now.name.clone(),
        cpus: now.cpus,
        cpu_percent: (100.0 * rate(busy(before), busy(now), seconds) / cpus).min(100.0),
        agent_percent: 100.0 * rate(agent[0], agent[1], seconds),
        load: now.load,
        memory: [
            now.memory_bytes,
            now.memory_bytes.saturating_sub(now.memory_available_bytes),
        ],
        disk: [
            now.disk_bytes,
            now.disk_bytes.saturating_sub(now.disk_free_bytes),
        ],
    }
}

fn row(one: &WorkloadUsage, old: Option<&Usage>, seconds: f64) -> Row {
    let mut row = Row {
        kind: one.kind.clone(),
        namespace: one.namespace.clone(),
        name: one.name.clone(),
        uid: one.uid.clone(),
        phase: format!("{:?}", one.phase),
        ready: one.ready,
        restarts: one.restarts,
        ..Row::default()
    };
    let Some(now) = &one.usage else {
        return row;
    };
    let old = old.unwrap_or(now);
    row.cpu_percent = 100.0 * rate(old.cpu_seconds, now.cpu_seconds, seconds);
    row.memory_bytes = now.memory_bytes;
    for (index, cpu) in now.vcpus.iter().enumerate() {
        let before = old.vcpus.get(index).unwrap_or(cpu);
        let exits = rates(Some(&before.exits), &cpu.exits, seconds);
        for (kind, n) in &exits {
            match kind.as_str() {
                "all" => row.exits += n,
                kind => *row.exit_kinds.entry(kind.to_owned()).or_default() += n,
            }
        }
        row.vcpus.push(VcpuRow {
            cpu_percent: 100.0 * rate(before.cpu_seconds, cpu.cpu_seconds, seconds),
            exits,
        });
    }
    for (device, numbers) in &now.devices {
        let numbers = rates(old.devices.get(device), numbers, seconds);
        let sum = |names: [&str; 2]| {
            names
                .iter()
                .filter_map(|name| numbers.get(*name))
                .sum::<f64>()
        };
        row.disk += sum(["read_bytes", "write_bytes"]);
        row.network += sum(["rx_bytes", "tx_bytes"]);
        row.devices.insert(device.clone(), numbers);
    }
    if let (Some(before), Some(now)) = (old.block, now.block) {
        let all = |block: crate::runtime::usage::Transfers| {
            (block.read_bytes + block.written_bytes) as f64
        };
        row.disk += rate(all(before), all(now), seconds);
    }
    let polled = |usage: &Usage| usage.workers.iter().map(|w| w.polled_seconds).sum::<f64>();
    row.polling_percent = 100.0 * rate(polled(old), polled(now), seconds);
    for worker in &now.workers {
        row.queues.extend(worker.queues.iter().map(|queue| {
            (
                queue.name.clone(),
                worker.name.clone(),
                queue.polled,
                queue.budget_ns,
            )
        }));
    }
    let polled = row
        .queues
        .iter()
        .filter(|(_, _, polled, _)| *polled)
        .count();
    row.polled_queues = [polled, row.queues.len()];
    row
}
