//! Where a request is placed, as others are told.

use std::collections::BTreeMap;

/// A place that is reserved for a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The request.
    pub id: String,
    /// The host.
    pub host: String,
    /// What each NUMA node gives.
    pub nodes: Vec<NodeShare>,
    /// Of the shared CPUs, in millionths, with overcommitment counted in.
    pub shared_cpu: u64,
    /// Bytes of disk.
    pub disk: u64,
}

/// What one NUMA node gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeShare {
    /// The node's place in the host's list.
    pub node: usize,
    /// CPUs that are the request's own, by their numbers.
    pub cpus: Vec<u32>,
    /// Bytes of memory in small pages, with overcommitment counted in.
    pub memory: u64,
    /// Hugepages of 2 MiB.
    pub huge_2m: u64,
    /// Hugepages of 1 GiB.
    pub huge_1g: u64,
    /// Devices, by class.
    pub devices: BTreeMap<String, u32>,
}
