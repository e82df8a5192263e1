//! The cluster: hosts, what runs on them, and the indices over both. Places are reserved and given back here.

use std::collections::{BTreeSet, HashMap};

use super::demand::{ClassIndex, Demand, Overcommit};
use super::gates::Gates;
use super::grid::{Cell, Grid};
use super::host::{Labels, Taint};
use super::hostset::{HostIndex, HostSet};
use super::index::Index;
use super::inventory::Shapes;
use super::ledger::{Amounts, Grant, Ledger, NodeGrant};
use super::mix::Mix;
use super::placement::{NodeShare, Placement};
use super::refusal::Refusal;
use super::request::{Malformed, Request};
use super::score::Weights;
use super::works::{Running, WorkIndex, Works};

/// Workloads of a cluster.
const WORKS: usize = 10_000_000;

/// How a host is chosen among those that will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packing {
    /// By the score of this module.
    #[default]
    Skerry,
    /// The first.
    FirstFit,
    /// The one with least left.
    BestFit,
    /// The one with most left.
    WorstFit,
}

/// How places are given.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// How far CPUs and memory are promised to more than one.
    pub overcommit: Overcommit,
    /// How a host is chosen.
    pub packing: Packing,
    /// So many hosts that will do are scored, those with little left first. It does not hold for requests
    /// with preferences: all hosts are scored for these.
    pub candidates: usize,
    /// What each term of the score counts.
    pub weights: Weights,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            overcommit: Overcommit::default(),
            packing: Packing::default(),
            candidates: 64,
            weights: Weights::default(),
        }
    }
}

/// Why a place is not taken over or given back.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlaceError {
    /// The request makes no sense.
    #[error("request {id} cannot be placed anywhere")]
    Malformed {
        /// Which.
        id: String,
        /// Why.
        source: Malformed,
    },
    /// It has a place.
    #[error("{0} has a place already: release it first")]
    Twice(String),
    /// It has none.
    #[error("{0} has no place: look at the list of what runs")]
    Unknown(String),
    /// There is no such host.
    #[error(
        "{id} is said to run on host {host}, which is not in the inventory: add the host first"
    )]
    NoHost {
        /// What.
        id: String,
        /// Where.
        host: String,
    },
    /// The host does not have that, or somebody else has it.
    #[error(
        "{id} is said to have more of host {host} than is free there: release what has it, or place {id} anew"
    )]
    Taken {
        /// What.
        id: String,
        /// Where.
        host: String,
    },
}

/// A host in the tables.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub name: String,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub ledger: Ledger,
    pub works: BTreeSet<WorkIndex>,
    /// The number of its shape, which says that two hosts are the same but for their names.
    pub shape: u64,
}

/// Hosts and what runs on them.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub(super) policy: Policy,
    pub(super) slots: Vec<Option<Slot>>,
    pub(super) unused: BTreeSet<u32>,
    pub(super) names: HashMap<String, HostIndex>,
    pub(super) classes: HashMap<String, ClassIndex>,
    pub(super) class_names: Vec<String>,
    pub(super) shapes: Shapes,
    pub(super) index: Index,
    pub(super) grid: Grid,
    pub(super) works: Works,
    pub(super) mix: Mix,
    /// All hosts.
    pub(super) present: HostSet,
    /// Where nothing new is placed.
    pub(super) cordoned: HostSet,
    /// Bare metal, by a request here or by somebody else.
    pub(super) claimed: HostSet,
    /// Of these, those by somebody else.
    pub(super) foreign: HostSet,
    /// Neither cordoned nor claimed.
    pub(super) open: HostSet,
    /// Where nothing runs.
    pub(super) idle: HostSet,
    /// What all hosts have together.
    pub(super) total: Amounts,
}

impl Cluster {
    /// One without hosts.
    pub fn new(policy: Policy) -> Self {
        Cluster {
            policy,
            slots: Vec::new(),
            unused: BTreeSet::new(),
            names: HashMap::new(),
            classes: HashMap::new(),
            class_names: Vec::new(),
            shapes: Shapes::default(),
            index: Index::default(),
            grid: Grid::new(),
            works: Works::default(),
            mix: Mix::default(),
            present: HostSet::default(),
            cordoned: HostSet::default(),
            claimed: HostSet::default(),
            foreign: HostSet::default(),
            open: HostSet::default(),
            idle: HostSet::default(),
            total: Amounts::default(),
        }
    }

    /// Finds a place and reserves it: all of it, or nothing.
    pub fn place(&mut self, request: &Request) -> Result<Placement, Refusal> {
        let demand = self.admit(request)?;
        let gates = Gates::of(self, request, false);
        match self.choose(&demand, &gates, 1).first() {
            Some(best) => {
                let best = best.host;
                self.reserve(request, demand, best)
                    .ok_or_else(|| self.refusal(request))
            }
            None => Err(self.refusal(request)),
        }
    }

    /// Places all of these or none. The first that is refused is answered.
    pub fn place_all(&mut self, requests: &[Request]) -> Result<Vec<Placement>, Refusal> {
        let mut placed = Vec::with_capacity(requests.len());
        for request in requests {
            match self.place(request) {
                Ok(placement) => placed.push(placement),
                Err(refusal) => {
                    for placement in placed.iter().rev() {
                        if let Some(work) = self.works.find(&placement.id) {
                            self.take_out(work);
                        }
                    }
                    return Err(refusal);
                }
            }
        }
        Ok(placed)
    }

    /// Takes over what runs already, with exactly what it has.
    pub fn adopt(&mut self, request: &Request, placement: &Placement) -> Result<(), PlaceError> {
        let id = || request.id.clone();
        request
            .check()
            .map_err(|source| PlaceError::Malformed { id: id(), source })?;
        if self.works.find(&request.id).is_some() {
            return Err(PlaceError::Twice(id()));
        }
        let host = || placement.host.clone();
        let Some(&at) = self.names.get(&placement.host) else {
            return Err(PlaceError::NoHost {
                id: id(),
                host: host(),
            });
        };
        let demand = self.demand(request);
        let grant = self.grant(placement);
        let allowed = self.slot(at).is_some_and(|slot| {
            let alone = !demand.whole || slot.works.is_empty();
            alone && !self.claimed.contains(at) && slot.ledger.allows(&grant)
        });
        if !allowed {
            return Err(PlaceError::Taken {
                id: id(),
                host: host(),
            });
        }
        self.put_in(Running::new(request, at, demand, grant));
        Ok(())
    }

    /// Gives a place back. What it was is answered.
    pub fn release(&mut self, id: &str) -> Result<Placement, PlaceError> {
        let unknown = || PlaceError::Unknown(id.to_owned());
        let work = self.works.find(id).ok_or_else(unknown)?;
        let placement = self.placement(work).ok_or_else(unknown)?;
        self.take_out(work);
        Ok(placement)
    }

    /// The place of a request, if it has one.
    pub fn find(&self, id: &str) -> Option<Placement> {
        self.placement(self.works.find(id)?)
    }

    /// The demand of a request that may be placed.
    pub(super) fn admit(&self, request: &Request) -> Result<Demand, Refusal> {
        let id = request.id.clone();
        if let Err(reason) = request.check() {
            return Err(Refusal::Malformed { id, source: reason });
        }
        if self.works.find(&request.id).is_some() {
            return Err(Refusal::Twice(id));
        }
        if self.works.len() >= WORKS {
            return Err(Refusal::Full { id, most: WORKS });
        }
        Ok(self.demand(request))
    }

    pub(super) fn demand(&self, request: &Request) -> Demand {
        Demand::of(request, &self.policy.overcommit, |name| {
            self.classes
                .get(name)
                .copied()
                .unwrap_or(ClassIndex::NOWHERE)
        })
    }

    /// Reserves a host that lacks nothing.
    pub(super) fn reserve(
        &mut self,
        request: &Request,
        demand: Demand,
        at: HostIndex,
    ) -> Option<Placement> {
        let ledger = &self.slot(at)?.ledger;
        let grant = ledger.grant(&demand);
        debug_assert!(ledger.allows(&grant));
        let work = self.put_in(Running::new(request, at, demand, grant));
        self.placement(work)
    }

    /// Enters a workload into all books.
    pub(super) fn put_in(&mut self, work: Running) -> WorkIndex {
        let at = work.host;
        if work.demand.whole {
            self.claimed.insert(at);
        }
        self.mix.add(&work.demand);
        let Self { slots, grid, .. } = self;
        let slot = slots[at.at()].as_mut();
        let index = match slot {
            Some(slot) => {
                let before = Cell::free(slot.ledger.free());
                slot.ledger.take(&work.grant);
                let after = Cell::free(slot.ledger.free());
                if before != after {
                    grid.remove(before, at);
                    grid.insert(after, at);
                }
                let index = self.works.insert(work);
                slot.works.insert(index);
                index
            }
            None => self.works.insert(work),
        };
        self.idle.remove(at);
        self.reopen(at);
        index
    }

    /// Strikes a workload from all books.
    pub(super) fn take_out(&mut self, index: WorkIndex) -> Option<Running> {
        let work = self.works.remove(index)?;
        let at = work.host;
        self.mix.remove(&work.demand);
        let Self { slots, grid, .. } = self;
        if let Some(slot) = slots[at.at()].as_mut() {
            let before = Cell::free(slot.ledger.free());
            slot.ledger.give_back(&work.grant);
            let after = Cell::free(slot.ledger.free());
            if before != after {
                grid.remove(before, at);
                grid.insert(after, at);
            }
            slot.works.remove(&index);
            self.idle.set(at, slot.works.is_empty());
        }
        if work.demand.whole && !self.foreign.contains(at) {
            self.claimed.remove(at);
        }
        self.reopen(at);
        Some(work)
    }

    pub(super) fn reopen(&mut self, at: HostIndex) {
        let open = !self.cordoned.contains(at) && !self.claimed.contains(at);
        self.open.set(at, open);
    }

    /// The host at this place.
    pub(super) fn slot(&self, at: HostIndex) -> Option<&Slot> {
        self.slots.get(at.at())?.as_ref()
    }

    /// Hosts that are neither cordoned nor claimed.
    pub(super) fn open(&self) -> &HostSet {
        &self.open
    }

    /// What all hosts have together.
    pub(super) fn total(&self) -> &Amounts {
        &self.total
    }

    /// How large a host is, as a share of the cluster.
    pub(super) fn size(&self, capacity: &Amounts) -> f64 {
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        share(capacity.cpu, self.total.cpu) + share(capacity.memory, self.total.memory)
    }

    pub(super) fn placement(&self, work: WorkIndex) -> Option<Placement> {
        let work = self.works.get(work)?;
        let class = |class: ClassIndex| self.class_names.get(class.0 as usize).cloned();
        let node = |given: &NodeGrant| NodeShare {
            node: given.node,
            cpus: given.cpus.clone(),
            memory: given.memory,
            huge_2m: given.huge_2m,
            huge_1g: given.huge_1g,
            devices: given
                .devices
                .iter()
                .filter_map(|&(c, count)| Some((class(c)?, count)))
                .collect(),
        };
        Some(Placement {
            id: work.id.clone(),
            host: self.slot(work.host)?.name.clone(),
            nodes: work.grant.nodes.iter().map(node).collect(),
            shared_cpu: work.grant.shared,
            disk: work.grant.disk,
        })
    }

    fn grant(&self, placement: &Placement) -> Grant {
        let class = |name: &String| self.classes.get(name).copied();
        let node = |share: &NodeShare| NodeGrant {
            node: share.node,
            cpus: share.cpus.clone(),
            memory: share.memory,
            huge_2m: share.huge_2m,
            huge_1g: share.huge_1g,
            devices: share
                .devices
                .iter()
                .map(|(name, count)| (class(name).unwrap_or(ClassIndex::NOWHERE), *count))
                .collect(),
        };
        Grant {
            nodes: placement.nodes.iter().map(node).collect(),
            shared: placement.shared_cpu,
            disk: placement.disk,
        }
    }
}
