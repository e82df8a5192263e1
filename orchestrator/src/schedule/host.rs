//! The inventory: what a host has, before anything runs on it.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of hosts and workloads.
pub type Labels = BTreeMap<String, String>;

/// A host as its agent reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Its name, of which there is one.
    pub name: String,
    /// What selectors and topologies look at.
    pub labels: Labels,
    /// What keeps requests away that do not tolerate it.
    pub taints: Vec<Taint>,
    /// Nothing new is placed here.
    pub cordoned: bool,
    /// Somebody has it as bare metal, who is not in these books.
    pub claimed: bool,
    /// Its NUMA nodes, at least one.
    pub nodes: Vec<NumaNode>,
    /// Bytes for disks.
    pub disk: u64,
}

/// A NUMA node: only what workloads may have of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NumaNode {
    /// The numbers of its CPUs, siblings of a core beside each other: they are pinned in this order.
    pub cpus: Vec<u32>,
    /// Bytes of memory in small pages.
    pub memory: u64,
    /// Hugepages of 2 MiB.
    pub huge_2m: u64,
    /// Hugepages of 1 GiB.
    pub huge_1g: u64,
    /// Devices that are given away whole, by class.
    pub devices: BTreeMap<String, u32>,
}

/// What keeps requests away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taint {
    /// Its name.
    pub key: String,
    /// Its value, or empty.
    pub value: String,
    /// What it does.
    pub effect: Effect,
}

/// What a taint does to requests that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// They are not placed here. What must leave is the agent's affair.
    Refuse,
    /// They are placed here when no other host will do as well.
    Avoid,
}

/// Why a host is not taken into the inventory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InventoryError {
    /// It has no name.
    #[error("a host has no name: give it one")]
    Unnamed,
    /// It is there already.
    #[error(
        "host {0} is in the inventory already: take it out first, or give the other one another name"
    )]
    Twice(String),
    /// It is not there.
    #[error("host {0} is not in the inventory: look at the list of hosts")]
    Unknown(String),
    /// The cluster is full.
    #[error("host {host} is one too many: a cluster has at most {most}")]
    Hosts {
        /// The host.
        host: String,
        /// How many there may be.
        most: usize,
    },
    /// There are too many classes of devices.
    #[error(
        "host {host} brings classes of devices beyond the {most} that a cluster may have: give devices of one kind one class"
    )]
    Classes {
        /// The host.
        host: String,
        /// How many there may be.
        most: usize,
    },
    /// It has no node, or too many of something.
    #[error("host {host} has {found} {what}: it may have {least} to {most}")]
    Number {
        /// The host.
        host: String,
        /// Of what.
        what: &'static str,
        /// So many.
        found: u64,
        /// At least.
        least: u64,
        /// At most.
        most: u64,
    },
    /// Two of its CPUs have one number.
    #[error("host {host} lists CPU {cpu} twice: each CPU belongs to one NUMA node")]
    CpuTwice {
        /// The host.
        host: String,
        /// The CPU.
        cpu: u32,
    },
}

/// NUMA nodes of a host.
const NODES: u64 = 64;
/// CPUs of a host.
const CPUS: u64 = 8192;
/// Bytes or pages: sums of them over a host's nodes cannot overflow.
const AMOUNT: u64 = 1 << 56;
/// Labels, taints, classes of devices.
const WORDS: u64 = 256;

impl Host {
    /// Whether it can be counted with.
    pub(super) fn check(&self) -> Result<(), InventoryError> {
        if self.name.is_empty() {
            return Err(InventoryError::Unnamed);
        }
        let number = |what, found, least, most| match (least..=most).contains(&found) {
            true => Ok(()),
            false => Err(InventoryError::Number {
                host: self.name.clone(),
                what,
                found,
                least,
                most,
            }),
        };
        number("NUMA nodes", self.nodes.len() as u64, 1, NODES)?;
        number("labels", self.labels.len() as u64, 0, WORDS)?;
        number("taints", self.taints.len() as u64, 0, WORDS)?;
        number("bytes of disk", self.disk, 0, AMOUNT)?;
        let cpus: u64 = self.nodes.iter().map(|node| node.cpus.len() as u64).sum();
        number("CPUs", cpus, 0, CPUS)?;
        let mut seen = BTreeSet::new();
        for node in &self.nodes {
            number("bytes of memory in a node", node.memory, 0, AMOUNT)?;
            number("2 MiB pages in a node", node.huge_2m, 0, AMOUNT)?;
            number("1 GiB pages in a node", node.huge_1g, 0, AMOUNT)?;
            number(
                "device classes in a node",
                node.devices.len() as u64,
                0,
                WORDS,
            )?;
            if let Some(&cpu) = node.cpus.iter().find(|&&cpu| !seen.insert(cpu)) {
                let host = self.name.clone();
                return Err(InventoryError::CpuTwice { host, cpu });
            }
        }
        Ok(())
    }
}
