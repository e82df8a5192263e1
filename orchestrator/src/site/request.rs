//! Workloads and hosts as the scheduler sees them.

use std::collections::BTreeMap;

use super::wanted::is_over;
use crate::api::{ApiError, rest};
use crate::model::{
    BareMetal, Container, Host, MicroVM, Object, Placement, Tier, WorkloadStatus, kind_of,
};
use crate::schedule::{self, Kind, NumaNode, Request, Selector, Toleration};

/// A host's own label, by which a workload is held to it.
const HOST: &str = "skerry.io/host";

/// What selects one host alone.
pub fn held_to(host: &str) -> Selector {
    Selector::equal([(HOST, host)])
}

/// A host as the scheduler sees it.
pub fn inventory(object: &Object) -> Result<schedule::Host, ApiError> {
    let host: Host = rest(object)?;
    let status = host.status.unwrap_or_default();
    let mut labels = object.meta.labels.clone();
    labels.insert(HOST.to_owned(), object.meta.name.clone());
    let taints = host.spec.taints.into_iter().map(|taint| schedule::Taint {
        key: taint.key,
        value: taint.value,
        effect: schedule::Effect::Refuse,
    });
    Ok(schedule::Host {
        name: object.meta.name.clone(),
        labels,
        taints: taints.collect(),
        cordoned: host.spec.unschedulable,
        nodes: vec![NumaNode {
            cpus: (0..status.cpus).collect(),
            memory: status.memory.whole(),
            huge_2m: status.hugepages,
            ..NumaNode::default()
        }],
        disk: status.disk.whole(),
        ..schedule::Host::default()
    })
}

/// Where a workload may run.
fn placement_of(object: &Object) -> Result<Placement, ApiError> {
    Ok(match object.kind {
        kind if kind == kind_of::<Container>() => rest::<Container>(object)?.spec.placement,
        kind if kind == kind_of::<BareMetal>() => rest::<BareMetal>(object)?.spec.placement,
        _ => rest::<MicroVM>(object)?.spec.placement,
    })
}

/// What a workload asks for, and how it is doing.
pub fn request(object: &Object) -> Result<(Request, WorkloadStatus), ApiError> {
    let placement = placement_of(object)?;
    let pairs: BTreeMap<String, String> = placement.host_selector;
    let tolerations = placement
        .tolerations
        .into_iter()
        .map(|toleration| Toleration {
            key: Some(toleration.key).filter(|key| !key.is_empty()),
            value: Some(toleration.value).filter(|value| !value.is_empty()),
            effect: None,
        });
    let mut hosts = Selector::equal(pairs);
    if !placement.host.is_empty() {
        hosts.terms.extend(held_to(&placement.host).terms);
    }
    let mut request = Request {
        id: object.key(),
        labels: object.meta.labels.clone(),
        hosts,
        tolerations: tolerations.collect(),
        priority: placement.priority,
        ..Request::default()
    };
    let mut running = true;
    let status = match object.kind {
        kind if kind == kind_of::<Container>() => {
            let container: Container = rest(object)?;
            running = container.spec.running;
            request.kind = Kind::Container;
            request.milli_cpus = container.spec.cpu.milli();
            request.memory = container.spec.memory.whole();
            container.status
        }
        kind if kind == kind_of::<BareMetal>() => {
            request.kind = Kind::Host;
            rest::<BareMetal>(object)?.status
        }
        _ => {
            let vm: MicroVM = rest(object)?;
            let spec = vm.spec;
            running = spec.running;
            request.tier = match spec.tier {
                Tier::Dedicated => schedule::Tier::Dedicated,
                Tier::Burst => schedule::Tier::Burst,
                Tier::Dense => schedule::Tier::Dense,
            };
            request.milli_cpus = u64::from(spec.cpus) * 1000;
            match spec.hugepages {
                true => request.huge_2m = spec.memory.whole().div_ceil(2 << 20),
                false => request.memory = spec.memory.whole(),
            }
            let sizes = spec.disks.iter().filter_map(|disk| disk.size);
            request.disk = sizes.map(crate::model::Quantity::whole).sum();
            vm.status
        }
    };
    let status = status.unwrap_or_default();
    if is_over(&status, object.meta.generation) {
        // Only its disks are still there.
        (request.milli_cpus, request.memory, request.huge_2m) = (0, 0, 0);
        running = false;
    }
    if !running {
        // Nobody has to go for what does not run.
        request.preemption = schedule::Preemption::Never;
    }
    Ok((request, status))
}
