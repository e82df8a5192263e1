//! Who has to go for a more important request: as unimportant as possible, then as few as possible.

use std::cmp::Reverse;

use super::cluster::Cluster;
use super::demand::Demand;
use super::gates::Gates;
use super::hostset::HostIndex;
use super::placement::Placement;
use super::refusal::Refusal;
use super::request::{Preemption, Request};
use super::works::{Running, WorkIndex};

/// A request that was placed, and who had to go for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preempted {
    /// The request's place.
    pub placement: Placement,
    /// Who has no place any more, least important first. None if there was room.
    pub victims: Vec<Victim>,
}

/// A workload that has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// Its name.
    pub id: String,
    /// Its importance, which is less than the request's.
    pub priority: i32,
    /// The place that it had.
    pub placement: Placement,
}

/// Who would have to go on one host.
struct Plan {
    host: HostIndex,
    victims: Vec<WorkIndex>,
    /// Smaller is better: the most important victim, how many, how important together.
    cost: (i32, usize, i64),
}

impl Cluster {
    /// Places a request, and if there is no room takes the places of less important workloads away: all of
    /// that or nothing. These are the books only: stop the victims before the request is started.
    ///
    /// A host where other workloads or the spread forbid the request is not considered, also if the victims
    /// are what is in the way.
    pub fn preempt(&mut self, request: &Request) -> Result<Preempted, Refusal> {
        let refusal = match self.place(request) {
            Ok(placement) => {
                let victims = Vec::new();
                return Ok(Preempted { placement, victims });
            }
            Err(refusal @ Refusal::NoHost { .. }) => refusal,
            Err(other) => return Err(other),
        };
        if request.preemption == Preemption::Never {
            let why = "its preemption policy is never. Allow it, or make room";
            let id = request.id.clone();
            return Err(Refusal::NoVictims { id, why });
        }
        let demand = self.demand(request);
        let gates = Gates::of(self, request, false);
        let plans = gates.eligible.iter();
        let plans = plans.filter_map(|host| self.plan(host, request.priority, &demand));
        let Some(plan) = plans.min_by_key(|plan| (plan.cost, plan.host)) else {
            return Err(refusal);
        };
        let mut victims = Vec::new();
        for &victim in &plan.victims {
            let Some(placement) = self.placement(victim) else {
                continue;
            };
            if let Some(work) = self.take_out(victim) {
                let Running { id, priority, .. } = work;
                victims.push(Victim {
                    id,
                    priority,
                    placement,
                });
            }
        }
        let placement = self.reserve(request, demand, plan.host).ok_or(refusal)?;
        Ok(Preempted { placement, victims })
    }

    /// Who would have to go on a host; none if that would not help.
    fn plan(&self, host: HostIndex, priority: i32, demand: &Demand) -> Option<Plan> {
        let slot = self.slot(host)?;
        let mut lower: Vec<(WorkIndex, &Running)> = slot
            .works
            .iter()
            .filter_map(|&index| Some((index, self.works.get(index)?)))
            .collect();
        if demand.whole && lower.iter().any(|(_, work)| work.priority >= priority) {
            return None;
        }
        lower.retain(|(_, work)| work.priority < priority);
        // Most hosts would not have enough if all of these went: that is quickly said.
        let free = slot.ledger.free();
        let (cpu, memory) = lower
            .iter()
            .fold((free.cpu, free.memory), |sum, (_, work)| {
                let taken = work.grant.amounts();
                (sum.0 + taken.cpu, sum.1 + taken.memory)
            });
        if cpu < demand.cpu() || memory < demand.memory {
            return None;
        }
        // The least important first, and of these the largest: fewer have to go then.
        lower.sort_by_key(|(index, work)| (work.priority, Reverse(self.weight(work)), *index));
        let mut ledger = slot.ledger.clone();
        let mut going = 0;
        while ledger.lacks(demand).is_some() || (demand.whole && going < lower.len()) {
            let (_, work) = lower.get(going)?;
            ledger.give_back(&work.grant);
            going += 1;
        }
        lower.truncate(going);
        // Whoever can stay after all stays, the most important first.
        if !demand.whole {
            for i in (0..lower.len()).rev() {
                let grant = &lower[i].1.grant;
                ledger.take(grant);
                match ledger.lacks(demand) {
                    None => drop(lower.remove(i)),
                    Some(_) => ledger.give_back(grant),
                }
            }
        }
        let priorities = lower.iter().map(|(_, work)| work.priority);
        let cost = (
            priorities.clone().max().unwrap_or(i32::MIN),
            lower.len(),
            priorities.map(i64::from).sum(),
        );
        let victims = lower.into_iter().map(|(index, _)| index).collect();
        Some(Plan {
            host,
            victims,
            cost,
        })
    }

    /// What a workload takes, in billionths of the cluster.
    fn weight(&self, work: &Running) -> u64 {
        let part = |part: u64, whole: u64| {
            let part = u128::from(part) * 1_000_000_000;
            (part / u128::from(whole.max(1))) as u64
        };
        let total = self.total();
        part(work.demand.cpu(), total.cpu) + part(work.demand.memory, total.memory)
    }
}
