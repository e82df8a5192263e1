//! Hosts come into the cluster's tables, change there, and go.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::{Cluster, Slot};
use super::demand::ClassIndex;
use super::grid::Cell;
use super::host::{Host, InventoryError, Labels, NumaNode, Taint};
use super::hostset::HostIndex;
use super::ledger::Ledger;

/// Hosts of a cluster.
const HOSTS: usize = 100_000;
/// Classes of devices of a cluster.
const CLASSES: usize = 10_000;

impl Cluster {
    /// Adds a host on which nothing runs. Of hosts that are equally good, the earlier in the table is taken:
    /// hosts stand there in the order in which they are added, but that a new one takes the place of one
    /// that was taken out.
    pub fn add_host(&mut self, host: &Host) -> Result<(), InventoryError> {
        host.check()?;
        if self.names.contains_key(&host.name) {
            return Err(InventoryError::Twice(host.name.clone()));
        }
        if self.names.len() >= HOSTS {
            let (host, most) = (host.name.clone(), HOSTS);
            return Err(InventoryError::Hosts { host, most });
        }
        let classes = host.nodes.iter().flat_map(|node| node.devices.keys());
        let new = classes
            .filter(|class| !self.classes.contains_key(*class))
            .count();
        if self.class_names.len() + new > CLASSES {
            return Err(InventoryError::Classes {
                host: host.name.clone(),
                most: CLASSES,
            });
        }
        let (classes, names) = (&mut self.classes, &mut self.class_names);
        let ledger = Ledger::new(&host.nodes, host.disk, |name| {
            *classes.entry(name.to_owned()).or_insert_with(|| {
                names.push(name.to_owned());
                ClassIndex(names.len() as u32 - 1)
            })
        });
        let shape = self.shapes.insert(&host.nodes, host.disk);
        let at = match self.unused.pop_first() {
            Some(at) => HostIndex(at),
            None => {
                self.slots.push(None);
                HostIndex(self.slots.len() as u32 - 1)
            }
        };
        self.names.insert(host.name.clone(), at);
        self.index.insert(at, &host.labels, &host.taints);
        self.grid.insert(Cell::free(ledger.free()), at);
        self.total.add(ledger.capacity());
        self.present.insert(at);
        self.idle.insert(at);
        self.cordoned.set(at, host.cordoned);
        self.foreign.set(at, host.claimed);
        self.claimed.set(at, host.claimed);
        self.open.set(at, !host.cordoned && !host.claimed);
        self.slots[at.at()] = Some(Slot {
            name: host.name.clone(),
            labels: host.labels.clone(),
            taints: host.taints.clone(),
            ledger,
            works: BTreeSet::new(),
            shape,
        });
        Ok(())
    }

    /// Takes a host out. What ran there has no place any more; their names are answered.
    pub fn remove_host(&mut self, name: &str) -> Result<Vec<String>, InventoryError> {
        let at = self.host(name)?;
        let works = self.slot(at).map(|slot| slot.works.clone());
        let mut homeless = Vec::new();
        for work in works.unwrap_or_default() {
            homeless.extend(self.take_out(work).map(|work| work.id));
        }
        if let Some(slot) = self.slots[at.at()].take() {
            self.grid.remove(Cell::free(slot.ledger.free()), at);
            self.index.remove(at, &slot.labels, &slot.taints);
            self.total.subtract(slot.ledger.capacity());
            self.shapes.remove(slot.shape);
        }
        for set in [
            &mut self.present,
            &mut self.idle,
            &mut self.cordoned,
            &mut self.foreign,
            &mut self.claimed,
            &mut self.open,
        ] {
            set.remove(at);
        }
        self.names.remove(name);
        self.unused.insert(at.0);
        homeless.sort();
        Ok(homeless)
    }

    /// Says whether anything new may be placed on a host. What runs there goes on.
    pub fn cordon(&mut self, name: &str, cordoned: bool) -> Result<(), InventoryError> {
        let at = self.host(name)?;
        self.cordoned.set(at, cordoned);
        self.reopen(at);
        Ok(())
    }

    /// Changes a host's labels and taints. What runs there stays, whatever they say.
    pub fn relabel(
        &mut self,
        name: &str,
        labels: Labels,
        taints: Vec<Taint>,
    ) -> Result<(), InventoryError> {
        let at = self.host(name)?;
        let host = Host {
            name: name.to_owned(),
            labels,
            taints,
            nodes: vec![NumaNode::default()],
            ..Host::default()
        };
        host.check()?;
        if let Some(slot) = self.slots[at.at()].as_mut() {
            self.index.remove(at, &slot.labels, &slot.taints);
            self.index.insert(at, &host.labels, &host.taints);
            slot.labels = host.labels;
            slot.taints = host.taints;
        }
        Ok(())
    }

    /// Where a host is in the tables.
    pub(super) fn host(&self, name: &str) -> Result<HostIndex, InventoryError> {
        let found = self.names.get(name).copied();
        found.ok_or_else(|| InventoryError::Unknown(name.to_owned()))
    }
}

/// The shapes of the hosts that there are, each with its number and how many hosts have it.
#[derive(Debug, Clone, Default)]
pub(super) struct Shapes {
    known: BTreeMap<(Vec<NumaNode>, u64), (u64, usize)>,
    next: u64,
}

impl Shapes {
    /// The number of a shape; one more host has it. CPUs of other numbers make another shape, which is no
    /// harm.
    fn insert(&mut self, nodes: &[NumaNode], disk: u64) -> u64 {
        let next = self.next;
        let (number, hosts) = self
            .known
            .entry((nodes.to_vec(), disk))
            .or_insert((next, 0));
        *hosts += 1;
        self.next += u64::from(*number == next);
        *number
    }

    /// One host less has this shape.
    fn remove(&mut self, shape: u64) {
        self.known.retain(|_, (number, hosts)| {
            *hosts -= usize::from(*number == shape);
            *hosts > 0
        });
    }
}
