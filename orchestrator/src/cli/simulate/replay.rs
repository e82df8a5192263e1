//! A trace is played to the scheduler, and what comes of it is measured.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::trace::{Trace, Type};
use crate::schedule::{
    Cluster, Host, InventoryError, NumaNode, Packing, Policy, Refusal, Request, Tier,
};

/// The hosts of a simulation.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// CPUs.
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub disk: u64,
    /// NUMA nodes.
    pub nodes: u32,
}

/// Hard disks and networks are counted in thousandths of a machine's.
const PARTS: u32 = 1000;
/// Times that the cluster is looked at while the trace is played.
const LOOKS: usize = 40;

/// What came of a trace.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Workloads that got a place.
    pub placed: usize,
    /// Workloads that did not.
    pub rejected: usize,
    /// What those that did not asked for, as a share of all that was asked for.
    pub rejected_share: f64,
    /// How it was when the first got none; at the end of the trace if all got one.
    pub first: Moment,
    /// Whether any got none.
    pub any_rejected: bool,
    /// How it was at other times.
    pub moments: Vec<Moment>,
    /// The mean density from the first rejection to the end.
    pub full_density: f64,
    /// Of the workloads that pin CPUs, the share that is spread over NUMA nodes.
    pub split: f64,
    /// What finding a place and reserving it took, ascending, in nanoseconds.
    pub latencies: Vec<u32>,
    /// What placing and releasing took together, by the clock.
    pub busy: Duration,
    /// The same in CPU time of this thread, which others on this machine do not lengthen.
    pub work: Duration,
}

/// How it was at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moment {
    /// Arrivals until then.
    pub arrivals: usize,
    /// When, in days.
    pub day: f64,
    /// The share of CPUs that is taken.
    pub cpu: f64,
    /// The share of memory that is taken.
    pub memory: f64,
    /// The share of hosts on which nothing runs.
    pub idle: f64,
    /// The share of all CPUs and memory that is free but that a workload of the trace finds on hosts where
    /// it does not fit: the mean over all that is asked for, so that a workload counts as much as it takes.
    pub unplaceable: f64,
}

impl Moment {
    /// The share that is taken: the mean over CPUs and memory.
    pub fn density(&self) -> f64 {
        (self.cpu + self.memory) / 2.0
    }
}

impl Outcome {
    /// What was unplaceable, on average over the trace.
    pub fn unplaceable(&self) -> f64 {
        self.mean(|moment| moment.unplaceable)
    }

    /// The share of hosts on which nothing ran, on average over the trace.
    pub fn idle(&self) -> f64 {
        self.mean(|moment| moment.idle)
    }

    fn mean(&self, of: impl Fn(&Moment) -> f64) -> f64 {
        let sum: f64 = self.moments.iter().map(of).sum();
        sum / self.moments.len().max(1) as f64
    }
}

/// Plays a trace to a cluster of `hosts` equal hosts.
pub fn replay(
    trace: &Trace,
    hosts: usize,
    shape: &Shape,
    packing: Packing,
) -> Result<Outcome, InventoryError> {
    let mut cluster = cluster(trace, hosts, shape, packing)?;
    let requests: Vec<Request> = trace.types.iter().map(|t| request(t, shape)).collect();
    // What a workload takes of a machine, and what all and the rejected ones take.
    let volume = |arrival: usize| {
        let size = &trace.types[trace.arrivals[arrival].size];
        (size.core + size.memory) / 2.0
    };
    let mut volumes = vec![0.0; requests.len()];
    for (i, arrival) in trace.arrivals.iter().enumerate() {
        volumes[arrival.size] += volume(i);
    }
    let all: f64 = volumes.iter().sum();
    let mix: Vec<(&Request, f64)> = requests
        .iter()
        .zip(volumes)
        .filter(|(_, v)| *v > 0.0)
        .collect();
    let look =
        |cluster: &Cluster, arrivals: usize, day: f64| look(cluster, &mix, hosts, arrivals, day);
    let mut outcome = Outcome::default();
    let mut leaving: BinaryHeap<Reverse<(Day, usize)>> = BinaryHeap::new();
    let every = trace.arrivals.len().div_ceil(LOOKS).max(1);
    let (mut pinning, mut split) = (0usize, 0usize);
    let mut full = (0.0, 0usize);
    let mut lost = 0.0;
    for (i, arrival) in trace.arrivals.iter().enumerate() {
        let request = Request {
            id: name(arrival.id),
            priority: if arrival.low { 0 } else { 100 },
            ..requests[arrival.size].clone()
        };
        let (begun, worked) = (Instant::now(), worked());
        while let Some(Reverse((end, who))) = leaving.peek().copied() {
            if end.0 > arrival.start {
                break;
            }
            leaving.pop();
            // It has a place, since it is in this list.
            let _ = cluster.release(&name(trace.arrivals[who].id));
        }
        let asked = Instant::now();
        let placed = cluster.place(&request);
        let (took, busy) = (asked.elapsed(), begun.elapsed());
        let work = self::worked().saturating_sub(worked);
        lost += if placed.is_err() { volume(i) } else { 0.0 };
        match placed {
            Ok(placement) => {
                outcome.placed += 1;
                outcome.busy += busy;
                outcome.work += work;
                outcome
                    .latencies
                    .push(took.as_nanos().min(u32::MAX.into()) as u32);
                if let Some(end) = arrival.end {
                    leaving.push(Reverse((Day(end), i)));
                }
                if request.tier == Tier::Dedicated {
                    pinning += 1;
                    split += usize::from(placement.nodes.len() > 1);
                }
            }
            Err(Refusal::NoHost { .. }) => {
                if !outcome.any_rejected {
                    outcome.any_rejected = true;
                    outcome.first = look(&cluster, i, arrival.start);
                }
                outcome.rejected += 1;
            }
            // The trace's numbers are not its own.
            Err(_) => outcome.rejected += 1,
        }
        if (i + 1).is_multiple_of(every) {
            let moment = look(&cluster, i + 1, arrival.start);
            if outcome.any_rejected {
                full = (full.0 + moment.density(), full.1 + 1);
            }
            outcome.moments.push(moment);
        }
    }
    if !outcome.any_rejected {
        let day = trace.arrivals.last().map_or(0.0, |arrival| arrival.start);
        outcome.first = look(&cluster, trace.arrivals.len(), day);
    }
    outcome.rejected_share = lost / all;
    outcome.full_density = full.0 / full.1.max(1) as f64;
    outcome.split = split as f64 / pinning.max(1) as f64;
    outcome.latencies.sort_unstable();
    Ok(outcome)
}

/// The CPU time of this thread.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn name(id: u64) -> String {
    format!("vm-{id}")
}

/// A time that can be put in order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Day(f64);

impl Eq for Day {}

impl Ord for Day {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Day {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// An empty cluster. Fractions of CPUs are real ones, so nothing is overcommitted.
fn cluster(
    trace: &Trace,
    hosts: usize,
    shape: &Shape,
    packing: Packing,
) -> Result<Cluster, InventoryError> {
    let policy = Policy {
        packing,
        overcommit: crate::schedule::Overcommit::none(),
        ..Policy::default()
    };
    let mut cluster = Cluster::new(policy);
    let uses = |of: fn(&Type) -> f64| trace.types.iter().any(|t| of(t) > 0.0);
    let parts = [("hdd", uses(|t| t.hdd)), ("nic", uses(|t| t.nic))];
    let parts: BTreeMap<String, u32> = parts
        .into_iter()
        .filter(|(_, used)| *used)
        .map(|(name, _)| (name.to_owned(), PARTS))
        .collect();
    let (cpus, nodes) = (shape.cpus, shape.nodes.max(1));
    let node = |i: u32| NumaNode {
        cpus: (cpus * i / nodes..cpus * (i + 1) / nodes).collect(),
        memory: shape.memory / u64::from(nodes),
        // The machine's other parts belong to no node in particular.
        devices: if i == 0 {
            parts.clone()
        } else {
            BTreeMap::new()
        },
        ..NumaNode::default()
    };
    let mut host = Host {
        nodes: (0..nodes).map(node).collect(),
        disk: shape.disk,
        ..Host::default()
    };
    for i in 0..hosts {
        host.name = format!("host-{i:05}");
        cluster.add_host(&host)?;
    }
    Ok(cluster)
}

/// What a type asks for on hosts of this shape. Fractions are rounded down, so that as many fit as the
/// trace says.
fn request(size: &Type, shape: &Shape) -> Request {
    let milli = size.core * f64::from(shape.cpus) * 1000.0;
    let milli_cpus = match size.tier {
        Tier::Dedicated => ((milli / 1000.0).round() as u64).max(1) * 1000,
        _ => (milli as u64).max(1),
    };
    let parts = |fraction: f64| (fraction * f64::from(PARTS)) as u32;
    let devices = [("hdd", parts(size.hdd)), ("nic", parts(size.nic))];
    Request {
        tier: size.tier,
        milli_cpus,
        memory: (size.memory * shape.memory as f64) as u64,
        disk: (size.ssd * shape.disk as f64) as u64,
        devices: devices
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
        ..Request::default()
    }
}

fn look(
    cluster: &Cluster,
    mix: &[(&Request, f64)],
    hosts: usize,
    arrivals: usize,
    day: f64,
) -> Moment {
    let usage = cluster.usage();
    let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let all: f64 = mix.iter().map(|(_, volume)| volume).sum();
    let lost = mix.iter().map(|(request, volume)| {
        let lost = cluster.lost_to(request);
        let lost = share(lost.cpu, usage.cpu) + share(lost.memory, usage.memory);
        lost / 2.0 * volume / all
    });
    Moment {
        arrivals,
        day,
        cpu: share(usage.cpu_taken, usage.cpu),
        memory: share(usage.memory_taken, usage.memory),
        idle: usage.idle_hosts as f64 / hosts.max(1) as f64,
        unplaceable: lost.sum(),
    }
}
