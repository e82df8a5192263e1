//! Long histories of arrivals, departures and changed hosts, by chance from a seed, beside a model that
//! knows no index: it goes through all placements whenever it is asked.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::testing::*;
use super::*;

/// Numbers by chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        // Xorshift, which a state of 0 would stop.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn word(&mut self) -> &'static str {
        ["x", "y", "z"][self.below(3) as usize]
    }

    fn topology(&mut self) -> Topology {
        match self.one_in(2) {
            true => Topology::Host,
            false => Topology::Label("site".into()),
        }
    }

    fn host(&mut self, name: &str) -> Host {
        let mut first = 0;
        let node = |_| {
            let cpus = 1 + self.below(6) as u32;
            let node = NumaNode {
                cpus: (first..first + cpus).collect(),
                memory: self.below(17) * GIB,
                huge_2m: self.below(3),
                huge_1g: self.below(3),
                devices: [("gpu".to_owned(), self.below(3) as u32)].into(),
            };
            first += cpus;
            node
        };
        let nodes = (0..2).map(node).collect();
        let mut host = Host {
            name: name.into(),
            nodes,
            disk: self.below(100) * GIB,
            ..Host::default()
        };
        if !self.one_in(4) {
            host.labels.insert("site".into(), self.word().into());
        }
        if self.one_in(4) {
            host.taints.push(Taint {
                key: self.word().into(),
                value: String::new(),
                effect: if self.one_in(2) {
                    Effect::Refuse
                } else {
                    Effect::Avoid
                },
            });
        }
        host.cordoned = self.one_in(8);
        host.claimed = self.one_in(12);
        host
    }

    fn request(&mut self, id: String) -> Request {
        let tier = [Tier::Dedicated, Tier::Burst, Tier::Dense][self.below(3) as usize];
        let mut request = Request {
            id,
            tier,
            milli_cpus: match tier {
                Tier::Dedicated => self.below(5) * 1000,
                _ => self.below(5000),
            },
            memory: self.below(6) * GIB / 2,
            disk: self.below(8) * GIB,
            labels: labels(&[("app", self.word())]),
            priority: self.below(4) as i32,
            one_node: self.one_in(5),
            ..Request::default()
        };
        if self.one_in(10) {
            request.kind = Kind::Host;
        }
        if self.one_in(5) {
            (request.huge_2m, request.huge_1g) = (self.below(4), self.below(3));
            request.devices.insert("gpu".into(), self.below(3) as u32);
        }
        if self.one_in(4) {
            let rule = match self.below(3) {
                0 => Rule::Exists,
                1 => Rule::NotIn([self.word().to_owned()].into()),
                _ => Rule::In([self.word().to_owned(), self.word().to_owned()].into()),
            };
            let key = "site".into();
            request.hosts.terms.push(Term { key, rule });
        }
        if self.one_in(3) {
            request.near.push(Near {
                workloads: Selector::equal([("app", self.word())]),
                within: self.topology(),
                apart: !self.one_in(3),
            });
        }
        if self.one_in(5) {
            request.spread.push(Spread {
                workloads: Selector::equal([("app", self.word())]),
                over: self.topology(),
                max_skew: 1 + self.below(2) as u32,
                soft: self.one_in(3),
            });
        }
        if self.one_in(5) {
            request.prefer_hosts.push(Preferred {
                weight: 1 + self.below(100) as u32,
                what: Selector::equal([("site", self.word())]),
            });
        }
        if self.one_in(4) {
            request.tolerations.push(Toleration {
                key: (!self.one_in(2)).then(|| self.word().to_owned()),
                ..Toleration::default()
            });
        }
        request
    }
}

/// What the scheduler should know, without any index.
#[derive(Default)]
struct Model {
    hosts: BTreeMap<String, Host>,
    running: BTreeMap<String, (Request, Placement)>,
}

/// What is free on a node: CPUs, bytes, pages, devices.
type Free = (u64, u64, u64, u64, u64);

impl Model {
    fn on<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a (Request, Placement)> {
        self.running
            .values()
            .filter(move |(_, placement)| placement.host == host)
    }

    /// What is free by node, of the shared CPUs, and of the disk; nothing if more was given than there is.
    fn free(&self, host: &Host) -> Option<(Vec<Free>, u64, u64)> {
        let mut cpus: Vec<BTreeSet<u32>> = host
            .nodes
            .iter()
            .map(|node| node.cpus.iter().copied().collect())
            .collect();
        let gpus = |node: &NumaNode| u64::from(*node.devices.get("gpu").unwrap_or(&0));
        let mut rest: Vec<Free> = host
            .nodes
            .iter()
            .map(|node| (0, node.memory, node.huge_2m, node.huge_1g, gpus(node)))
            .collect();
        let (mut shared, mut disk) = (0, host.disk);
        for (_, placement) in self.on(&host.name) {
            shared += placement.shared_cpu;
            disk = disk.checked_sub(placement.disk)?;
            for share in &placement.nodes {
                let node = &mut rest[share.node];
                node.1 = node.1.checked_sub(share.memory)?;
                node.2 = node.2.checked_sub(share.huge_2m)?;
                node.3 = node.3.checked_sub(share.huge_1g)?;
                let gpus = share.devices.get("gpu").copied().unwrap_or(0);
                node.4 = node.4.checked_sub(gpus.into())?;
                for cpu in &share.cpus {
                    cpus[share.node].remove(cpu).then_some(())?;
                }
            }
        }
        for (node, cpus) in rest.iter_mut().zip(&cpus) {
            node.0 = cpus.len() as u64;
        }
        let unpinned: u64 = cpus.iter().map(|cpus| cpus.len() as u64 * MICRO).sum();
        Some((rest, unpinned.checked_sub(shared)?, disk))
    }

    fn place<'a>(&self, host: &'a Host, within: &Topology) -> Option<&'a str> {
        match within {
            Topology::Host => Some(&host.name),
            Topology::Label(key) => host.labels.get(key).map(String::as_str),
        }
    }

    /// Workloads in one place with `host` that a selector matches.
    fn beside<'a>(
        &'a self,
        host: &'a Host,
        selector: &'a Selector,
        within: &'a Topology,
    ) -> impl Iterator<Item = &'a (Request, Placement)> {
        self.running.values().filter(move |(request, placement)| {
            let there = self.place(&self.hosts[&placement.host], within);
            there.is_some()
                && there == self.place(host, within)
                && selector.matches(&request.labels)
        })
    }

    fn claimed(&self, host: &Host) -> bool {
        host.claimed
            || self
                .on(&host.name)
                .any(|(request, _)| request.kind == Kind::Host)
    }

    fn reachable(&self, host: &Host, request: &Request) -> bool {
        let bad = |taint: &&Taint| {
            let tolerated = |t: &Toleration| t.key.as_ref().is_none_or(|key| *key == taint.key);
            taint.effect == Effect::Refuse && !request.tolerations.iter().any(tolerated)
        };
        !host.cordoned
            && !self.claimed(host)
            && request.hosts.matches(&host.labels)
            && host.taints.iter().find(bad).is_none()
    }

    fn welcome(&self, host: &Host, request: &Request) -> bool {
        let near = request.near.iter().all(|near| {
            let there = self.beside(host, &near.workloads, &near.within).count() > 0;
            let nowhere = !self
                .running
                .values()
                .any(|(r, _)| near.workloads.matches(&r.labels));
            let first = nowhere
                && near.workloads.matches(&request.labels)
                && self.place(host, &near.within).is_some();
            if near.apart { !there } else { there || first }
        });
        let minded = self.running.values().any(|(other, placement)| {
            other.near.iter().filter(|near| near.apart).any(|near| {
                let there = self.place(&self.hosts[&placement.host], &near.within);
                near.workloads.matches(&request.labels)
                    && there.is_some()
                    && there == self.place(host, &near.within)
            })
        });
        let level = request
            .spread
            .iter()
            .filter(|spread| !spread.soft)
            .all(|spread| {
                let count =
                    |host: &Host| self.beside(host, &spread.workloads, &spread.over).count();
                let places = self.hosts.values().filter(|other| {
                    self.reachable(other, request) && self.place(other, &spread.over).is_some()
                });
                let fewest = places.map(count).min().unwrap_or(0);
                let one = usize::from(spread.workloads.matches(&request.labels));
                self.place(host, &spread.over).is_some()
                    && count(host) + one <= fewest + spread.max_skew as usize
            });
        near && !minded && level
    }

    fn enough(&self, host: &Host, request: &Request) -> bool {
        let (nodes, shared, disk) = self.free(host).expect("no more than there is");
        let whole = request.kind == Kind::Host;
        if whole && self.on(&host.name).next().is_some() {
            return false;
        }
        let factor = if request.tier == Tier::Dense { 16 } else { 4 };
        let micro = request.milli_cpus * 1000;
        let (pinned, cpu) = match whole || request.tier == Tier::Dedicated {
            true => (micro.div_ceil(MICRO), micro.div_ceil(MICRO) * MICRO),
            false => (0, micro.div_ceil(factor)),
        };
        let gpus = request.devices.get("gpu").copied().unwrap_or(0).into();
        let wanted = (
            pinned,
            request.memory,
            request.huge_2m,
            request.huge_1g,
            gpus,
        );
        let serves = |free: &Free| {
            free.0 >= wanted.0
                && free.1 >= wanted.1
                && free.2 >= wanted.2
                && free.3 >= wanted.3
                && free.4 >= wanted.4
        };
        let sum = |a: Free, b: &Free| (a.0 + b.0, a.1 + b.1, a.2 + b.2, a.3 + b.3, a.4 + b.4);
        let all = nodes.iter().fold(Free::default(), sum);
        let one = !request.one_node || whole || nodes.iter().any(serves);
        serves(&all) && shared >= cpu && disk >= request.disk && one
    }

    fn able(&self, request: &Request) -> BTreeSet<&str> {
        let able = |host: &&Host| {
            self.reachable(host, request)
                && self.welcome(host, request)
                && self.enough(host, request)
        };
        self.hosts
            .values()
            .filter(able)
            .map(|host| host.name.as_str())
            .collect()
    }

    /// Nothing was given twice, and a claim is alone.
    fn check(&self) {
        for host in self.hosts.values() {
            assert!(
                self.free(host).is_some(),
                "{} has given too much",
                host.name
            );
            let claims = self
                .on(&host.name)
                .filter(|(r, _)| r.kind == Kind::Host)
                .count();
            assert!(claims == 0 || self.on(&host.name).count() == 1);
        }
    }
}

/// All that the scheduler's decisions follow from.
fn state(cluster: &Cluster) -> String {
    let hosts: Vec<String> = cluster
        .present
        .iter()
        .filter_map(|host| cluster.slot(host))
        .map(|slot| format!("{} {:?} {:?}", slot.name, slot.ledger, slot.works))
        .collect();
    let sets = [
        &cluster.idle,
        &cluster.claimed,
        &cluster.cordoned,
        cluster.open(),
    ];
    let sets: Vec<Vec<_>> = sets.iter().map(|set| set.iter().collect()).collect();
    format!(
        "{hosts:?} {sets:?} {:?} {}",
        cluster.mix,
        cluster.works.unguarded()
    )
}

/// Plays a history; the placements of it.
fn play(seed: u64, steps: usize, checked: bool) -> Vec<Option<Placement>> {
    let mut chance = Chance(seed | 1);
    let mut model = Model::default();
    let mut cluster = Cluster::new(Policy::default());
    let mut history = Vec::new();
    for step in 0..steps {
        let name = format!("h{}", chance.below(6));
        match chance.below(20) {
            0 if model.hosts.contains_key(&name) => {
                for id in cluster.remove_host(&name).unwrap() {
                    assert!(model.running.remove(&id).is_some());
                }
                model.hosts.remove(&name);
            }
            0..=3 if !model.hosts.contains_key(&name) => {
                let host = chance.host(&name);
                cluster.add_host(&host).unwrap();
                model.hosts.insert(name, host);
            }
            4 => {
                let cordoned = chance.one_in(2);
                if let Some(host) = model.hosts.get_mut(&name) {
                    host.cordoned = cordoned;
                    cluster.cordon(&name, cordoned).unwrap();
                }
            }
            5..=8 => {
                let at = chance.below(1 + model.running.len() as u64) as usize;
                if let Some(id) = model.running.keys().nth(at).cloned() {
                    let (_, placement) = model.running.remove(&id).unwrap();
                    assert_eq!(cluster.release(&id), Ok(placement));
                }
            }
            9 => preempt(&mut cluster, &mut model, chance.request(format!("r{step}"))),
            _ => {
                let request = chance.request(format!("r{step}"));
                let placed = arrive(&mut cluster, &mut model, &request, checked);
                history.push(placed);
            }
        }
        model.check();
    }
    history
}

fn arrive(
    cluster: &mut Cluster,
    model: &mut Model,
    request: &Request,
    checked: bool,
) -> Option<Placement> {
    if checked {
        let before = state(cluster);
        let said = cluster.explain(request).unwrap();
        let able = model.able(request);
        assert_eq!(said.able, able.len(), "{request:?}: {said}");
        let missed: usize = said.misses.iter().map(|miss| miss.hosts).sum();
        assert_eq!(said.able + missed, model.hosts.len(), "{said}");
        let mut other = cluster.clone();
        if let Ok(placement) = other.place(request) {
            assert_eq!(placement.host, said.ranked[0].host, "{said}");
            assert!(able.contains(placement.host.as_str()));
            other.release(&request.id).unwrap();
        }
        assert_eq!(state(&other), before);
    }
    let placed = cluster.place(request);
    match &placed {
        Ok(placement) => {
            let whole = request.kind == Kind::Host;
            let memory: u64 = placement.nodes.iter().map(|node| node.memory).sum();
            assert!(whole || memory == request.memory);
            let old = (request.clone(), placement.clone());
            model.running.insert(request.id.clone(), old);
        }
        Err(refusal) => assert!(matches!(refusal, Refusal::NoHost { .. }), "{refusal}"),
    }
    placed.ok()
}

fn preempt(cluster: &mut Cluster, model: &mut Model, request: Request) {
    let before = state(cluster);
    let room = !model.able(&request).is_empty();
    match cluster.preempt(&request) {
        Ok(done) => {
            assert_eq!(room, done.victims.is_empty());
            for victim in done.victims {
                let (old, placement) = model.running.remove(&victim.id).unwrap();
                assert!(old.priority < request.priority);
                assert_eq!(
                    (placement, victim.priority),
                    (victim.placement, old.priority)
                );
            }
            let id = request.id.clone();
            model.running.insert(id, (request, done.placement));
        }
        Err(_) => assert!(!room && state(cluster) == before),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_history_agrees_with_the_model(seed in any::<u64>(), steps in 1usize..120) {
        play(seed, steps, true);
    }
}

#[test]
fn a_long_history_agrees_with_the_model_and_repeats_itself() {
    let first = play(7, 6_000, false);
    assert_eq!(first, play(7, 6_000, false));
    assert!(first.iter().flatten().count() > 500);
    assert!(first.iter().filter(|placed| placed.is_none()).count() > 500);
}

#[test]
fn hostile_numbers_overflow_nothing() {
    let most = 1 << 56;
    let node = NumaNode {
        cpus: vec![u32::MAX],
        memory: most,
        huge_2m: most,
        huge_1g: most,
        devices: [("gpu".to_owned(), u32::MAX)].into(),
    };
    let mut cluster = cluster(&[Host {
        name: "a".into(),
        nodes: vec![node; 1],
        disk: most,
        ..Host::default()
    }]);
    for tier in [Tier::Dedicated, Tier::Burst, Tier::Dense] {
        let vast = Request {
            tier,
            memory: most,
            huge_2m: most,
            huge_1g: most,
            disk: most,
            devices: [("gpu".to_owned(), u32::MAX)].into(),
            ..request("vast", 8192, 0)
        };
        assert!(cluster.place(&vast).is_err());
        let fits = Request {
            milli_cpus: 1000,
            ..vast
        };
        cluster.place(&fits).unwrap();
        assert_eq!(cluster.usage().memory_taken, most);
        cluster.release("vast").unwrap();
    }
}
