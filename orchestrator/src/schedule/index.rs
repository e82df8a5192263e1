//! Hosts by their labels and taints.

use std::collections::BTreeMap;

use super::host::{Effect, Labels, Taint};
use super::hostset::{HostIndex, HostSet};
use super::request::{Request, Topology};
use super::select::{Rule, Selector, Term};

/// Hosts by labels and taints.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    labels: BTreeMap<String, Key>,
    taints: BTreeMap<Taint, HostSet>,
}

/// Hosts by the value of one label.
#[derive(Debug, Clone, Default)]
struct Key {
    all: HostSet,
    values: BTreeMap<String, HostSet>,
}

impl Index {
    /// Adds a host.
    pub fn insert(&mut self, host: HostIndex, labels: &Labels, taints: &[Taint]) {
        for (name, value) in labels {
            let key = self.labels.entry(name.clone()).or_default();
            key.all.insert(host);
            key.values.entry(value.clone()).or_default().insert(host);
        }
        for taint in taints {
            self.taints.entry(taint.clone()).or_default().insert(host);
        }
    }

    /// Takes a host out that was added so.
    pub fn remove(&mut self, host: HostIndex, labels: &Labels, taints: &[Taint]) {
        for (name, value) in labels {
            let Some(key) = self.labels.get_mut(name) else {
                continue;
            };
            key.all.remove(host);
            if let Some(hosts) = key.values.get_mut(value) {
                hosts.remove(host);
                if hosts.is_empty() {
                    key.values.remove(value);
                }
            }
            if key.values.is_empty() {
                self.labels.remove(name);
            }
        }
        for taint in taints {
            if let Some(hosts) = self.taints.get_mut(taint) {
                hosts.remove(host);
                if hosts.is_empty() {
                    self.taints.remove(taint);
                }
            }
        }
    }

    /// Of `hosts`, those that a selector matches.
    pub fn select(&self, hosts: &mut HostSet, selector: &Selector) {
        for term in &selector.terms {
            self.apply(hosts, term);
        }
    }

    fn apply(&self, hosts: &mut HostSet, term: &Term) {
        let key = self.labels.get(&term.key);
        let named = |values: &std::collections::BTreeSet<String>| {
            let mut named = HostSet::default();
            for hosts in values.iter().filter_map(|value| key?.values.get(value)) {
                named.unite(hosts);
            }
            named
        };
        match (&term.rule, key) {
            (Rule::In(values), _) => hosts.intersect(&named(values)),
            (Rule::NotIn(values), _) => hosts.subtract(&named(values)),
            (Rule::Exists, Some(key)) => hosts.intersect(&key.all),
            (Rule::Exists, None) => *hosts = HostSet::default(),
            (Rule::Absent, Some(key)) => hosts.subtract(&key.all),
            (Rule::Absent, None) => {}
        }
    }

    /// The taints of this effect that a request does not tolerate, each with its hosts.
    pub fn taints_against<'a>(
        &'a self,
        request: &'a Request,
        effect: Effect,
    ) -> impl Iterator<Item = (&'a Taint, &'a HostSet)> {
        self.taints
            .iter()
            .filter(move |(taint, _)| taint.effect == effect && !request.tolerates(taint))
    }

    /// The hosts in the same place as `host`; none if it is in no place.
    pub fn place(&self, host: HostIndex, labels: &Labels, within: &Topology) -> Option<HostSet> {
        match within {
            Topology::Host => Some([host].into_iter().collect()),
            Topology::Label(key) => {
                let value = labels.get(key)?;
                self.labels.get(key)?.values.get(value).cloned()
            }
        }
    }

    /// All places of a label, with their hosts.
    pub fn places(&self, key: &str) -> impl Iterator<Item = (&String, &HostSet)> {
        self.labels.get(key).into_iter().flat_map(|key| &key.values)
    }
}
