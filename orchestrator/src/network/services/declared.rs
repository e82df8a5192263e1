//! What is declared, as far as it matters here: workloads with their addresses, services, elastic addresses.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::api::ApiError;
use crate::api::rest;
use crate::model::{
    Condition, Container, ElasticAddress, Kind, Meta, MicroVM, Object, Phase, Published, Service,
    Timestamp, WorkloadStatus, kind_of,
};

/// The condition that says whether ports of the host are published.
pub const PUBLISHED: &str = "Published";

/// Whether a condition is said to be so.
pub fn is_said(conditions: &[Condition], kind: &str) -> bool {
    let found = conditions.iter().find(|c| c.kind == kind);
    found.is_some_and(|condition| condition.status == "True")
}

/// Whether that of a generation is said to be published.
pub fn is_settled(conditions: &[Condition], generation: u64) -> bool {
    let found = conditions.iter().find(|c| c.kind == PUBLISHED);
    found.is_some_and(|c| c.status == "True" && c.observed_generation == generation)
}

/// The kinds that matter.
pub fn kinds() -> [&'static Kind; 4] {
    [
        kind_of::<MicroVM>(),
        kind_of::<Container>(),
        kind_of::<Service>(),
        kind_of::<ElasticAddress>(),
    ]
}

/// All of it, by the objects' keys.
#[derive(Debug, Default)]
pub struct Declared {
    /// MicroVMs and containers.
    pub workloads: BTreeMap<String, Known<Workload>>,
    /// Services.
    pub services: BTreeMap<String, Known<Service>>,
    /// Elastic addresses.
    pub elastic: BTreeMap<String, Known<ElasticAddress>>,
}

/// An object.
#[derive(Debug, Clone, PartialEq)]
pub struct Known<T> {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its metadata: what matters of it.
    pub meta: Meta,
    /// The rest.
    pub rest: T,
}

/// A workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Ports of the host that it wants.
    pub publish: Vec<Published>,
    /// Where it runs, or is to.
    pub host: String,
    /// Its addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether it runs.
    pub running: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// Why not.
    pub why: String,
    /// What was said of its ports.
    pub published: Option<Condition>,
}

impl<T> Known<T> {
    /// What it is called in messages.
    pub fn shown(&self) -> String {
        let meta = &self.meta;
        format!("{} {}/{}", self.kind.singular, meta.namespace, meta.name)
    }

    /// The moment that says who came first. Within a second, it is who has something already, and then the name.
    pub fn turn(&self, has: bool) -> (Option<Timestamp>, bool, String) {
        let name = self.shown();
        (self.meta.creation_timestamp, !has, name)
    }

    /// Whether it is to go.
    pub fn is_going(&self) -> bool {
        self.meta.deletion_timestamp.is_some()
    }

    fn of(object: &Object, rest: T) -> Known<T> {
        let meta = &object.meta;
        Known {
            kind: object.kind,
            meta: Meta {
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
                generation: meta.generation,
                creation_timestamp: meta.creation_timestamp,
                deletion_timestamp: meta.deletion_timestamp,
                labels: meta.labels.clone(),
                ..Meta::default()
            },
            rest,
        }
    }

    /// An object of that name, to say something of.
    pub fn object(&self) -> Object {
        Object {
            kind: self.kind,
            meta: self.meta.clone(),
            body: serde_json::Map::new(),
        }
    }
}

impl Workload {
    fn of(publish: Vec<Published>, status: Option<WorkloadStatus>) -> Workload {
        let status = status.unwrap_or_default();
        let find = |kind: &str| status.conditions.iter().find(|c| c.kind == kind);
        let ready = status.is("Ready");
        let running = status.phase == Phase::Running;
        let why = match find("Ready") {
            Some(said) if !running => format!("it does not run: {}", said.reason),
            None if !running => "it does not run yet".to_owned(),
            Some(said) if said.message.is_empty() => format!("it is not ready: {}", said.reason),
            Some(said) => format!("it is not ready: {}", said.message),
            None => "it is not ready yet".to_owned(),
        };
        let addresses = status.addresses.iter().filter_map(|text| {
            let text = text.split('/').next().unwrap_or_default();
            text.parse().ok()
        });
        Workload {
            publish,
            addresses: addresses.collect(),
            running,
            ready: running && ready,
            why: if ready { String::new() } else { why },
            published: find(PUBLISHED).cloned(),
            host: status.host,
        }
    }

    /// Its address.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.addresses.first().copied()
    }
}

/// Enters an object; whether that changes anything.
fn enter<T: PartialEq>(all: &mut BTreeMap<String, Known<T>>, key: String, known: Known<T>) -> bool {
    let same = all.get(&key) == Some(&known);
    all.insert(key, known);
    !same
}

impl Declared {
    /// Enters an object; whether anything may follow from it. One that another version of its type wrote is not known
    /// here.
    pub fn enter(&mut self, object: &Object) -> bool {
        self.read(object).unwrap_or_else(|e| {
            log::warn!("{} is left out: {e}", object.shown());
            self.strike(&object.key())
        })
    }

    fn read(&mut self, object: &Object) -> Result<bool, ApiError> {
        let key = object.key();
        Ok(if object.kind == kind_of::<MicroVM>() {
            let vm: MicroVM = rest(object)?;
            let workload = Workload::of(vm.spec.publish, vm.status);
            enter(&mut self.workloads, key, Known::of(object, workload))
        } else if object.kind == kind_of::<Container>() {
            let container: Container = rest(object)?;
            let workload = Workload::of(container.spec.publish, container.status);
            enter(&mut self.workloads, key, Known::of(object, workload))
        } else if object.kind == kind_of::<Service>() {
            enter(&mut self.services, key, Known::of(object, rest(object)?))
        } else if object.kind == kind_of::<ElasticAddress>() {
            enter(&mut self.elastic, key, Known::of(object, rest(object)?))
        } else {
            false
        })
    }

    /// Whether somebody wants ports of the host that are not theirs yet.
    pub fn has_new_claims(&self) -> bool {
        let workloads = self.workloads.values().any(|known| {
            let has = known.rest.published.as_slice();
            !known.rest.publish.is_empty() && !is_settled(has, known.meta.generation)
        });
        workloads
            || self.services.values().any(|known| {
                let status = known.rest.status.as_ref();
                let has = status.map_or(&[][..], |status| &status.conditions);
                let settled = is_settled(has, known.meta.generation);
                !known.rest.spec.publish.is_empty() && !settled
            })
    }

    /// Forgets an object; whether it was known.
    pub fn strike(&mut self, key: &str) -> bool {
        let workload = self.workloads.remove(key).is_some();
        let service = self.services.remove(key).is_some();
        self.elastic.remove(key).is_some() || service || workload
    }

    /// The workload of a kind and name.
    pub fn workload(&self, kind: &str, namespace: &str, name: &str) -> Option<&Known<Workload>> {
        let kind = kinds().into_iter().find(|known| known.kind == kind)?;
        self.workloads.get(&kind.key(namespace, name))
    }
}
