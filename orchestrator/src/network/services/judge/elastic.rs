//! Elastic addresses: whose they are, and where.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::super::declared::{Known, is_said};
use super::super::plan::Elastic;
use super::{Judge, Word};
use crate::model::{Condition, ElasticAddress};

impl Judge<'_> {
    pub(super) fn elastic(&mut self) {
        let mut all: Vec<_> = self.declared.elastic.values().collect();
        let has = |known: &Known<ElasticAddress>| {
            let status = known.rest.status.as_ref();
            status.is_some_and(|status| is_said(&status.conditions, "Ready"))
        };
        all.sort_by_cached_key(|known| known.turn(has(known)));
        let mut holders: HashMap<Ipv4Addr, String> = HashMap::new();
        for known in all {
            if known.is_going() {
                continue;
            }
            let address = known.rest.spec.address;
            let other = holders.get(&address).cloned();
            let found = match other {
                Some(other) => Err(("Taken", format!("{address} is the address of {other}"))),
                None => {
                    holders.insert(address, known.shown());
                    self.elastic_at(known)
                }
            };
            let mut status = known.rest.status.clone().unwrap_or_default();
            status.observed_generation = known.meta.generation;
            let (good, reason, message) = match found {
                Ok(one) => {
                    status.interface.clone_from(&one.interface);
                    status.target = one.target;
                    let said = match one.target {
                        Some(_) => (true, "Attached", String::new()),
                        None => (false, "NotRunning", "its workload does not run".to_owned()),
                    };
                    if let Some(target) = one.target {
                        self.network(target);
                    }
                    self.plan.elastic.push(one);
                    said
                }
                Err((reason, message)) => {
                    status.interface.clear();
                    status.target = None;
                    (false, reason, message)
                }
            };
            Condition::set(
                &mut status.conditions,
                "Ready",
                good,
                reason,
                &message,
                known.meta.generation,
            );
            if known.rest.status.as_ref() != Some(&status) {
                let status = serde_json::to_value(status).unwrap_or_default();
                self.words.push(Word::Status(known.object(), status));
            }
        }
    }

    /// Where an elastic address is to be, or why it cannot be.
    fn elastic_at(&self, known: &Known<ElasticAddress>) -> Result<Elastic, (&'static str, String)> {
        let spec = &known.rest.spec;
        let address = spec.address;
        let allowed = &self.terms.elastic;
        if !allowed.is_empty() && !allowed.iter().any(|subnet| subnet.contains(address)) {
            let all: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            let what = format!(
                "{address} is none of this host's elastic addresses, {}: choose one of them, or give `skerry up` another --elastic",
                all.join(", ")
            );
            return Err(("NotAllowed", what));
        }
        if let Some(interface) = self.ground.own(address) {
            let what = format!("this host has {address} itself, on {interface}: choose another");
            return Err(("InUse", what));
        }
        if let Some((bridge, _)) = self.ground.bridge_of(address) {
            let what = format!(
                "{address} is an address of the network on {bridge}: choose one of the outside"
            );
            return Err(("InUse", what));
        }
        if self.terms.pool.contains(address) {
            let pool = self.terms.pool;
            let what = format!("{address} is an address for services, of {pool}: choose another");
            return Err(("InUse", what));
        }
        let interface = match (&spec.interface, &self.ground.uplink) {
            (Some(named), _) if !self.ground.interfaces.contains(named) => {
                let what = format!("this host has no interface `{named}`: name another, or none");
                return Err(("NoInterface", what));
            }
            (Some(named), _) => named.clone(),
            (None, Some(uplink)) => uplink.clone(),
            (None, None) => {
                let what =
                    "this host has no default route: say by `interface` where the address is to be";
                return Err(("NoInterface", what.to_owned()));
            }
        };
        let (kind, name) = (&spec.target.kind, &spec.target.name);
        let workload = self.declared.workload(kind, &known.meta.namespace, name);
        let Some(workload) = workload.filter(|one| one.rest.host == self.terms.host) else {
            let what =
                format!("there is no {kind} {name} on this host: declare it, or name another");
            return Err(("NoTarget", what));
        };
        if workload.rest.running && workload.rest.addresses.is_empty() {
            let what =
                format!("{kind} {name} has no address: give it `networks: [{{network: default}}]`");
            return Err(("NoTarget", what));
        }
        Ok(Elastic {
            whose: known.shown(),
            address,
            interface,
            target: workload.rest.address().filter(|_| workload.rest.running),
        })
    }
}
