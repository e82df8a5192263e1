//! What a request takes of a host once its tier's sharing is counted in.

use super::request::{Kind, Request, Tier};

/// Millionths of a CPU: the unit in which CPUs are counted here, so that a sixteenth is a whole number.
pub const MICRO: u64 = 1_000_000;

/// How far CPUs and memory are promised to more than one, by tier, in percent: 400 is fourfold.
/// Dedicated CPUs never are, and neither is memory but the dense tier's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overcommit {
    burst_cpus: u64,
    dense_cpus: u64,
    dense_memory: u64,
}

/// A factor of overcommitment that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an overcommitment of {0} % makes no sense: it may be 100 to 10000")]
pub struct FactorError(u64);

impl Overcommit {
    /// These factors, in percent.
    pub fn new(burst_cpus: u64, dense_cpus: u64, dense_memory: u64) -> Result<Self, FactorError> {
        for factor in [burst_cpus, dense_cpus, dense_memory] {
            if !(100..=10_000).contains(&factor) {
                return Err(FactorError(factor));
            }
        }
        Ok(Self {
            burst_cpus,
            dense_cpus,
            dense_memory,
        })
    }

    /// Nothing is promised to more than one.
    pub const fn none() -> Self {
        Overcommit {
            burst_cpus: 100,
            dense_cpus: 100,
            dense_memory: 100,
        }
    }
}

impl Default for Overcommit {
    fn default() -> Self {
        Overcommit {
            burst_cpus: 400,
            dense_cpus: 1600,
            dense_memory: 100,
        }
    }
}

/// A class of devices by its number in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClassIndex(pub u32);

impl ClassIndex {
    /// The class that no host has.
    pub const NOWHERE: ClassIndex = ClassIndex(u32::MAX);
}

/// What is taken of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// Pinned CPUs.
    pub pinned: u32,
    /// Of the shared CPUs, in millionths.
    pub shared: u64,
    /// Bytes in small pages.
    pub memory: u64,
    /// Pages of 2 MiB.
    pub huge_2m: u64,
    /// Pages of 1 GiB.
    pub huge_1g: u64,
    /// Bytes.
    pub disk: u64,
    /// Devices by class, in the order of the request.
    pub devices: Vec<(ClassIndex, u32)>,
    /// All of one NUMA node.
    pub one_node: bool,
    /// The whole host.
    pub whole: bool,
}

impl Demand {
    /// What `request` takes.
    pub fn of(
        request: &Request,
        overcommit: &Overcommit,
        class: impl Fn(&str) -> ClassIndex,
    ) -> Self {
        let whole = request.kind == Kind::Host;
        let pinned = request.tier == Tier::Dedicated || whole;
        let (cpus, memory) = match request.tier {
            Tier::Dense => (overcommit.dense_cpus, overcommit.dense_memory),
            _ => (overcommit.burst_cpus, 100),
        };
        let memory = if whole { 100 } else { memory };
        let micro = request.milli_cpus * (MICRO / 1000);
        Demand {
            // A whole host that must have half a CPU must have one.
            pinned: if pinned {
                micro.div_ceil(MICRO) as u32
            } else {
                0
            },
            shared: if pinned { 0 } else { share(micro, cpus) },
            memory: share(request.memory, memory),
            huge_2m: request.huge_2m,
            huge_1g: request.huge_1g,
            disk: request.disk,
            devices: request
                .devices
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(name, count)| (class(name), *count))
                .collect(),
            one_node: request.one_node && !whole,
            whole,
        }
    }

    /// All its CPUs, in millionths.
    pub fn cpu(&self) -> u64 {
        u64::from(self.pinned) * MICRO + self.shared
    }
}

/// `amount` when so many percent may be promised, rounded up. Amounts are below 2^56.
fn share(amount: u64, percent: u64) -> u64 {
    (amount * 100).div_ceil(percent)
}
