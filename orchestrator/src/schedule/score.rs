//! What a host is worth for a demand: the terms and their weights.

use super::demand::Demand;
use super::ledger::Amounts;
use super::mix::Size;

/// The terms of a score. Each is better when it is larger; their sum decides.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// How full the host is then: the mean over CPU and memory, 0 to 1.
    pub tight: f64,
    /// How well what is left keeps its proportions: 0 at best, and down to -1
    /// when CPUs without memory are left, or memory without CPUs.
    pub balance: f64,
    /// How much less of the host is left that sizes of the mix cannot take, as a share of it; more is less
    /// than 0.
    pub room: f64,
    /// 0 if CPUs, memory and devices are of one NUMA node, else -1.
    pub node: f64,
    /// 0 if something runs on the host; else the fewer such hosts there are, the less: -1 for the last one.
    pub fresh: f64,
    /// How much the host is what was wished for, -1 to 1.
    pub wish: f64,
}

/// What each term counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Of [`Terms::tight`].
    pub tight: f64,
    /// Of [`Terms::balance`].
    pub balance: f64,
    /// Of [`Terms::room`].
    pub room: f64,
    /// Of [`Terms::node`].
    pub node: f64,
    /// Of [`Terms::fresh`].
    pub fresh: f64,
    /// Of [`Terms::wish`].
    pub wish: f64,
}

impl Default for Weights {
    /// Found by simulation: filling hosts up matters least, and what it leaves of use to nobody most.
    /// Preferences outweigh all.
    fn default() -> Self {
        Weights {
            tight: 0.1,
            balance: 1.0,
            room: 8.0,
            node: 0.2,
            fresh: 0.3,
            wish: 100.0,
        }
    }
}

impl Terms {
    /// The sum.
    pub(super) fn sum(&self, weights: &Weights) -> f64 {
        weights.tight * self.tight
            + weights.balance * self.balance
            + weights.room * self.room
            + weights.node * self.node
            + weights.fresh * self.fresh
            + weights.wish * self.wish
    }
}

/// `part` of `whole`, from 0 to 1.
fn share(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        _ => part as f64 / whole as f64,
    }
}

/// The share of the host that stays free but that sizes of the mix cannot take.
fn stranded(cpu: u64, memory: u64, capacity: &Amounts, mix: &[Size]) -> f64 {
    let left = (share(cpu, capacity.cpu) + share(memory, capacity.memory)) / 2.0;
    let lost = mix
        .iter()
        .filter(|size| size.cpu > cpu || size.memory > memory);
    left * lost.map(|size| size.share).sum::<f64>()
}

/// The terms of a host that can serve the demand, but for wishes.
pub(super) fn terms(
    free: &Amounts,
    capacity: &Amounts,
    demand: &Demand,
    mix: &[Size],
    one_node: bool,
) -> Terms {
    let cpu = free.cpu - demand.cpu();
    let memory = free.memory - demand.memory;
    let (cpu_left, memory_left) = (share(cpu, capacity.cpu), share(memory, capacity.memory));
    let before = stranded(free.cpu, free.memory, capacity, mix);
    let after = stranded(cpu, memory, capacity, mix);
    Terms {
        tight: 1.0 - (cpu_left + memory_left) / 2.0,
        balance: -(cpu_left - memory_left).abs(),
        room: before - after,
        node: if one_node { 0.0 } else { -1.0 },
        fresh: 0.0,
        wish: 0.0,
    }
}

/// How much is left, as shares of what the host has: what best fit and worst fit go by.
pub(super) fn left(free: &Amounts, capacity: &Amounts, demand: &Demand) -> f64 {
    share(free.cpu - demand.cpu(), capacity.cpu)
        + share(free.memory - demand.memory, capacity.memory)
        + share(free.disk - demand.disk, capacity.disk)
}
