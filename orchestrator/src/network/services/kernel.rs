//! What is in the kernel, as far as this agent has put it there.

use std::collections::BTreeSet;
use std::time::Instant;

use super::conntrack::Cut;
use super::plan::Plan;
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
    /// How many rules that is.
    rules: usize,
    /// The kernel's count of changes when it was looked at last.
    changes: u32,
}

impl Last {
    /// Whether it is still there: if somebody has changed rules, ours are counted.
    fn is_there(&mut self) -> Result<bool, NetworkError> {
        if self.plan.is_empty() {
            return Ok(true);
        }
        let changes = changes()?;
        if changes != self.changes {
            if rules()? != self.rules {
                return Ok(false);
            }
            self.changes = changes;
        }
        Ok(true)
    }
}

fn changes() -> Result<u32, NetworkError> {
    generation::now().map_err(system("ask nf_tables how often rules were changed"))
}

fn rules() -> Result<usize, NetworkError> {
    generation::rules(rules::TABLE).map_err(system("count rules of nf_tables"))
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
        let held = held.map(|one| (one.interface.as_str(), one.address));
        if self.last.is_none() && plan.is_empty() {
            // Where nothing is declared, this may be a host whose kernel has no nf_tables.
            if let Err(e) = rules::remove() {
                log::debug!("rules of ports and services cannot be removed: {e}");
                return uplink::set(held, ground);
            }
        }
        self.reflect(&plan, ground);
        let same = match &mut self.last {
            Some(last) if last.plan == plan => last.is_there()?,
            _ => false,
        };
        if same {
            return uplink::set(held, ground);
        }
        let begun = Instant::now();
        rules::set(&plan)?;
        uplink::set(held, ground)?;
        let before = self.last.take().map(|last| last.plan);
        let cut = before.filter(|before| *before != plan).map(|before| {
            let (ties, datagrams) = (plan.ties(), plan.datagrams());
            let (old, heard) = (before.ties(), before.datagrams());
            Cut::of(old.difference(&ties), datagrams.difference(&heard))
        });
        let applied = begun.elapsed();
        self.last = Some(Last {
            plan,
            // In this order: what is changed meanwhile is seen later.
            changes: changes()?,
            rules: rules()?,
        });
        let cut = cut.map_or(Ok(0), |cut| cut.make())?;
        log::debug!("ports and services are set in {applied:?}; {cut} connections are cut off");
        Ok(())
    }
}
