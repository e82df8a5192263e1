//! What was seen and counted, as families of Prometheus's. Units are seconds and bytes; what only grows ends in
//! `_total`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counts::{ApiCounts, BOUNDS};
use super::host::HostUsage;
use super::sample::{Sample, WorkloadUsage};
use super::store::StoreCounts;
use super::text::Type::{Counter, Gauge, Histogram};
use super::text::{Family, Text, Type};
use crate::runtime::usage::{Queue, Usage, Vcpu, Worker};
use crate::site::SiteCounts;

/// The host's families.
pub fn host(text: &mut Text, host: &HostUsage) {
    let name = [("host", host.name.as_str())];
    let info = [
        ("host", host.name.as_str()),
        ("version", &host.version),
        ("kernel", &host.kernel),
    ];
    let mut one = |family: &'static str, kind: Type, help: &str, value: f64| {
        text.family(family, kind, help).sample(&name, value);
    };
    one(
        "skerry_host_cpus",
        Gauge,
        "CPUs of the host.",
        host.cpus as f64,
    );
    one(
        "skerry_host_load1",
        Gauge,
        "What waits to run, on average over a minute.",
        host.load[0],
    );
    one(
        "skerry_host_load5",
        Gauge,
        "What waits to run, on average over 5 minutes.",
        host.load[1],
    );
    one(
        "skerry_host_load15",
        Gauge,
        "What waits to run, on average over 15 minutes.",
        host.load[2],
    );
    one(
        "skerry_host_memory_size_bytes",
        Gauge,
        "Memory of the host.",
        host.memory_bytes as f64,
    );
    let help = "Memory of the host that workloads could still have.";
    one(
        "skerry_host_memory_available_bytes",
        Gauge,
        help,
        host.memory_available_bytes as f64,
    );
    let help = "Size of the file system that the state directory is on.";
    one(
        "skerry_host_disk_size_bytes",
        Gauge,
        help,
        host.disk_bytes as f64,
    );
    let help = "Free space of the file system that the state directory is on.";
    one(
        "skerry_host_disk_free_bytes",
        Gauge,
        help,
        host.disk_free_bytes as f64,
    );
    one(
        "skerry_host_hugepages",
        Gauge,
        "Huge pages of the host.",
        host.hugepages[0] as f64,
    );
    one(
        "skerry_host_hugepages_free",
        Gauge,
        "Huge pages that are free.",
        host.hugepages[1] as f64,
    );
    let help = "CPU time of the agent.";
    one(
        "skerry_agent_cpu_seconds_total",
        Counter,
        help,
        host.agent_cpu_seconds,
    );
    let help = "Memory of the agent.";
    one(
        "skerry_agent_resident_memory_bytes",
        Gauge,
        help,
        host.agent_memory_bytes as f64,
    );
    text.family("skerry_host_info", Gauge, "Versions, always 1.")
        .sample(&info, 1);
    let help = "Time of all CPUs, by what they did.";
    let mut family = text.family("skerry_host_cpu_seconds_total", Counter, help);
    for (mode, seconds) in &host.cpu_seconds {
        family.sample(&[name[0], ("mode", mode)], seconds);
    }
    let help =
        "Time in which something waited for a resource (Linux's pressure stall information).";
    let mut family = text.family("skerry_host_pressure_waiting_seconds_total", Counter, help);
    for (resource, seconds) in &host.waited_seconds {
        family.sample(&[name[0], ("resource", resource)], seconds);
    }
}

/// A label and what it is.
type Label<'a> = (&'a str, &'a str);

/// A workload's labels.
fn labels(one: &WorkloadUsage) -> [Label<'_>; 3] {
    [
        ("namespace", &one.namespace),
        ("kind", &one.kind),
        ("name", &one.name),
    ]
}

/// A workload's labels and one more.
fn and<'a>(one: &'a WorkloadUsage, more: Label<'a>) -> [Label<'a>; 4] {
    let [namespace, kind, name] = labels(one);
    [namespace, kind, name, more]
}

/// The families of workloads, whatever they are.
pub fn workloads(text: &mut Text, sample: &Sample) {
    let all = &sample.workloads;
    let mut phases: BTreeMap<[String; 3], u64> = BTreeMap::new();
    for one in all {
        let key = [
            one.namespace.clone(),
            one.kind.clone(),
            format!("{:?}", one.phase),
        ];
        *phases.entry(key).or_default() += 1;
    }
    let mut family = text.family("skerry_workloads", Gauge, "Workloads by kind and phase.");
    for ([namespace, kind, phase], n) in &phases {
        family.sample(
            &[("namespace", namespace), ("kind", kind), ("phase", phase)],
            n,
        );
    }
    let mut family = text.family(
        "skerry_workload_phase",
        Gauge,
        "The phase of a workload, always 1.",
    );
    for one in all {
        family.sample(&and(one, ("phase", &format!("{:?}", one.phase))), 1);
    }
    let mut each = |name, kind, help: &str, value: fn(&WorkloadUsage) -> Option<f64>| {
        let mut family = text.family(name, kind, help);
        for (one, value) in all.iter().filter_map(|one| Some((one, value(one)?))) {
            family.sample(&labels(one), value);
        }
    };
    each(
        "skerry_workload_ready",
        Gauge,
        "Whether a workload is ready.",
        |one| Some(f64::from(u8::from(one.ready))),
    );
    let help = "How often a workload was started again.";
    each("skerry_workload_restarts_total", Counter, help, |one| {
        Some(one.restarts.into())
    });
    let help = "Since when a workload runs, in seconds since 1970.";
    each("skerry_workload_start_time_seconds", Gauge, help, |one| {
        one.started_at
    });
    let help = "CPU time of a workload: of a VM's monitor, of a container's processes.";
    each("skerry_workload_cpu_seconds_total", Counter, help, |one| {
        Some(one.usage.as_ref()?.cpu_seconds)
    });
    each(
        "skerry_workload_memory_bytes",
        Gauge,
        "Memory that a workload has.",
        |one| Some(one.usage.as_ref()?.memory_bytes as f64),
    );
    each(
        "skerry_workload_memory_limit_bytes",
        Gauge,
        "Memory that a workload may have.",
        |one| Some(one.usage.as_ref()?.memory_limit_bytes? as f64),
    );
    each(
        "skerry_container_processes",
        Gauge,
        "Processes and threads of a container.",
        |one| Some(one.usage.as_ref()?.processes? as f64),
    );
    let help = "What a container read of block devices.";
    each(
        "skerry_container_block_read_bytes_total",
        Counter,
        help,
        |one| Some(one.usage.as_ref()?.block?.read_bytes as f64),
    );
    let help = "What a container wrote to block devices.";
    each(
        "skerry_container_block_written_bytes_total",
        Counter,
        help,
        |one| Some(one.usage.as_ref()?.block?.written_bytes as f64),
    );
    let help = "Reads of a container from block devices.";
    each("skerry_container_block_reads_total", Counter, help, |one| {
        Some(one.usage.as_ref()?.block?.reads as f64)
    });
    let help = "Writes of a container to block devices.";
    each(
        "skerry_container_block_writes_total",
        Counter,
        help,
        |one| Some(one.usage.as_ref()?.block?.writes as f64),
    );
}

/// What devices count: the number's name, how another one is called that only devices of its kind have, the
/// family, and what it is.
const DEVICES: [[&str; 4]; 11] = [
    [
        "read_bytes",
        "read_ops",
        "skerry_vm_disk_read_bytes_total",
        "What a VM read of a disk.",
    ],
    [
        "read_ops",
        "read_ops",
        "skerry_vm_disk_reads_total",
        "Reads of a VM from a disk.",
    ],
    [
        "write_bytes",
        "read_ops",
        "skerry_vm_disk_written_bytes_total",
        "What a VM wrote to a disk.",
    ],
    [
        "write_ops",
        "read_ops",
        "skerry_vm_disk_writes_total",
        "Writes of a VM to a disk.",
    ],
    [
        "rx_bytes",
        "rx_frames",
        "skerry_vm_network_receive_bytes_total",
        "What a VM got from a network.",
    ],
    [
        "rx_frames",
        "rx_frames",
        "skerry_vm_network_receive_frames_total",
        "Frames that a VM got.",
    ],
    [
        "tx_bytes",
        "rx_frames",
        "skerry_vm_network_transmit_bytes_total",
        "What a VM sent to a network.",
    ],
    [
        "tx_frames",
        "rx_frames",
        "skerry_vm_network_transmit_frames_total",
        "Frames that a VM sent.",
    ],
    [
        "rx_bytes",
        "connections",
        "skerry_vm_vsock_receive_bytes_total",
        "What a VM got by its vsock.",
    ],
    [
        "tx_bytes",
        "connections",
        "skerry_vm_vsock_transmit_bytes_total",
        "What a VM sent by its vsock.",
    ],
    [
        "connections",
        "connections",
        "skerry_vm_vsock_connections_total",
        "Connections of a VM's vsock.",
    ],
];

/// Adds what is known of a VM's CPU to a family.
type TellCpu = fn(&mut Family<'_>, &WorkloadUsage, &str, &Vcpu);

/// The families of VMs.
pub fn vms(text: &mut Text, sample: &Sample) {
    let all = sample.workloads.iter();
    let vms: Vec<(&WorkloadUsage, &Usage)> = all
        .filter_map(|one| Some((one, one.usage.as_ref()?)))
        .collect();
    let mut cpus = |name, help: &str, tell: TellCpu| {
        let mut family = text.family(name, Counter, help);
        for (one, usage) in &vms {
            for (index, cpu) in usage.vcpus.iter().enumerate() {
                tell(&mut family, one, &index.to_string(), cpu);
            }
        }
    };
    let help = "CPU time of a VM's CPU, in its guest or for it.";
    cpus(
        "skerry_vm_vcpu_seconds_total",
        help,
        |family, one, index, cpu| {
            family.sample(&and(one, ("vcpu", index)), cpu.cpu_seconds);
        },
    );
    let help = "How often a VM's CPU left its guest.";
    cpus("skerry_vm_exits_total", help, |family, one, index, cpu| {
        if let Some(all) = cpu.exits.get("all") {
            family.sample(&and(one, ("vcpu", index)), all);
        }
    });
    let help = "How often a VM's CPU left its guest, by kind as the host's KVM counts them; kinds overlap.";
    cpus(
        "skerry_vm_exits_by_kind_total",
        help,
        |family, one, index, cpu| {
            let [namespace, kind, name, vcpu] = and(one, ("vcpu", index));
            for (exit, n) in cpu
                .exits
                .iter()
                .filter(|(exit, n)| *exit != "all" && **n > 0)
            {
                family.sample(&[namespace, kind, name, vcpu, ("exit", exit)], n);
            }
        },
    );
    for [number, sign, name, help] in DEVICES {
        let mut family = text.family(name, Counter, help);
        for (one, usage) in &vms {
            for (device, numbers) in usage.devices.iter().filter(|(_, n)| n.contains_key(sign)) {
                if let Some(n) = numbers.get(number) {
                    family.sample(&and(one, ("device", device)), n);
                }
            }
        }
    }
    let mut workers = |name, help: &str, value: fn(&Worker) -> f64| {
        let mut family = text.family(name, Counter, help);
        for (one, usage) in &vms {
            for worker in &usage.workers {
                family.sample(&and(one, ("worker", &worker.name)), value(worker));
            }
        }
    };
    let help = "Times that a VM's I/O worker went to sleep.";
    workers("skerry_vm_worker_sleeps_total", help, |worker| {
        worker.sleeps as f64
    });
    let help = "Time that a VM's I/O worker looked for work and found none.";
    workers("skerry_vm_worker_polled_seconds_total", help, |worker| {
        worker.polled_seconds
    });
    let help = "Times that the cap on polling sent a VM's I/O worker to sleep.";
    workers("skerry_vm_worker_capped_total", help, |worker| {
        worker.capped as f64
    });
    let mut queues = |name, help: &str, value: fn(&Queue) -> f64| {
        let mut family = text.family(name, Gauge, help);
        for (one, usage) in &vms {
            for queue in usage.workers.iter().flat_map(|worker| &worker.queues) {
                family.sample(&and(one, ("queue", &queue.name)), value(queue));
            }
        }
    };
    let help = "Whether a queue is polled now.";
    queues("skerry_vm_queue_polled", help, |queue| {
        f64::from(u8::from(queue.polled))
    });
    let help = "For how long a queue would be polled without work.";
    queues("skerry_vm_queue_polling_budget_seconds", help, |queue| {
        queue.budget_ns as f64 / 1e9
    });
}

/// The families of the control plane.
pub fn control(text: &mut Text, api: &ApiCounts, store: &StoreCounts, site: &SiteCounts) {
    let mut outcomes = |name, help: &str, all: &[(&str, &AtomicU64)]| {
        let mut family = text.family(name, Counter, help);
        for (outcome, n) in all {
            family.sample(&[("outcome", outcome)], n.load(Ordering::Relaxed));
        }
    };
    outcomes(
        "skerry_store_commits_total",
        "Commits to the store.",
        &[
            ("made", &store.commits),
            ("conflict", &store.conflicts),
            ("failed", &store.failures),
        ],
    );
    outcomes(
        "skerry_agent_turns_total",
        "Looks at workloads, and next steps.",
        &[("done", &site.turns), ("failed", &site.failed_turns)],
    );
    outcomes(
        "skerry_scheduler_attempts_total",
        "Looks for a place for a workload.",
        &[("placed", &site.placed), ("none", &site.unplaced)],
    );
    let help = "Keys of the store that were changed.";
    let changes = store.changes.load(Ordering::Relaxed);
    text.family("skerry_store_changes_total", Counter, help)
        .sample(&[], changes);
    let help = "Watches of the API that are open.";
    text.family("skerry_api_watches", Gauge, help)
        .sample(&[], api.watches());
    let help = "Requests that the API answered.";
    let mut family = text.family("skerry_api_requests_total", Counter, help);
    for ((verb, code), n) in api.requests() {
        family.sample(&[("verb", verb), ("code", &code.to_string())], n);
    }
    let help = "How long the API took until it began to answer.";
    let mut family = text.family("skerry_api_request_duration_seconds", Histogram, help);
    for (verb, took) in api.took() {
        let mut below = 0;
        for (bound, n) in BOUNDS.iter().zip(took.buckets) {
            below += n;
            family.part(
                "_bucket",
                &[("verb", verb), ("le", &bound.to_string())],
                below,
            );
        }
        family.part("_bucket", &[("verb", verb), ("le", "+Inf")], took.count);
        family.part("_sum", &[("verb", verb)], took.sum);
        family.part("_count", &[("verb", verb)], took.count);
    }
}
