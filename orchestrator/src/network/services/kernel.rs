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
    /// What was put there last, and the number of the kernel's rules then.
    last: Option<(Plan, u32)>,
    /// Ports by which workloads reach themselves.
    reflecting: BTreeSet<u32>,
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

    /// Puts a plan there, unless it is: where somebody else has changed rules since, it is put there once more.
    ///
    /// # Errors
    /// If the kernel refuses: it is tried again with the next.
    pub fn set(&mut self, plan: Plan, ground: &Ground) -> Result<(), NetworkError> {
        let number = || generation::now().map_err(system("ask nf_tables for its generation"));
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
        let same = match &self.last {
            Some((last, at)) => *last == plan && (plan.is_empty() || number()? == *at),
            None => false,
        };
        if same {
            return uplink::set(held, ground);
        }
        let begun = Instant::now();
        rules::set(&plan)?;
        uplink::set(held, ground)?;
        let before = self.last.take().map(|(before, _)| before);
        let cut = before.filter(|before| *before != plan).map(|before| {
            let (ties, datagrams) = (plan.ties(), plan.datagrams());
            let (old, heard) = (before.ties(), before.datagrams());
            Cut::of(old.difference(&ties), datagrams.difference(&heard))
        });
        self.last = Some((plan, number()?));
        let applied = begun.elapsed();
        let cut = cut.map_or(Ok(0), |cut| cut.make())?;
        log::debug!("ports and services are set in {applied:?}; {cut} connections are cut off");
        Ok(())
    }
}
