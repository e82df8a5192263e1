//! Quotas: what a tenant's objects want together stays below what it may have. It is looked at when something is
//! declared, so whoever asks for too much is told at once.

use tokio::sync::{Mutex, MutexGuard};

use super::error::ApiError;
use super::objects::{Objects, rest};
use super::select::Selector;
use crate::model::{
    Amounts, Container, Kind, MicroVM, Namespace, Object, Quantity, Volume, VolumeSnapshot, kind_of,
};

/// What something wants; each in its unit, CPUs in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wants {
    cpus: u64,
    memory: u64,
    volumes: u64,
    workloads: u64,
}

impl Wants {
    fn add(&mut self, other: Wants) {
        for (all, one) in [
            (&mut self.cpus, other.cpus),
            (&mut self.memory, other.memory),
            (&mut self.volumes, other.volumes),
            (&mut self.workloads, other.workloads),
        ] {
            *all = all.saturating_add(one);
        }
    }

    /// What a volume or a snapshot of it wants.
    fn volume(size: u64) -> Wants {
        Wants {
            volumes: size,
            ..Wants::default()
        }
    }
}

/// The kinds whose objects count.
fn counted() -> [&'static Kind; 4] {
    [
        kind_of::<MicroVM>(),
        kind_of::<Container>(),
        kind_of::<Volume>(),
        kind_of::<VolumeSnapshot>(),
    ]
}

/// All that counts of a tenant.
struct Tenant(Vec<Object>);

impl Tenant {
    async fn of(objects: &Objects, namespace: &str) -> Result<Tenant, ApiError> {
        let (mut all, every) = (Vec::new(), Selector::default());
        for kind in counted() {
            let list = objects.list(kind, namespace, &every, usize::MAX, "");
            all.extend(list.await?.objects);
        }
        Ok(Tenant(all))
    }

    /// What an object wants.
    fn wants(&self, object: &Object) -> Result<Wants, ApiError> {
        if object.kind == kind_of::<MicroVM>() {
            let spec = rest::<MicroVM>(object)?.spec;
            return Ok(Wants {
                cpus: u64::from(spec.cpus) * 1000,
                memory: spec.memory.whole(),
                workloads: 1,
                volumes: 0,
            });
        }
        if object.kind == kind_of::<Container>() {
            let spec = rest::<Container>(object)?.spec;
            return Ok(Wants {
                cpus: spec.cpu.milli(),
                memory: spec.memory.whole(),
                workloads: 1,
                volumes: 0,
            });
        }
        if object.kind == kind_of::<Volume>() {
            return Ok(Wants::volume(size(object)?));
        }
        let snapshot: VolumeSnapshot = rest(object)?;
        let taken = snapshot.status.and_then(|status| status.size);
        let of = self
            .0
            .iter()
            .find(|one| one.kind == kind_of::<Volume>() && one.meta.name == snapshot.spec.volume);
        Ok(Wants::volume(match (taken, of) {
            (Some(taken), _) => taken.whole(),
            (None, Some(volume)) => size(volume)?,
            (None, None) => 0,
        }))
    }

    /// What all want together but for one.
    fn all_but(&self, name: &str, kind: Option<&Kind>) -> Result<Wants, ApiError> {
        let mut all = Wants::default();
        let others = self.0.iter();
        for object in others.filter(|one| Some(one.kind) != kind || one.meta.name != name) {
            all.add(self.wants(object)?);
        }
        Ok(all)
    }
}

/// A volume's size: what is said of it, or what it has if it began as something.
fn size(object: &Object) -> Result<u64, ApiError> {
    let volume: Volume = rest(object)?;
    let has = volume.status.and_then(|status| status.size);
    Ok(volume.spec.size.max(has).map_or(0, Quantity::whole))
}

/// Whose turn it is to change what counts for a quota.
#[derive(Debug, Default)]
pub struct Turn(Mutex<()>);

/// Refuses an object that wants more than its tenant may have, beside all others. One that is there, as `before`, may
/// always want less. Where there is a quota nobody else is let in before the answer is dropped, so that no two are
/// where there is room for one.
pub async fn admit<'a>(
    objects: &Objects,
    turn: &'a Turn,
    object: &Object,
    before: Option<&Object>,
) -> Result<Option<MutexGuard<'a, ()>>, ApiError> {
    if !counted().contains(&object.kind) {
        return Ok(None);
    }
    let namespace = &object.meta.namespace;
    let tenant = objects.get(kind_of::<Namespace>(), "", namespace).await?;
    let Some(quota) = rest::<Namespace>(&tenant)?.spec.quota else {
        return Ok(None);
    };
    let held = turn.0.lock().await;
    let tenant = Tenant::of(objects, namespace).await?;
    let wants = tenant.wants(object)?;
    let had = before.map(|before| tenant.wants(before)).transpose()?;
    let had = had.unwrap_or_default();
    let others = tenant.all_but(&object.meta.name, Some(object.kind))?;
    if quota.volumes.is_some() && object.kind == kind_of::<Volume>() && wants.volumes == 0 {
        let what = format!(
            "{}: namespace `{namespace}` has a quota for volumes, so say how large it is: give it a size",
            object.shown()
        );
        return Err(ApiError::Forbidden(what));
    }
    for (what, limit, used, wanted, had) in [
        (
            "cpus",
            quota.cpus.map(Quantity::milli),
            others.cpus,
            wants.cpus,
            had.cpus,
        ),
        (
            "memory",
            quota.memory.map(Quantity::whole),
            others.memory,
            wants.memory,
            had.memory,
        ),
        (
            "volumes",
            quota.volumes.map(Quantity::whole),
            others.volumes,
            wants.volumes,
            had.volumes,
        ),
        (
            "workloads",
            quota.workloads.map(Quantity::whole),
            others.workloads,
            wants.workloads,
            had.workloads,
        ),
    ] {
        let Some(limit) = limit else { continue };
        if wanted > had && used.saturating_add(wanted) > limit {
            let show = |amount| shown(what, amount);
            let message = format!(
                "{}: it exceeds the quota of namespace `{namespace}`: {what} wanted {}, used by others {}, limit {}: \
                 delete something, want less, or have the quota raised",
                object.shown(),
                show(wanted),
                show(used),
                show(limit)
            );
            return Err(ApiError::Forbidden(message));
        }
    }
    Ok(Some(held))
}

fn shown(what: &str, amount: u64) -> Quantity {
    match what {
        "cpus" => Quantity::of_milli(amount),
        _ => Quantity::of(amount),
    }
}

/// What a tenant's objects want together, of that which its quota limits.
pub async fn used(
    objects: &Objects,
    namespace: &str,
    quota: &Amounts,
) -> Result<Amounts, ApiError> {
    let tenant = Tenant::of(objects, namespace).await?;
    let all = tenant.all_but("", None)?;
    Ok(Amounts {
        cpus: quota.cpus.map(|_| Quantity::of_milli(all.cpus)),
        memory: quota.memory.map(|_| Quantity::of(all.memory)),
        volumes: quota.volumes.map(|_| Quantity::of(all.volumes)),
        workloads: quota.workloads.map(|_| Quantity::of(all.workloads)),
    })
}
