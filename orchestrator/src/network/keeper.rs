//! Keeps the networks that are declared: makes them, says how they are, and removes them when nobody is in them any
//! more. What somebody has changed in the kernel is made again within a second or so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;

use super::{DEFAULT, Net, NetworkError, Registry, Subnet, Subnet6, Who};
use crate::api::{ApiError, Objects, Turn, rest};
use crate::model::{
    Condition, Container, MicroVM, NETWORK, Network, NetworkStatus, Object, kind_of,
};
use crate::store::Revision;

/// Between looks at what the kernel has.
const LOOK: Duration = Duration::from_secs(1);
/// Between attempts when the store does not answer.
const REST: Duration = Duration::from_secs(1);
/// Workloads that are named in a message.
const NAMED: usize = 5;

/// Keeps networks.
pub struct Keeper {
    objects: Objects,
    registry: Arc<Registry>,
}

/// A workload that is declared.
struct User {
    who: Who,
    /// The networks that it wants, by their names.
    networks: BTreeSet<String>,
}

/// What is declared.
#[derive(Default)]
struct Declared {
    networks: BTreeMap<String, Object>,
    users: HashMap<String, User>,
    /// Networks that have to be looked at.
    due: BTreeSet<String>,
}

impl Declared {
    fn turn(&mut self, registry: &Registry, turn: Turn) {
        if turn.object.kind == kind_of::<Network>() {
            self.due.insert(turn.key.clone());
            match turn.gone {
                true => self.networks.remove(&turn.key),
                false => self.networks.insert(turn.key, turn.object),
            };
            return;
        }
        if turn.gone {
            if let Some(user) = self.users.remove(&turn.key) {
                registry.forget(&user.who.uid);
                self.leaves(&user.who.tenant);
            }
            return;
        }
        let user = user(&turn.object);
        if let Some(before) = self.users.get(&turn.key) {
            if before.who.uid != user.who.uid {
                registry.forget(&before.who.uid);
            }
            if before.networks != user.networks {
                self.leaves(&user.who.tenant.clone());
            }
        }
        if !user.networks.is_empty() {
            registry.know(user.who.clone());
        }
        self.users.insert(turn.key, user);
    }

    /// Somebody has left a network of a tenant: those that are to go may go now.
    fn leaves(&mut self, tenant: &str) {
        let going = self.networks.iter().filter(|(_, object)| {
            let meta = &object.meta;
            meta.namespace == tenant && meta.deletion_timestamp.is_some()
        });
        self.due.extend(going.map(|(key, _)| key.clone()));
    }

    /// Who is in a network, or wants to be.
    fn inside(&self, registry: &Registry, object: &Object) -> Vec<String> {
        let meta = &object.meta;
        let declared = self
            .users
            .values()
            .filter(|user| user.who.tenant == meta.namespace && user.networks.contains(&meta.name));
        let there = registry.inside(&meta.uid);
        let all = declared.map(|user| &user.who).chain(&there);
        let names = all.map(|who| format!("{}/{}", who.kind.to_lowercase(), who.name));
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn user(object: &Object) -> User {
    let spec = object.body.get("spec").unwrap_or(&Value::Null);
    let networks = spec["networks"].as_array().into_iter().flatten();
    let names = networks.map(|port| match port["network"].as_str() {
        None | Some("") => DEFAULT.to_owned(),
        Some(name) => name.to_owned(),
    });
    User {
        who: Who {
            uid: object.meta.uid.clone(),
            kind: object.kind.kind,
            tenant: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
        },
        networks: names.collect(),
    }
}

impl Keeper {
    /// Keeps the networks of these objects in `registry`.
    pub fn new(objects: Objects, registry: Arc<Registry>) -> Keeper {
        Keeper { objects, registry }
    }

    /// Works for ever.
    pub async fn run(self) {
        loop {
            match self.rounds().await {
                Err(ApiError::Gone(_)) => {}
                Err(e) => {
                    log::error!("networks are looked at again: {e}");
                    tokio::time::sleep(REST).await;
                }
                Ok(never) => match never {},
            }
        }
    }

    async fn rounds(&self) -> Result<std::convert::Infallible, ApiError> {
        let kinds = [
            kind_of::<Network>(),
            kind_of::<MicroVM>(),
            kind_of::<Container>(),
        ];
        let (objects, mut follow) = self.objects.follow(&kinds).await?;
        let mut declared = Declared::default();
        for object in objects {
            declared.turn(
                &self.registry,
                Turn {
                    key: object.key(),
                    revision: Revision(0),
                    object,
                    gone: false,
                },
            );
        }
        while let Some(turns) = follow.more(Revision(0)).await? {
            for turn in turns {
                declared.turn(&self.registry, turn);
            }
        }
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for key in std::mem::take(&mut declared.due) {
                if !self.see_to(&declared, &key).await {
                    declared.due.insert(key);
                }
            }
            // What could not be done is tried again at the next look.
            tokio::select! {
                turns = follow.next() => {
                    for turn in turns? {
                        declared.turn(&self.registry, turn);
                    }
                }
                _ = look.tick() => {
                    self.clear(&declared).await;
                    self.check().await;
                    for (key, object) in &declared.networks {
                        self.count(key, object).await;
                    }
                }
            }
        }
    }

    /// Does something that blocks.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, String> {
        let registry = self.registry.clone();
        match spawn_blocking(move || work(&registry)).await {
            Ok(done) => done.map_err(|e| chain(&e)),
            Err(e) => Err(format!("its thread ended: {e}")),
        }
    }

    /// Removes what an agent before left of networks that nobody declares any more.
    async fn clear(&self, declared: &Declared) {
        for net in self.registry.networks.all() {
            let mut objects = declared.networks.values();
            if net.id != DEFAULT && !objects.any(|object| object.meta.uid == net.id) {
                log::info!("network {} is not declared any more: it is removed", net.id);
                if let Err(e) = self.ask(move |all| all.undeclare(&net.id)).await {
                    log::warn!("it stays for now: {e}");
                }
            }
        }
    }

    async fn check(&self) {
        if let Err(e) = self.ask(|registry| registry.networks.check()).await {
            log::warn!("networks are not as they are to be: {e}");
        }
    }

    /// Does what a network needs; false if it has to be tried again.
    async fn see_to(&self, declared: &Declared, key: &str) -> bool {
        let Some(object) = declared.networks.get(key) else {
            return true;
        };
        let done = match object.meta.deletion_timestamp {
            Some(_) => self.remove(declared, object).await,
            None => self.make(object).await,
        };
        match done {
            Ok(done) => done,
            Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => true,
            Err(e) => {
                log::warn!("{}: {e}", object.shown());
                false
            }
        }
    }

    /// Declares a network to the registry, as its object says.
    async fn declare(&self, object: &Object, network: &Network) -> Result<Net, String> {
        let spec = network.spec.clone();
        let kept = network.status.as_ref().map(|status| status.subnet.clone());
        let uid = object.meta.uid.clone();
        let (tenant, name) = (object.meta.namespace.clone(), object.meta.name.clone());
        let made = self.ask(move |registry| {
            let kept = kept.unwrap_or_default();
            let subnet: Subnet = match (spec.subnet.as_deref(), kept.as_str()) {
                (None, "") => registry.networks.choose(&uid)?,
                (None, kept) => kept.parse()?,
                (Some(own), _) => own.parse()?,
            };
            let subnet6 = match &spec.subnet6 {
                Some(text) => Some(text.parse()?),
                None => spec.ipv6.then(|| Subnet6::chosen(&uid)),
            };
            let limits = spec.bandwidth.map(|some| some.limits());
            let net = Net::of(&uid, subnet, subnet6, spec.nat);
            registry.declare(&tenant, &name, &net, limits.unwrap_or_default())?;
            Ok(net)
        });
        made.await
    }

    async fn make(&self, object: &Object) -> Result<bool, ApiError> {
        let network: Network = rest(object)?;
        let made = self.declare(object, &network).await;
        let mut status = network.status.unwrap_or_default();
        let generation = object.meta.generation;
        let conditions = &mut status.conditions;
        match &made {
            Ok(net) => {
                Condition::set(conditions, "Ready", true, "Made", "", generation);
                status.bridge.clone_from(&net.bridge);
                status.subnet = net.subnet.to_string();
                status.subnet6 = net
                    .subnet6
                    .map(|subnet| subnet.to_string())
                    .unwrap_or_default();
            }
            Err(why) => Condition::set(conditions, "Ready", false, "NotMade", why, generation),
        }
        self.say(object, status).await?;
        Ok(made.is_ok())
    }

    /// Removes a network that is to go, when nobody is in it.
    async fn remove(&self, declared: &Declared, object: &Object) -> Result<bool, ApiError> {
        let inside = declared.inside(&self.registry, object);
        if !inside.is_empty() {
            let mut names = inside[..inside.len().min(NAMED)].join(", ");
            if inside.len() > NAMED {
                names += &format!(" and {} more", inside.len() - NAMED);
            }
            let why = format!("it goes when {names} are deleted, or have other networks");
            let network: Network = rest(object)?;
            // Until then it is what it was, also for an agent that has just begun.
            if let Err(e) = self.declare(object, &network).await {
                log::warn!("{}: {e}", object.shown());
            }
            let mut status = network.status.unwrap_or_default();
            let generation = object.meta.generation;
            let conditions = &mut status.conditions;
            Condition::set(conditions, "Removable", false, "InUse", &why, generation);
            self.say(object, status).await?;
            return Ok(false);
        }
        let id = object.meta.uid.clone();
        if let Err(e) = self.ask(move |registry| registry.undeclare(&id)).await {
            log::warn!("{} cannot be removed: {e}", object.shown());
            return Ok(false);
        }
        self.objects.finalized(object, NETWORK).await?;
        Ok(true)
    }

    /// Says how many addresses are in use, if that has changed.
    async fn count(&self, key: &str, object: &Object) {
        let used = self.registry.used(&object.meta.uid);
        let used = u32::try_from(used).unwrap_or(u32::MAX);
        let Ok(Network {
            status: Some(status),
            ..
        }) = rest::<Network>(object)
        else {
            return;
        };
        if status.addresses_used != used
            && let Err(e) = self.say(object, status).await
        {
            log::debug!("{key}: {e}");
        }
    }

    /// Writes a status, if it is another.
    async fn say(&self, object: &Object, mut status: NetworkStatus) -> Result<(), ApiError> {
        status.observed_generation = object.meta.generation;
        let used = self.registry.used(&object.meta.uid);
        status.addresses_used = u32::try_from(used).unwrap_or(u32::MAX);
        let value = serde_json::to_value(&status).unwrap_or_default();
        if object.body.get("status").unwrap_or(&Value::Null) != &value {
            self.objects.set_status(object, value).await?;
        }
        Ok(())
    }
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
