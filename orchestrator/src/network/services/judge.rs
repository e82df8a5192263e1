//! From what is declared and what this host has to what is to be in the kernel, and what is said of each object. No
//! I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use serde_json::Value;

use super::checks::{Answers, Asked, Wish};
use super::declared::{Declared, Known, Workload};
use super::plan::{At, Backend, Elastic, Front, Plan};
use super::pool::{Pool, PoolError};
use super::uplink::Ground;
use crate::model::{
    Condition, ElasticAddress, Endpoint, Object, Protocol, Published, Service, ServiceStatus,
};
use crate::network::Subnet;

/// Workloads behind one service.
const MOST: usize = 256;

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

/// Who has which ports of the host.
#[derive(Default)]
struct Ports(BTreeMap<(Protocol, u16), Vec<(Published, String)>>);

impl Ports {
    /// Takes a port for somebody; who has it, if it cannot be theirs.
    fn take(&mut self, wanted: &Published, whose: &str) -> Result<(), String> {
        let at = (wanted.protocol, wanted.host_port);
        let holders = self.0.entry(at).or_default();
        match holders.iter().find(|(held, _)| held.clashes(wanted)) {
            Some((_, holder)) => Err(holder.clone()),
            None => {
                holders.push((wanted.clone(), whose.to_owned()));
                Ok(())
            }
        }
    }
}

/// Who wants ports of the host, and which of them are theirs.
struct Claims {
    /// By key: the ports, and why some are not theirs.
    granted: BTreeMap<String, (Vec<Published>, Vec<String>)>,
}

fn ports_of(service: &Known<Service>) -> impl Iterator<Item = Published> {
    let spec = &service.rest.spec;
    let pairs = spec.publish.iter().zip(&spec.ports);
    pairs.map(|(host_port, port)| Published {
        host_port: *host_port,
        port: port.target(),
        protocol: port.protocol,
        host_address: None,
    })
}

fn is_said(conditions: &[Condition], kind: &str) -> bool {
    let found = conditions.iter().find(|c| c.kind == kind);
    found.is_some_and(|condition| condition.status == "True")
}

fn conditions_of(service: &Known<Service>) -> &[Condition] {
    let status = service.rest.status.as_ref();
    status.map_or(&[], |status| &status.conditions)
}

impl Claims {
    /// Ports go to who declared them first.
    fn settle(declared: &Declared, terms: &Terms, ground: &Ground) -> Claims {
        let mut all = Vec::new();
        for (key, known) in &declared.workloads {
            let workload = &known.rest;
            if workload.host == terms.host && !workload.publish.is_empty() {
                let has = workload.published.as_slice();
                let turn = known.turn(is_said(has, "Published"));
                all.push((turn, key, known.shown(), workload.publish.clone()));
            }
        }
        for (key, known) in &declared.services {
            if !known.rest.spec.publish.is_empty() && !known.is_going() {
                let turn = known.turn(is_said(conditions_of(known), "Published"));
                all.push((turn, key, known.shown(), ports_of(known).collect()));
            }
        }
        all.sort_by(|one, other| one.0.cmp(&other.0));
        let (mut ports, mut granted) = (Ports::default(), BTreeMap::new());
        for (_, key, whose, wanted) in all {
            let (mut theirs, mut refused) = (Vec::new(), Vec::new());
            for one in wanted {
                let port = format!("{}/{}", one.host_port, one.protocol);
                if let Some(address) = one.host_address
                    && ground.own(address).is_none()
                {
                    refused.push(format!("this host does not have the address {address}"));
                    continue;
                }
                match ports.take(&one, &whose) {
                    Ok(()) => theirs.push(one),
                    Err(holder) => refused.push(format!(
                        "the host's port {port} is published by {holder}: choose another, or delete that"
                    )),
                }
            }
            granted.insert(key.clone(), (theirs, refused));
        }
        Claims { granted }
    }

    fn of(&self, key: &str) -> &[Published] {
        self.granted.get(key).map_or(&[], |(theirs, _)| theirs)
    }

    /// What is said of them: nothing if none are wanted.
    fn condition(&self, key: &str, before: Vec<Condition>, generation: u64) -> Vec<Condition> {
        let mut conditions = before;
        match self.granted.get(key) {
            None => conditions.retain(|condition| condition.kind != "Published"),
            Some((_, refused)) => {
                let (good, reason) = match refused.is_empty() {
                    true => (true, "Published"),
                    false => (false, "NotPublished"),
                };
                let why = refused.join("; ");
                Condition::set(&mut conditions, "Published", good, reason, &why, generation);
            }
        }
        conditions
    }
}

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

/// All that is known, while it is judged.
struct Judge<'a> {
    declared: &'a Declared,
    ground: &'a Ground,
    terms: &'a Terms,
    answers: &'a Answers,
    /// Workloads' addresses by namespace and bridge, and the number of the set that they are in the plan.
    networks: BTreeMap<(&'a str, &'a str), (BTreeSet<Ipv4Addr>, Option<usize>)>,
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
                let (all, _): &mut (BTreeSet<Ipv4Addr>, _) = networks.entry(key).or_default();
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

    fn services(&mut self, claims: &Claims) {
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
                (*set, backends.collect())
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
    fn near(&mut self, namespace: &'a str, fit: &[&Behind]) -> Vec<(usize, Vec<Ipv4Addr>)> {
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
            let (users, number) = self.networks.get_mut(&(namespace, bridge))?;
            let number = *number.get_or_insert_with(|| {
                self.plan.users.push(users.clone());
                self.plan.users.len() - 1
            });
            Some((number, addresses))
        });
        near.collect()
    }

    fn elastic(&mut self) {
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
