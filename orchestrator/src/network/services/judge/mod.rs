//! From what is declared and what this host has to what is to be in the kernel, and what is said of each object. No
//! I/O.

mod claims;
mod elastic;
mod service;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use serde_json::Value;

use self::claims::Claims;
use super::checks::{Answers, Asked, Wish};
use super::declared::Declared;
use super::plan::{At, Backend, Front, Plan};
use super::uplink::Ground;
use crate::model::{Condition, Object};
use crate::network::Subnet;

/// What is fixed.
#[derive(Debug, Clone)]
pub struct Terms {
    /// This host.
    pub host: String,
    /// The subnet for services.
    pub pool: Subnet,
    /// Elastic addresses that may be taken; all if there is none.
    pub elastic: Vec<Subnet>,
}

/// Something to be said of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// Its status.
    Status(Object, Value),
    /// Whether a workload's ports are published; none if it wants none any more.
    Published(Object, Option<Condition>),
}

/// What follows from all that is known.
#[derive(Debug)]
pub struct Judgement {
    /// What is to be in the kernel.
    pub plan: Plan,
    /// What is to be said that is not said yet.
    pub words: Vec<Word>,
    /// Who is to be asked.
    pub wishes: HashMap<Asked, Wish>,
    /// Services' addresses by namespace and name.
    pub names: HashMap<(String, String), Ipv4Addr>,
}

/// All that is known, while it is judged.
struct Judge<'a> {
    declared: &'a Declared,
    ground: &'a Ground,
    terms: &'a Terms,
    answers: &'a Answers,
    /// Workloads' addresses by namespace and bridge.
    networks: BTreeMap<(&'a str, &'a str), BTreeSet<Ipv4Addr>>,
    plan: Plan,
    words: Vec<Word>,
    wishes: HashMap<Asked, Wish>,
    names: HashMap<(String, String), Ipv4Addr>,
}

/// Judges.
pub fn judge(declared: &Declared, ground: &Ground, terms: &Terms, answers: &Answers) -> Judgement {
    let mut networks = BTreeMap::new();
    for known in declared.workloads.values() {
        for address in &known.rest.addresses {
            if let Some((bridge, _)) = ground.bridge_of(*address) {
                let key = (known.meta.namespace.as_str(), bridge);
                let all: &mut BTreeSet<_> = networks.entry(key).or_default();
                all.insert(*address);
            }
        }
    }
    let mut judge = Judge {
        declared,
        ground,
        terms,
        answers,
        networks,
        plan: Plan::new(terms.pool),
        words: Vec::new(),
        wishes: HashMap::new(),
        names: HashMap::new(),
    };
    let claims = Claims::settle(declared, terms, ground);
    judge.workloads(&claims);
    judge.services(&claims);
    judge.elastic();
    Judgement {
        plan: judge.plan,
        words: judge.words,
        wishes: judge.wishes,
        names: judge.names,
    }
}

impl<'a> Judge<'a> {
    /// Whoever is behind a port may be asked by neighbours.
    fn network(&mut self, address: Ipv4Addr) {
        if let Some((_, range)) = self.ground.bridge_of(address) {
            self.plan.networks.insert(range);
        }
    }

    fn workloads(&mut self, claims: &Claims) {
        for (key, known) in &self.declared.workloads {
            let workload = &known.rest;
            let before: Vec<_> = workload.published.iter().cloned().collect();
            let after = claims.condition(key, before.clone(), known.meta.generation);
            // A workload without a place has no status yet.
            if before != after && !workload.host.is_empty() {
                let word = Word::Published(known.object(), after.into_iter().next());
                self.words.push(word);
            }
            let address = workload.address().filter(|_| workload.running);
            for port in claims.of(key) {
                let backends: Vec<Backend> = address
                    .iter()
                    .map(|address| (*address, port.port))
                    .collect();
                self.plan.fronts.push(Front {
                    whose: known.shown(),
                    at: At::Host(port.host_address),
                    protocol: port.protocol,
                    port: port.host_port,
                    backends,
                    leaving: Vec::new(),
                    near: Vec::new(),
                });
                if let Some(address) = address {
                    self.network(address);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "judge_test.rs"]
mod tests;
