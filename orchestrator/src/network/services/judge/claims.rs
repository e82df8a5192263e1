//! Ports of the host: who wants them, and whose they are.

use std::collections::BTreeMap;

use super::super::declared::{Declared, Known, PUBLISHED, is_said, is_settled};
use super::super::uplink::Ground;
use super::Terms;
use crate::model::{Condition, Protocol, Published, Service};

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
pub(super) struct Claims {
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

fn conditions_of(service: &Known<Service>) -> &[Condition] {
    let status = service.rest.status.as_ref();
    status.map_or(&[], |status| &status.conditions)
}

impl Claims {
    /// Ports go to who declared them first.
    pub(super) fn settle(declared: &Declared, terms: &Terms, ground: &Ground) -> Claims {
        let mut all = Vec::new();
        for (key, known) in &declared.workloads {
            let workload = &known.rest;
            if workload.host == terms.host && !workload.publish.is_empty() {
                let has = workload.published.as_slice();
                let turn = known.turn(is_said(has, PUBLISHED));
                let new = !is_settled(has, known.meta.generation);
                all.push((turn, key, new, known.shown(), workload.publish.clone()));
            }
        }
        for (key, known) in &declared.services {
            if !known.rest.spec.publish.is_empty() && !known.is_going() {
                let has = conditions_of(known);
                let turn = known.turn(is_said(has, PUBLISHED));
                let new = !is_settled(has, known.meta.generation);
                all.push((turn, key, new, known.shown(), ports_of(known).collect()));
            }
        }
        all.sort_by(|one, other| one.0.cmp(&other.0));
        let (mut ports, mut granted) = (Ports::default(), BTreeMap::new());
        for (_, key, is_new, whose, wanted) in all {
            let (mut theirs, mut refused) = (Vec::new(), Vec::new());
            for one in wanted {
                let port = format!("{}/{}", one.host_port, one.protocol);
                if let Some(address) = one.host_address
                    && ground.own(address).is_none()
                {
                    refused.push(format!("this host does not have the address {address}"));
                    continue;
                }
                if is_new && ground.listeners.clash(&one) {
                    refused.push(format!(
                        "this host itself listens on {port}: choose another, or end what listens there"
                    ));
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

    pub(super) fn of(&self, key: &str) -> &[Published] {
        self.granted.get(key).map_or(&[], |(theirs, _)| theirs)
    }

    /// What is said of them: nothing if none are wanted.
    pub(super) fn condition(
        &self,
        key: &str,
        before: Vec<Condition>,
        generation: u64,
    ) -> Vec<Condition> {
        let mut conditions = before;
        match self.granted.get(key) {
            None => conditions.retain(|condition| condition.kind != PUBLISHED),
            Some((_, refused)) => {
                let (good, reason) = match refused.is_empty() {
                    true => (true, PUBLISHED),
                    false => (false, "NotPublished"),
                };
                let why = refused.join("; ");
                Condition::set(&mut conditions, PUBLISHED, good, reason, &why, generation);
            }
        }
        conditions
    }
}
