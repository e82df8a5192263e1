//! Hosts and requests for the tests.

use super::*;

pub const GIB: u64 = 1 << 30;

/// A host of two NUMA nodes with 8 CPUs and 32 GiB each, and a TiB of disk.
pub fn host(name: &str) -> Host {
    let node = |first: u32| NumaNode {
        cpus: (first..first + 8).collect(),
        memory: 32 * GIB,
        ..NumaNode::default()
    };
    Host {
        name: name.into(),
        labels: labels(&[("name", name)]),
        nodes: vec![node(0), node(8)],
        disk: 1024 * GIB,
        ..Host::default()
    }
}

/// A virtual machine of tier burst with CPUs and GiB of memory.
pub fn request(id: &str, cpus: u64, gib: u64) -> Request {
    Request {
        id: id.into(),
        milli_cpus: cpus * 1000,
        memory: gib * GIB,
        ..Request::default()
    }
}

/// The same with pinned CPUs.
pub fn dedicated(id: &str, cpus: u64, gib: u64) -> Request {
    Request {
        tier: Tier::Dedicated,
        ..request(id, cpus, gib)
    }
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pair = |&(key, value): &(&str, &str)| (key.into(), value.into());
    pairs.iter().map(pair).collect()
}

/// A cluster of these hosts.
pub fn cluster(hosts: &[Host]) -> Cluster {
    let mut cluster = Cluster::new(Policy::default());
    for host in hosts {
        cluster.add_host(host).expect("a host");
    }
    cluster
}

/// Why a request has no place.
pub fn reasons(refusal: Refusal) -> Vec<(Reason, usize)> {
    match refusal {
        Refusal::NoHost { misses, .. } => misses
            .into_iter()
            .map(|miss| (miss.reason, miss.hosts))
            .collect(),
        other => panic!("{other}"),
    }
}
