//! The agent's rounds: which workloads there are, and a task for each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::to_value;
use skerry_exec::ExecSpec;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::events::Events;
use super::inventory;
use super::place::Placer;
use super::space;
use super::workload::{Desk, run};
use crate::api::reach::Reach;
use crate::api::{ApiError, Logs, ObjectWatch, Objects, Seen, Selector};
use crate::model::{BareMetal, Host, HostSpec, Kind, Meta, Object, Resource, kind_of, untyped};
use crate::runtime::{Runtime, RuntimeError, Usage};

/// Events are kept so long.
const EVENTS: u64 = 3600;
/// Old ones are looked for this often.
const SWEEP: Duration = Duration::from_secs(600);
/// Between attempts when the store does not answer.
const REST: Duration = Duration::from_secs(1);

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The store does not answer.
    #[error("cannot read what is declared")]
    Api(#[from] ApiError),
    /// What is here cannot be found.
    #[error("cannot find what runs here")]
    Runtime(#[from] RuntimeError),
}

/// What runs the kinds of workloads.
#[derive(Clone, Default)]
pub struct Runtimes(Vec<(&'static Kind, Arc<dyn Runtime>)>);

impl Runtimes {
    /// Workloads of a kind are run by `runtime`.
    pub fn with<R: Resource>(mut self, runtime: Arc<dyn Runtime>) -> Runtimes {
        self.0.push((kind_of::<R>(), runtime));
        self
    }

    /// The kinds that are run.
    pub fn kinds(&self) -> impl Iterator<Item = &'static Kind> {
        self.0.iter().map(|(kind, _)| *kind)
    }

    /// What those use that run, of these of a kind, by their uids.
    pub async fn usage(&self, kind: &Kind, uids: Vec<String>) -> HashMap<String, Usage> {
        match self.0.iter().find(|(found, _)| *found == kind) {
            Some((_, runtime)) => runtime.usage(uids).await,
            None => HashMap::new(),
        }
    }

    /// What runs an object.
    fn of(&self, object: &Object) -> Result<&dyn Runtime, RuntimeError> {
        let found = self.0.iter().find(|(kind, _)| *kind == object.kind);
        let found = found.map(|(_, runtime)| &**runtime);
        found.ok_or_else(|| {
            let what = format!(
                "a {} runs nothing that could be entered",
                object.kind.singular
            );
            RuntimeError::Unfit(what)
        })
    }
}

impl Logs for Runtimes {
    fn log(&self, object: &Object) -> Option<PathBuf> {
        let found = self.0.iter().find(|(kind, _)| *kind == object.kind);
        found.and_then(|(_, runtime)| runtime.log(&object.meta.uid))
    }
}

#[async_trait]
impl Reach for Runtimes {
    async fn exec(&self, object: &Object, spec: ExecSpec) -> Result<UnixStream, RuntimeError> {
        self.of(object)?.exec(&object.meta.uid, spec).await
    }

    async fn console(&self, object: &Object) -> Result<UnixStream, RuntimeError> {
        self.of(object)?.console(&object.meta.uid).await
    }
}

/// An agent.
pub struct Agent {
    objects: Objects,
    events: Events,
    host: String,
    /// Where workloads' files are.
    state: PathBuf,
    runtimes: Runtimes,
    placer: Arc<Placer>,
}

/// A workload, by its kind, namespace and name.
type Key = (&'static str, String, String);

/// The tasks of workloads.
#[derive(Default)]
struct Tasks {
    bells: HashMap<Key, Arc<Notify>>,
    running: JoinSet<Key>,
}

impl Tasks {
    /// Lets all look.
    fn ring_all(&self) {
        self.bells.values().for_each(|bell| bell.notify_one());
    }
}

impl Agent {
    /// That of a host, whose workloads' files lie in `state`.
    pub fn new(
        objects: Objects,
        host: &str,
        state: &Path,
        runtimes: Runtimes,
        placer: Arc<Placer>,
    ) -> Agent {
        Agent {
            events: Events::new(objects.clone(), host),
            placer,
            objects,
            host: host.to_owned(),
            state: state.to_owned(),
            runtimes,
        }
    }

    /// Says what this host has.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn register(&self) -> Result<(), AgentError> {
        let meta = Meta {
            name: self.host.clone(),
            ..Meta::default()
        };
        let host = Host {
            spec: HostSpec::default(),
            status: Some(inventory::look(&self.state)),
        };
        let object = untyped(meta, &host);
        match self.objects.create(object.clone(), false).await {
            Ok(_) => {}
            Err(ApiError::Exists { .. }) => {
                let status = to_value(&host.status).unwrap_or_default();
                match self.objects.set_status(&object, status).await {
                    // What runs is looked after on a full disk, too.
                    Err(e @ (ApiError::Full(_) | ApiError::Later(_))) => {
                        log::warn!("what this host has is not noted: {e}");
                    }
                    other => drop(other?),
                }
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Works for ever.
    pub async fn run(self) {
        tokio::spawn(space::watch(
            self.objects.clone(),
            self.host.clone(),
            self.state.clone(),
        ));
        // What is under way goes on when the watches begin again.
        let mut tasks = Tasks::default();
        loop {
            match self.rounds(&mut tasks).await {
                Ok(()) => {}
                Err(AgentError::Api(ApiError::Gone(_))) => continue,
                Err(e) => log::error!("the agent begins again: {e}"),
            }
            tokio::time::sleep(REST).await;
        }
    }

    async fn rounds(&self, tasks: &mut Tasks) -> Result<(), AgentError> {
        let mut watches = Vec::new();
        for (kind, runtime) in &self.runtimes.0 {
            let all = Selector::default();
            let list = self.objects.list(kind, "", &all, usize::MAX, "").await?;
            self.clear(runtime, &list.objects).await?;
            let watch = self.objects.watch(kind, "", all, list.revision).await?;
            for object in &list.objects {
                self.ring(tasks, runtime, object);
            }
            watches.push((watch, runtime.clone()));
        }
        let hosts = kind_of::<Host>();
        let named = Selector::parse("", &format!("metadata.name={}", self.host));
        let named = named.map_err(ApiError::Request)?;
        let list = self.objects.list(hosts, "", &named, 1, "").await?;
        let mut host = self.objects.watch(hosts, "", named, list.revision).await?;
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                seen = next(&mut watches) => {
                    let (seen, runtime) = seen?;
                    for seen in seen {
                        let (Seen::Added(object) | Seen::Modified(object) | Seen::Deleted(object)) = seen;
                        self.ring(tasks, &runtime, &object);
                        if object.kind == kind_of::<BareMetal>() {
                            // What others may do changes with it.
                            tasks.ring_all();
                        }
                    }
                }
                changed = host.next() => {
                    changed?;
                    tasks.ring_all();
                }
                Some(ended) = tasks.running.join_next() => {
                    match ended {
                        Ok(key) => self.look_again(tasks, &key).await?,
                        // Nothing here panics; if it does, all is looked at again.
                        Err(e) => return Err(AgentError::Api(ApiError::Request(e.to_string()))),
                    }
                }
                _ = sweep.tick() => {
                    if let Err(e) = self.events.forget(EVENTS).await {
                        log::warn!("old events stay: {e}");
                    }
                }
            }
        }
    }

    /// A workload's task has ended, as its object was gone. If there is another one by now, whose bell it did
    /// not hear any more, that one gets a task.
    async fn look_again(&self, tasks: &mut Tasks, key: &Key) -> Result<(), AgentError> {
        tasks.bells.remove(key);
        let (kind, namespace, name) = key;
        let mut runtimes = self.runtimes.0.iter();
        let Some((kind, runtime)) = runtimes.find(|(found, _)| found.kind == *kind) else {
            return Ok(());
        };
        match self.objects.get(kind, namespace, name).await {
            Ok(object) => self.ring(tasks, runtime, &object),
            Err(ApiError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Lets the task of a workload look at it, and starts it if there is none.
    fn ring(&self, tasks: &mut Tasks, runtime: &Arc<dyn Runtime>, object: &Object) {
        let (namespace, name) = (object.meta.namespace.clone(), object.meta.name.clone());
        let key = (object.kind.kind, namespace, name);
        if let Some(bell) = tasks.bells.get(&key) {
            return bell.notify_one();
        }
        let bell = Arc::new(Notify::new());
        bell.notify_one();
        tasks.bells.insert(key.clone(), bell.clone());
        let desk = Desk {
            objects: self.objects.clone(),
            events: self.events.clone(),
            host: self.host.clone(),
            runtime: runtime.clone(),
            placer: self.placer.clone(),
        };
        let object = object.clone();
        tasks.running.spawn(async move {
            run(desk, object, bell).await;
            key
        });
    }

    /// Ends and removes what nobody declares any more.
    async fn clear(
        &self,
        runtime: &Arc<dyn Runtime>,
        declared: &[Object],
    ) -> Result<(), AgentError> {
        for uid in runtime.found().await? {
            if !declared.iter().any(|object| object.meta.uid == uid) {
                log::info!("{uid} is not declared any more: it is removed");
                runtime.stop(&uid, Duration::ZERO).await?;
                runtime.remove(&uid).await?;
            }
        }
        Ok(())
    }
}

/// The next changes of any of some watches.
async fn next(
    watches: &mut [(ObjectWatch, Arc<dyn Runtime>)],
) -> Result<(Vec<Seen>, Arc<dyn Runtime>), ApiError> {
    let waits = watches.iter_mut().map(|(watch, runtime)| {
        let runtime = runtime.clone();
        Box::pin(async move { watch.next().await.map(|seen| (seen, runtime)) })
    });
    futures_util::future::select_all(waits).await.0
}
