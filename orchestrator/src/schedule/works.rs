//! What runs: by name, by label, and whom it keeps away.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::demand::Demand;
use super::host::Labels;
use super::hostset::HostIndex;
use super::ledger::Grant;
use super::request::{Request, Tier, Topology};
use super::select::Selector;

/// A workload's place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WorkIndex(u32);

/// A workload that has a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Running {
    pub id: String,
    pub host: HostIndex,
    pub tier: Tier,
    pub priority: i32,
    pub labels: Labels,
    pub demand: Demand,
    pub grant: Grant,
    /// Whom it keeps away from its place.
    guards: Vec<Guard>,
}

/// Workloads that are kept away, and from what.
type Guard = (Selector, Topology);
/// On which hosts somebody wants a guard, and how many do.
type Guarded = BTreeMap<Guard, BTreeMap<HostIndex, u32>>;
/// A label and its value.
type Pair = (String, String);

/// All workloads that have a place.
#[derive(Debug, Clone, Default)]
pub(super) struct Works {
    table: Vec<Option<Running>>,
    unused: BTreeSet<u32>,
    by_id: HashMap<String, WorkIndex>,
    by_label: HashMap<Pair, BTreeSet<WorkIndex>>,
    /// By a label that all have whom they keep away, if there is one.
    guards: HashMap<Option<Pair>, Guarded>,
}

impl Running {
    /// A request that has a place.
    pub fn new(request: &Request, host: HostIndex, demand: Demand, grant: Grant) -> Self {
        let apart = request.near.iter().filter(|near| near.apart);
        let guards: BTreeSet<Guard> = apart
            .map(|near| (near.workloads.clone(), near.within.clone()))
            .collect();
        Running {
            id: request.id.clone(),
            host,
            tier: request.tier,
            priority: request.priority,
            labels: request.labels.clone(),
            demand,
            grant,
            guards: guards.into_iter().collect(),
        }
    }
}

impl Works {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The one of this name.
    pub fn find(&self, id: &str) -> Option<WorkIndex> {
        self.by_id.get(id).copied()
    }

    /// The one at this place.
    pub fn get(&self, index: WorkIndex) -> Option<&Running> {
        self.table.get(index.0 as usize)?.as_ref()
    }

    /// Adds one whose name is not there.
    pub fn insert(&mut self, work: Running) -> WorkIndex {
        let index = match self.unused.pop_first() {
            Some(index) => WorkIndex(index),
            None => {
                self.table.push(None);
                WorkIndex(self.table.len() as u32 - 1)
            }
        };
        self.by_id.insert(work.id.clone(), index);
        for pair in pairs(&work.labels) {
            self.by_label.entry(pair).or_default().insert(index);
        }
        for guard in &work.guards {
            let guarded = self.guards.entry(anchor(&guard.0)).or_default();
            let hosts = guarded.entry(guard.clone()).or_default();
            *hosts.entry(work.host).or_default() += 1;
        }
        self.table[index.0 as usize] = Some(work);
        index
    }

    /// Takes one out.
    pub fn remove(&mut self, index: WorkIndex) -> Option<Running> {
        let work = self.table.get_mut(index.0 as usize)?.take()?;
        self.unused.insert(index.0);
        self.by_id.remove(&work.id);
        for pair in pairs(&work.labels) {
            if let Some(those) = self.by_label.get_mut(&pair) {
                those.remove(&index);
                if those.is_empty() {
                    self.by_label.remove(&pair);
                }
            }
        }
        for guard in &work.guards {
            self.unguard(guard, work.host);
        }
        Some(work)
    }

    fn unguard(&mut self, guard: &Guard, host: HostIndex) {
        let anchor = anchor(&guard.0);
        let Some(guarded) = self.guards.get_mut(&anchor) else {
            return;
        };
        if let Some(hosts) = guarded.get_mut(guard) {
            if let Some(count) = hosts.get_mut(&host) {
                *count -= 1;
                if *count == 0 {
                    hosts.remove(&host);
                }
            }
            if hosts.is_empty() {
                guarded.remove(guard);
            }
        }
        if guarded.is_empty() {
            self.guards.remove(&anchor);
        }
    }

    /// All that a selector matches.
    pub fn matching<'a>(
        &'a self,
        selector: &'a Selector,
    ) -> Box<dyn Iterator<Item = &'a Running> + 'a> {
        match anchor(selector) {
            Some(pair) => {
                let those = self.by_label.get(&pair).into_iter().flatten();
                let works = those.filter_map(|&index| self.get(index));
                Box::new(works.filter(|work| selector.matches(&work.labels)))
            }
            None => {
                let works = self.table.iter().flatten();
                Box::new(works.filter(|work| selector.matches(&work.labels)))
            }
        }
    }

    /// Where somebody keeps workloads with these labels away: the hosts, and what counts as one place.
    pub fn guards_against<'a>(
        &'a self,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a Topology, impl Iterator<Item = HostIndex>)> {
        let keys = pairs(labels).map(Some).chain([None]);
        let guarded = keys.filter_map(|key| self.guards.get(&key)).flatten();
        guarded
            .filter(|((selector, _), _)| selector.matches(labels))
            .map(|((_, within), hosts)| (within, hosts.keys().copied()))
    }

    /// Whether nobody keeps anybody away.
    pub fn unguarded(&self) -> bool {
        self.guards.is_empty()
    }
}

fn pairs(labels: &Labels) -> impl Iterator<Item = Pair> {
    labels
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
}

fn anchor(selector: &Selector) -> Option<Pair> {
    let (key, value) = selector.anchor()?;
    Some((key.to_owned(), value.to_owned()))
}
