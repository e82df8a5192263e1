//! How full the cluster is, and how much of what is free cannot be used.

use super::cluster::Cluster;
use super::host::InventoryError;
use super::ledger::Amounts;
use super::request::{Request, Tier};

/// What hosts have and what is taken of it. Cordoned and claimed hosts count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Millionths of CPUs that there are.
    pub cpu: u64,
    /// Of these, taken.
    pub cpu_taken: u64,
    /// Bytes of memory in small pages that there are.
    pub memory: u64,
    /// Of these, taken.
    pub memory_taken: u64,
    /// Hosts on which nothing runs.
    pub idle_hosts: usize,
}

/// What is free but cannot be given to a request, since it is on hosts that lack something else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Millionths of CPUs.
    pub cpu: u64,
    /// Bytes of memory in small pages.
    pub memory: u64,
}

/// One host: what it has, what is left, and what runs there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostUsage {
    /// Its name.
    pub name: String,
    /// What it has.
    pub capacity: Amounts,
    /// What is left. Of CPUs this is what pinned and shared ones leave, overcommitment counted in.
    pub free: Amounts,
    /// Nothing new is placed here.
    pub cordoned: bool,
    /// It is somebody's bare metal.
    pub claimed: bool,
    /// What runs here, by name.
    pub workloads: Vec<Workload>,
}

/// A workload that has a place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Its name.
    pub id: String,
    /// How it runs.
    pub tier: Tier,
    /// Its importance.
    pub priority: i32,
}

impl Cluster {
    /// The names of all hosts, in the order in which equally good ones are taken.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let slots = self.present.iter().filter_map(|host| self.slot(host));
        slots.map(|slot| slot.name.as_str())
    }

    /// How full a host is, and of what.
    pub fn host_usage(&self, name: &str) -> Result<HostUsage, InventoryError> {
        let unknown = || InventoryError::Unknown(name.to_owned());
        let at = self.host(name)?;
        let slot = self.slot(at).ok_or_else(unknown)?;
        let works = slot.works.iter().filter_map(|&work| self.works.get(work));
        let mut workloads: Vec<Workload> = works
            .map(|work| Workload {
                id: work.id.clone(),
                tier: work.tier,
                priority: work.priority,
            })
            .collect();
        workloads.sort();
        Ok(HostUsage {
            name: slot.name.clone(),
            capacity: *slot.ledger.capacity(),
            free: *slot.ledger.free(),
            cordoned: self.cordoned.contains(at),
            claimed: self.claimed.contains(at),
            workloads,
        })
    }

    /// How full the cluster is.
    pub fn usage(&self) -> Usage {
        let total = self.total();
        let mut usage = Usage {
            cpu: total.cpu,
            cpu_taken: total.cpu,
            memory: total.memory,
            memory_taken: total.memory,
            idle_hosts: self.idle.len(),
        };
        for slot in self.present.iter().filter_map(|host| self.slot(host)) {
            usage.cpu_taken -= slot.ledger.free().cpu;
            usage.memory_taken -= slot.ledger.free().memory;
        }
        usage
    }

    /// What is free on hosts where this request does not fit. Only amounts are looked at.
    pub fn lost_to(&self, request: &Request) -> Lost {
        let demand = self.demand(request);
        let mut lost = Lost::default();
        for slot in self.present.iter().filter_map(|host| self.slot(host)) {
            if slot.ledger.lacks(&demand).is_some() {
                lost.cpu += slot.ledger.free().cpu;
                lost.memory += slot.ledger.free().memory;
            }
        }
        lost
    }
}
