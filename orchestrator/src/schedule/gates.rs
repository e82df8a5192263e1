//! Which hosts a request may be placed on as far as names, labels and other workloads are concerned, and
//! which it would rather be on. What is free there is not looked at here.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::Cluster;
use super::host::Effect;
use super::hostset::{HostIndex, HostSet};
use super::request::{Near, Request, Spread, Topology};

/// What a request's words come to.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// The hosts that pass all.
    pub eligible: HostSet,
    /// Of the open hosts, those that its selector matches.
    pub selected: HostSet,
    /// Of these, those without a taint against it.
    pub tolerated: HostSet,
    /// Of these, those near to what it must be near to.
    pub near: HostSet,
    /// Of these, those far from what it must be far from.
    pub apart: HostSet,
    /// Of these, those where nobody keeps it away.
    pub welcome: HostSet,
    /// Sets of hosts and what being among them is worth; less than 0 is a drawback.
    pub wishes: Vec<(HostSet, i64)>,
}

/// Places by how many workloads are in each, ascending.
struct Places(Vec<(HostSet, u64)>);

impl Gates {
    /// What this request's words come to. `detailed` keeps the steps, for an explanation.
    pub fn of(cluster: &Cluster, request: &Request, detailed: bool) -> Gates {
        let mut gates = Gates::default();
        let keep = |set: &HostSet| {
            if detailed {
                set.clone()
            } else {
                HostSet::default()
            }
        };
        let mut hosts = cluster.open().clone();
        cluster.index.select(&mut hosts, &request.hosts);
        gates.selected = keep(&hosts);
        for (_, tainted) in cluster.index.taints_against(request, Effect::Refuse) {
            hosts.subtract(tainted);
        }
        gates.tolerated = keep(&hosts);
        // Places are spread over where the request could be if there were room.
        let reachable = match request.spread.is_empty() {
            true => HostSet::default(),
            false => hosts.clone(),
        };
        for near in request.near.iter().filter(|near| !near.apart) {
            let beside = cluster.beside(near);
            // The first of a group that wants to be together may begin anywhere.
            let first = near.workloads.matches(&request.labels)
                && cluster.works.matching(&near.workloads).next().is_none();
            if first {
                // Anywhere that is a place at all.
                if let Topology::Label(key) = &near.within {
                    hosts.intersect(&cluster.somewhere(key));
                }
            } else {
                hosts.intersect(&beside);
            }
        }
        gates.near = keep(&hosts);
        for near in request.near.iter().filter(|near| near.apart) {
            hosts.subtract(&cluster.beside(near));
        }
        gates.apart = keep(&hosts);
        if !cluster.works.unguarded() {
            for (within, guarded) in cluster.works.guards_against(&request.labels) {
                hosts.subtract(&cluster.around(within, guarded));
            }
        }
        gates.welcome = keep(&hosts);
        for spread in &request.spread {
            let places = Places::of(cluster, spread, &reachable);
            match spread.soft {
                true => places.wishes(&mut gates.wishes),
                false => places.level(spread, request, &mut hosts),
            }
        }
        for (_, tainted) in cluster.index.taints_against(request, Effect::Avoid) {
            gates.wishes.push((tainted.clone(), -100));
        }
        for preferred in &request.prefer_hosts {
            let mut liked = cluster.open().clone();
            cluster.index.select(&mut liked, &preferred.what);
            gates.wishes.push((liked, preferred.weight.into()));
        }
        for preferred in &request.prefer_near {
            let weight = i64::from(preferred.weight);
            let sign = if preferred.what.apart { -1 } else { 1 };
            gates
                .wishes
                .push((cluster.beside(&preferred.what), sign * weight));
        }
        gates.eligible = hosts;
        gates
    }

    /// How much a host is what was wished for, from -1 to 1.
    pub fn wish(&self, host: HostIndex) -> f64 {
        if self.wishes.is_empty() {
            return 0.0;
        }
        let (mut found, mut all) = (0, 0);
        for (hosts, weight) in &self.wishes {
            all += weight.abs();
            if hosts.contains(host) {
                found += weight;
            }
        }
        found as f64 / all.max(1) as f64
    }
}

impl Cluster {
    /// The hosts in one place with workloads that `near` speaks of.
    fn beside(&self, near: &Near) -> HostSet {
        let hosts: BTreeSet<HostIndex> = self
            .works
            .matching(&near.workloads)
            .map(|work| work.host)
            .collect();
        self.around(&near.within, hosts)
    }

    /// The hosts in one place with any of these.
    fn around(&self, within: &Topology, hosts: impl IntoIterator<Item = HostIndex>) -> HostSet {
        let mut around = HostSet::default();
        for host in hosts {
            if around.contains(host) {
                continue;
            }
            let place = self.slot(host);
            let place = place.and_then(|slot| self.index.place(host, &slot.labels, within));
            if let Some(place) = place {
                around.unite(&place);
            }
        }
        around
    }

    /// All hosts with this label.
    fn somewhere(&self, key: &str) -> HostSet {
        let mut all = HostSet::default();
        for (_, hosts) in self.index.places(key) {
            all.unite(hosts);
        }
        all
    }
}

impl Places {
    /// The places that a spread speaks of and the request could be in, with what is there.
    fn of(cluster: &Cluster, spread: &Spread, reachable: &HostSet) -> Places {
        let mut counts: BTreeMap<HostIndex, u64> = BTreeMap::new();
        for work in cluster.works.matching(&spread.workloads) {
            *counts.entry(work.host).or_default() += 1;
        }
        // Places with the same count become one set.
        let mut by_count: BTreeMap<u64, HostSet> = BTreeMap::new();
        match &spread.over {
            Topology::Host => {
                for host in reachable.iter() {
                    let count = counts.get(&host).copied().unwrap_or(0);
                    by_count.entry(count).or_default().insert(host);
                }
            }
            Topology::Label(key) => {
                for (_, hosts) in cluster.index.places(key) {
                    if hosts.common(reachable) > 0 {
                        let here = counts.iter().filter(|(host, _)| hosts.contains(**host));
                        let count = here.map(|(_, count)| count).sum();
                        by_count.entry(count).or_default().unite(hosts);
                    }
                }
            }
        }
        Places(
            by_count
                .into_iter()
                .map(|(count, hosts)| (hosts, count))
                .collect(),
        )
    }

    /// Leaves the hosts where one more would not lean too far.
    fn level(&self, spread: &Spread, request: &Request, hosts: &mut HostSet) {
        let fewest = self.0.first().map_or(0, |(_, count)| *count);
        // Whoever is not of the kind that is counted does not make it lean.
        let one = u64::from(spread.workloads.matches(&request.labels));
        let mut level = HostSet::default();
        for (place, count) in &self.0 {
            if count + one - fewest <= spread.max_skew.into() {
                level.unite(place);
            }
        }
        hosts.intersect(&level);
    }

    /// Fuller places are a drawback.
    fn wishes(&self, wishes: &mut Vec<(HostSet, i64)>) {
        let fewest = self.0.first().map_or(0, |(_, count)| *count);
        for (place, count) in &self.0 {
            let excess = (count - fewest).min(10) as i64;
            if excess > 0 {
                wishes.push((place.clone(), -10 * excess));
            }
        }
    }
}
