//! What is in the kernel, as far as this agent has put it there.

use std::collections::BTreeSet;
use std::io;
use std::time::Instant;

use super::conntrack::Cut;
use super::plan::Plan;
use super::table::Table;
use super::uplink::{self, Ground};
use super::{generation, rules};
use crate::network::NetworkError;
use crate::network::error::system;

/// What is in the kernel.
pub struct Kernel {
    /// What was put there last.
    last: Option<Last>,
    /// Ports by which workloads reach themselves.
    reflecting: BTreeSet<u32>,
}

/// What was put there last.
struct Last {
    plan: Plan,
    table: Table,
    /// The kernel's count of changes when it was looked at last; none if somebody else changed something since.
    changes: Option<u32>,
}

impl Last {
    /// Whether it is still there: if somebody has changed rules, ours are counted.
    fn is_there(&mut self) -> Result<bool, NetworkError> {
        if self.plan.is_empty() {
            return Ok(true);
        }
        let changes = changes()?;
        if self.changes != Some(changes) {
            if !has_all(&self.table)? {
                return Ok(false);
            }
            self.changes = Some(changes);
        }
        Ok(true)
    }
}

fn changes() -> Result<u32, NetworkError> {
    generation::now().map_err(system("ask nf_tables how often rules were changed"))
}

/// Whether there is as much as there is to be.
fn has_all(table: &Table) -> Result<bool, NetworkError> {
    let count = || -> io::Result<bool> {
        if generation::rules(rules::TABLE)? != table.rules() {
            return Ok(false);
        }
        for (set, wanted) in table.counts() {
            if generation::elements(rules::TABLE, set)? != wanted {
                return Ok(false);
            }
        }
        Ok(true)
    };
    count().map_err(system("count rules of nf_tables"))
}

impl Kernel {
    /// Nothing is known of it.
    pub fn new() -> Kernel {
        Kernel {
            last: None,
            reflecting: BTreeSet::new(),
        }
    }

    /// Lets those behind ports reach themselves, where a bridge would not let them.
    fn reflect(&mut self, plan: &Plan, ground: &Ground) {
        let mut wanted = BTreeSet::new();
        if !plan.is_empty() && uplink::bridges_are_seen() {
            let served = plan.served();
            let ports = ground.ports.iter();
            let ports = ports.filter(|(_, address)| served.contains(address));
            wanted.extend(ports.map(|(port, _)| *port));
        }
        for port in self.reflecting.symmetric_difference(&wanted) {
            // All others are served without it.
            if let Err(e) = uplink::reflect(*port, wanted.contains(port)) {
                log::warn!("a workload does not reach itself by a service: {e}");
            }
        }
        self.reflecting = wanted;
    }

    /// Puts a plan there, unless it is: where somebody has deleted rules since, it is put there once more.
    ///
    /// # Errors
    /// If the kernel refuses: it is tried again with the next.
    pub fn set(&mut self, plan: Plan, ground: &Ground) -> Result<(), NetworkError> {
        let held = plan.elastic.iter();
        let held: Vec<_> = held
            .map(|one| (one.interface.clone(), one.address))
            .collect();
        let elastic = || held.iter().map(|(on, address)| (on.as_str(), *address));
        if self.last.is_none() && plan.is_empty() {
            // Where nothing is declared, this may be a host whose kernel has no nf_tables.
            if let Err(e) = rules::remove() {
                log::debug!("rules of ports and services cannot be removed: {e}");
                return uplink::set(elastic(), ground);
            }
        }
        self.reflect(&plan, ground);
        let there = match &mut self.last {
            Some(last) => last.is_there()?,
            None => false,
        };
        if there && self.last.as_ref().is_some_and(|last| last.plan == plan) {
            return uplink::set(elastic(), ground);
        }
        let begun = Instant::now();
        let table = rules::table(&plan);
        let before = changes()?;
        let counted = match &self.last {
            _ if plan.is_empty() => rules::remove().map(|()| 1)?,
            Some(last) if there && !last.plan.is_empty() => rules::set(&table, Some(&last.table))?,
            _ => rules::set(&table, None)?,
        };
        // What somebody else has changed meanwhile is looked for with the next.
        let changes = Some(changes()?).filter(|after| *after == before.wrapping_add(counted));
        let last = Last {
            plan,
            table,
            changes,
        };
        let gone = self.last.replace(last).map(|last| last.plan);
        uplink::set(elastic(), ground)?;
        let applied = begun.elapsed();
        let cut = match (gone, &self.last) {
            (Some(gone), Some(Last { plan, .. })) if gone != *plan => {
                let (ties, datagrams) = (plan.ties(), plan.datagrams());
                let (old, heard) = (gone.ties(), gone.datagrams());
                Cut::of(old.difference(&ties), datagrams.difference(&heard)).make()?
            }
            _ => 0,
        };
        log::debug!("ports and services are set in {applied:?}; {cut} connections are cut off");
        Ok(())
    }
}
