//! Services: their addresses, and who is behind them.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::super::checks::{Asked, Wish};
use super::super::declared::{Declared, Known, Workload};
use super::super::plan::{At, Backend, Front};
use super::super::pool::{Pool, PoolError};
use super::claims::Claims;
use super::{Judge, Terms, Word};
use crate::model::{Condition, Endpoint, Published, Service, ServiceStatus};

/// Workloads behind one service.
const MOST: usize = 256;
/// Questions that a host asks.
const QUESTIONS: usize = 4096;

/// Services' addresses, or why they have none.
fn addresses<'a>(
    declared: &'a Declared,
    terms: &Terms,
) -> HashMap<&'a str, Result<Ipv4Addr, PoolError>> {
    let mut pool = Pool::new(terms.pool);
    let mut all: Vec<_> = declared.services.iter().collect();
    all.sort_by_cached_key(|(_, known)| known.turn(false));
    let had = |known: &Known<Service>| known.rest.status.as_ref().and_then(|s| s.address);
    let mut given = HashMap::new();
    // Those who have one keep it, then come those who ask for one, then all others.
    for (key, known) in &all {
        let asked = known.rest.spec.address;
        if let Some(address) = had(known).filter(|had| asked.is_none_or(|asked| asked == *had))
            && let Ok(address) = pool.take(address, &known.shown())
        {
            given.insert(key.as_str(), Ok(address));
        }
    }
    for (key, known) in &all {
        if let (Some(asked), false) = (known.rest.spec.address, given.contains_key(key.as_str())) {
            given.insert(key.as_str(), pool.take(asked, &known.shown()));
        }
    }
    for (key, known) in &all {
        if !given.contains_key(key.as_str()) {
            let address = pool.choose(&known.meta.uid, &known.shown());
            given.insert(key.as_str(), address);
        }
    }
    given
}

/// How one behind a service is.
enum Fitness {
    /// It can serve.
    Fit,
    /// It serves those who asked before, alone.
    Leaves(String),
    /// It serves nobody.
    Dead(String),
}

/// One behind a service.
struct Behind<'a> {
    workload: &'a Known<Workload>,
    address: Ipv4Addr,
    fitness: Fitness,
}

impl<'a> Judge<'a> {
    pub(super) fn services(&mut self, claims: &Claims) {
        let addresses = addresses(self.declared, self.terms);
        for (key, known) in &self.declared.services {
            let address = addresses.get(key.as_str()).cloned();
            let behind = self.behind(known);
            let too_many = behind.len() > MOST;
            let behind: Vec<_> = behind.into_iter().take(MOST).collect();
            let address = match address {
                Some(Ok(address)) => Ok(address),
                Some(Err(why)) => Err(why.to_string()),
                None => Err("it has no address".to_owned()),
            };
            if let Ok(address) = address {
                let meta = &known.meta;
                let name = (meta.namespace.clone(), meta.name.clone());
                self.names.insert(name, address);
            }
            self.fronts(
                known,
                address.as_ref().ok().copied(),
                &behind,
                claims.of(key),
            );
            let mut status = status_of(known, &address, &behind, too_many);
            let generation = known.meta.generation;
            status.conditions = claims.condition(key, status.conditions, generation);
            if known.rest.status.as_ref() != Some(&status) {
                let status = serde_json::to_value(status).unwrap_or_default();
                self.words.push(Word::Status(known.object(), status));
            }
        }
    }

    /// Those whom a service's selector names, and who have an address on this host.
    fn behind(&mut self, service: &Known<Service>) -> Vec<Behind<'a>> {
        let spec = &service.rest.spec;
        let mut behind = Vec::new();
        for workload in self.declared.workloads.values() {
            let labels = &workload.meta.labels;
            let selected = workload.meta.namespace == service.meta.namespace
                && workload.rest.host == self.terms.host
                && !spec.selector.is_empty()
                && spec
                    .selector
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value));
            let Some(address) = workload.rest.address().filter(|_| selected) else {
                continue;
            };
            let fitness = self.fitness(service, workload, address);
            behind.push(Behind {
                workload,
                address,
                fitness,
            });
        }
        behind
    }

    fn fitness(
        &mut self,
        service: &Known<Service>,
        workload: &Known<Workload>,
        address: Ipv4Addr,
    ) -> Fitness {
        let rest = &workload.rest;
        if !rest.running {
            return Fitness::Dead(rest.why.clone());
        }
        if workload.is_going() {
            return Fitness::Leaves("it is being deleted".to_owned());
        }
        if !rest.ready {
            return Fitness::Leaves(rest.why.clone());
        }
        let Some(check) = &service.rest.spec.health_check else {
            return Fitness::Fit;
        };
        if self.wishes.len() >= QUESTIONS {
            let why = format!(
                "this host asks {QUESTIONS} already: take the health check of a service away"
            );
            return Fitness::Dead(why);
        }
        let asked = Asked {
            service: service.meta.uid.clone(),
            workload: workload.meta.uid.clone(),
            address,
        };
        // What was known before this agent began goes on.
        let name = short(workload);
        let status = service.rest.status.as_ref();
        let mut before = status.into_iter().flat_map(|status| &status.endpoints);
        let known = before.find(|one| one.name == name && one.address == address);
        let well = known.is_some_and(|one| one.healthy);
        let wish = Wish {
            check: check.clone(),
            well,
        };
        let fitness = match self.answers.get(&asked) {
            Some(None) => Fitness::Fit,
            Some(Some(why)) => Fitness::Dead(why.clone()),
            None if well => Fitness::Fit,
            None => Fitness::Dead("it was not asked yet".to_owned()),
        };
        self.wishes.insert(asked, wish);
        fitness
    }

    fn fronts(
        &mut self,
        service: &'a Known<Service>,
        address: Option<Ipv4Addr>,
        behind: &[Behind<'a>],
        published: &[Published],
    ) {
        let fit: Vec<_> = behind
            .iter()
            .filter(|one| matches!(one.fitness, Fitness::Fit))
            .collect();
        let leaving: Vec<_> = behind
            .iter()
            .filter(|one| matches!(one.fitness, Fitness::Leaves(_)))
            .collect();
        let on = |all: &[&Behind], port: u16| -> Vec<Backend> {
            all.iter().map(|one| (one.address, port)).collect()
        };
        for one in &fit {
            self.network(one.address);
        }
        let near = self.near(&service.meta.namespace, &fit);
        let whose = service.shown();
        for port in &service.rest.spec.ports {
            let target = port.target();
            let Some(address) = address else { continue };
            let near = near.iter().map(|(set, all)| {
                let backends = all.iter().map(|address| (*address, target));
                (set.clone(), backends.collect())
            });
            self.plan.fronts.push(Front {
                whose: whose.clone(),
                at: At::Virtual(address),
                protocol: port.protocol,
                port: port.port,
                backends: on(&fit, target),
                leaving: on(&leaving, target),
                near: near.collect(),
            });
        }
        for port in published {
            self.plan.fronts.push(Front {
                whose: whose.clone(),
                at: At::Host(None),
                protocol: port.protocol,
                port: port.host_port,
                backends: on(&fit, port.port),
                leaving: on(&leaving, port.port),
                near: Vec::new(),
            });
        }
    }

    /// Those who can serve, network by network, with the set of those whom they may serve: the tenant's own.
    fn near(&mut self, namespace: &'a str, fit: &[&Behind]) -> Vec<(String, Vec<Ipv4Addr>)> {
        let mut near: BTreeMap<&str, Vec<Ipv4Addr>> = BTreeMap::new();
        for one in fit {
            for address in &one.workload.rest.addresses {
                if let Some((bridge, range)) = self.ground.bridge_of(*address) {
                    near.entry(bridge).or_default().push(*address);
                    self.plan.networks.insert(range);
                }
            }
        }
        let near = near.into_iter().filter_map(|(bridge, addresses)| {
            let users = self.networks.get(&(namespace, bridge))?;
            let name = format!("{namespace}/{bridge}");
            let sets = &mut self.plan.users;
            sets.entry(name.clone()).or_insert_with(|| users.clone());
            Some((name, addresses))
        });
        near.collect()
    }
}

/// What a workload is called in a list of endpoints.
fn short(workload: &Known<Workload>) -> String {
    format!("{}/{}", workload.kind.singular, workload.meta.name)
}

fn status_of(
    service: &Known<Service>,
    address: &Result<Ipv4Addr, String>,
    behind: &[Behind],
    too_many: bool,
) -> ServiceStatus {
    let mut status = service.rest.status.clone().unwrap_or_default();
    let generation = service.meta.generation;
    status.observed_generation = generation;
    status.address = address.as_ref().ok().copied();
    let endpoints = behind.iter().map(|one| {
        let (healthy, why) = match &one.fitness {
            Fitness::Fit => (true, String::new()),
            Fitness::Leaves(why) | Fitness::Dead(why) => (false, why.clone()),
        };
        Endpoint {
            name: short(one.workload),
            address: one.address,
            healthy,
            why,
        }
    });
    status.endpoints = endpoints.collect();
    let healthy = status.endpoints.iter().filter(|one| one.healthy).count();
    // There are 256 at most.
    status.healthy = u32::try_from(healthy).unwrap_or(0);
    let more = format!("only {MOST} workloads can be behind it: the others are left out");
    let (good, reason, message) = match (address, healthy, behind.is_empty()) {
        (Err(why), _, _) => (false, "NoAddress", why.clone()),
        (Ok(_), 0, true) => (
            false,
            "NoEndpoints",
            "no workload with an address has the labels of its selector".to_owned(),
        ),
        (Ok(_), 0, false) => (
            false,
            "NoEndpoints",
            "none of its endpoints can serve: `status.endpoints` says why".to_owned(),
        ),
        (Ok(_), _, _) if too_many => (true, "Serving", more),
        (Ok(_), _, _) => (true, "Serving", String::new()),
    };
    Condition::set(
        &mut status.conditions,
        "Ready",
        good,
        reason,
        &message,
        generation,
    );
    status
}
