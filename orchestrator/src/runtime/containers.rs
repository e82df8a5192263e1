//! Containers as the agent sees them: the container runtime's calls block, and are made on threads of their
//! own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

use super::container::{
    ContainerError, ContainerSpec, Containers, ExecSpec, MountSpec, Network, ResourceLimits,
    Runtime as Maker, State,
};
use super::{End, Images, Life, Ports, Runtime, RuntimeError, Usage, Volumes, streaming, system};
use crate::firstboot::Seed;
use crate::model::{Container, Object, Placement, RestartPolicy, typed};

/// How long is waited for an end before it is asked again.
const WAIT: Duration = Duration::from_secs(600);
/// After a wait that could not be.
const REST: Duration = Duration::from_millis(200);

/// All containers of a host.
pub struct Shims {
    containers: Arc<Containers>,
    root: PathBuf,
    maker: Maker,
    ports: Arc<Ports>,
    volumes: Volumes,
    images: Images,
}

/// The label of a container with what was declared when it was made.
const DECLARED: &str = "declared";

impl Shims {
    /// Those in `root`, whose namespaces are made by `oci_runtime`, or else by the library that is built in.
    /// What killed shims have left is ended. Containers may mount what is below `shared`, and be made of
    /// `images` of the host's store.
    ///
    /// # Errors
    /// If the directory cannot be used.
    pub fn new(
        root: &Path,
        oci_runtime: Option<&Path>,
        ports: Arc<Ports>,
        shared: &[PathBuf],
        images: Images,
    ) -> Result<Shims, ContainerError> {
        let containers = Containers::new(root)?;
        containers.adopt()?;
        Ok(Shims {
            containers: Arc::new(containers),
            root: root.to_owned(),
            ports,
            volumes: Volumes::new(&root.join("volumes"), shared),
            images,
            maker: match oci_runtime {
                Some(program) => Maker::Program(program.to_owned()),
                None => Maker::BuiltIn,
            },
        })
    }

    /// Does something that blocks.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Containers) -> Result<T, ContainerError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let containers = self.containers.clone();
        match spawn_blocking(move || work(&containers)).await {
            Ok(done) => done.map_err(RuntimeError::Container),
            Err(e) => Err(RuntimeError::Unfit(format!("its thread ended: {e}"))),
        }
    }

    /// What a container is doing; none if there is none. What a killed shim has left is ended.
    async fn state(&self, uid: &str) -> Option<State> {
        let uid = uid.to_owned();
        let state = self.ask(move |containers| match containers.state(&uid) {
            Ok(State::Lost) => containers.stop(&uid, Duration::ZERO),
            other => other,
        });
        state.await.ok()
    }
}

/// Where it finds who resolves names, unless something of its own is there.
fn name_servers(source: PathBuf, mounts: &[MountSpec]) -> Option<MountSpec> {
    let place = Path::new("/etc/resolv.conf");
    let own = mounts.iter().any(|mount| match mount {
        MountSpec::Bind { target, .. } | MountSpec::Memory { target, .. } => {
            place.starts_with(target)
        }
    });
    (!own).then(|| MountSpec::Bind {
        source,
        target: place.to_owned(),
        read_only: true,
    })
}

/// What a container is made of; another one is made when that changes.
fn made_of(wanted: &crate::model::ContainerSpec, mounts: &[MountSpec]) -> String {
    let what = crate::model::ContainerSpec {
        running: true,
        restart_policy: RestartPolicy::default(),
        placement: Placement::default(),
        liveness_probe: None,
        readiness_probe: None,
        ..wanted.clone()
    };
    // What is mounted was found just now: a link that leads elsewhere by now is another mount.
    serde_json::to_string(&(what, mounts)).unwrap_or_default()
}

/// What the runtime is told.
fn spec_of(object: &Object) -> Result<(PathBuf, crate::model::ContainerSpec), RuntimeError> {
    let container: Container = typed(object).map_err(RuntimeError::Field)?;
    Ok((container.spec.image.clone(), container.spec))
}

#[async_trait]
impl Runtime for Shims {
    async fn start(&self, object: &Object) -> Result<Vec<String>, RuntimeError> {
        let (layout, wanted) = spec_of(object)?;
        let (uid, name) = (object.meta.uid.clone(), object.meta.name.clone());
        let maker = self.maker.clone();
        let (ports, declared, networks) =
            (self.ports.clone(), object.clone(), wanted.networks.clone());
        let made = spawn_blocking(move || ports.namespace(&declared, &networks)).await;
        let made = made.map_err(|e| RuntimeError::Unfit(format!("its thread ended: {e}")))??;
        let (network, addresses, names) = match made {
            Some(made) => (Network::Path(made.path), made.addresses, Some(made.names)),
            None => (Network::New, Vec::new(), None),
        };
        let (id, own) = (uid.clone(), wanted.volumes.clone());
        let volumes = self.volumes.clone();
        let seed = wanted.first_boot.as_ref();
        let seed = seed.map(|first| Seed::of(object, first, Vec::new()));
        let hostname = seed.as_ref().map_or(name, |seed| seed.hostname.clone());
        let mounts = spawn_blocking(move || {
            let mut mounts = volumes.ensure(&id, &own)?;
            if let Some(seed) = &seed {
                mounts.extend(volumes.tell(&id, seed)?);
            }
            Ok::<_, RuntimeError>(mounts)
        })
        .await;
        let mut mounts =
            mounts.map_err(|e| RuntimeError::Unfit(format!("its thread ended: {e}")))??;
        mounts.extend(names.and_then(|names| name_servers(names, &mounts)));
        let declared = made_of(&wanted, &mounts);
        let (id, is) = (uid.clone(), declared.clone());
        let as_declared = self.ask(move |containers| {
            let found = containers.spec(&id);
            Ok(found.is_ok_and(|spec| spec.labels.get(DECLARED) == Some(&is)))
        });
        let as_declared = as_declared.await?;
        // Of one that is made already, its image is not asked for again.
        let stored = match as_declared || layout.is_absolute() {
            true => None,
            false => {
                let (images, id, name) = (self.images.clone(), uid.clone(), layout.clone());
                let found = spawn_blocking(move || images.container(&id, &name.to_string_lossy()));
                let found = found.await;
                Some(found.map_err(|e| RuntimeError::Unfit(format!("its thread ended: {e}")))??)
            }
        };
        let started = self.ask(move |containers| {
            if !as_declared {
                containers.delete(&uid)?;
                let image = match stored {
                    Some((store, image)) => containers.prepare_stored(&store, image)?,
                    None => containers.prepare(&layout, None)?,
                };
                let some = |words: Vec<String>| (!words.is_empty()).then_some(words);
                let env: HashMap<_, _> = wanted.env.into_iter().collect();
                let spec = ContainerSpec {
                    command: some(wanted.command),
                    args: some(wanted.args),
                    env: env.into_iter().collect(),
                    hostname: Some(hostname),
                    user: Some(wanted.user).filter(|user| !user.is_empty()),
                    working_dir: wanted.working_dir,
                    read_only: wanted.read_only,
                    mounts,
                    labels: [(DECLARED.to_owned(), declared)].into(),
                    limits: ResourceLimits {
                        cpu_milli: u32::try_from(wanted.cpu.milli()).ok(),
                        memory: Some(wanted.memory.whole()),
                        ..ResourceLimits::default()
                    },
                    runtime: maker,
                    network,
                    ..ContainerSpec::of(image)
                };
                containers.create(&uid, &spec)?;
            }
            containers.start(&uid)
        });
        started.await.map(|()| addresses)
    }

    async fn life(&self, uid: &str) -> Life {
        match self.state(uid).await {
            None | Some(State::Created) => Life::Absent,
            Some(State::Starting | State::Running(_) | State::Lost) => Life::Running,
            Some(State::Exited(exit)) => {
                let how = match (&exit.reason, exit.signal) {
                    _ if exit.oom_kills > 0 => {
                        format!(
                            "it ran out of memory ({} processes were killed)",
                            exit.oom_kills
                        )
                    }
                    (Some(reason), _) => reason.clone(),
                    (None, Some(signal)) => format!("killed by signal {signal}"),
                    (None, None) => format!("exit code {}", exit.code),
                };
                Life::Ended(End {
                    well: exit.code == 0 && exit.oom_kills == 0,
                    how,
                })
            }
        }
    }

    async fn ended(&self, uid: &str) {
        let id = uid.to_owned();
        loop {
            let id = id.clone();
            match self.ask(move |containers| containers.wait(&id, WAIT)).await {
                Ok(State::Running(_) | State::Starting) => tokio::time::sleep(REST).await,
                _ => return,
            }
        }
    }

    async fn stop(&self, uid: &str, grace: Duration) -> Result<(), RuntimeError> {
        if self.state(uid).await.is_none() {
            return Ok(());
        }
        let uid = uid.to_owned();
        self.ask(move |containers| containers.stop(&uid, grace).map(drop))
            .await
    }

    async fn remove(&self, uid: &str) -> Result<(), RuntimeError> {
        let (ports, owned) = (self.ports.clone(), uid.to_owned());
        let (gone, volumes) = (owned.clone(), self.volumes.clone());
        let images = self.images.clone();
        self.ask(move |containers| containers.delete(&owned))
            .await?;
        let detached = spawn_blocking(move || {
            volumes.remove(&gone)?;
            images.release(&gone)?;
            ports.detach(&gone)
        });
        let detached = detached.await;
        detached.map_err(|e| RuntimeError::Unfit(format!("its thread ended: {e}")))?
    }

    async fn attempt(&self, uid: &str, command: &[String], limit: Duration) -> Result<(), String> {
        let spec = ExecSpec {
            args: command.to_vec(),
            ..ExecSpec::default()
        };
        let uid = uid.to_owned();
        let ran = self.ask(move |containers| containers.exec(&uid, &spec)?.finish(limit));
        let (code, said) = ran.await.map_err(|e| e.to_string())?;
        match (code, said.is_empty()) {
            (0, _) => Ok(()),
            (code, true) => Err(format!("it ended with {code}")),
            (code, false) => Err(format!("it ended with {code}: {said}")),
        }
    }

    fn log(&self, uid: &str) -> Option<PathBuf> {
        let log = self.containers.logs(uid);
        // One that is not made yet may be, soon.
        Some(log.unwrap_or_else(|_| self.root.join("containers").join(uid).join("log")))
    }

    async fn exec(&self, uid: &str, spec: ExecSpec) -> Result<UnixStream, RuntimeError> {
        let uid = uid.to_owned();
        let connection = self.ask(move |containers| containers.exec_connection(&uid, &spec));
        streaming(connection.await?).map_err(system("talk to the command"))
    }

    async fn usage(&self, uids: Vec<String>) -> HashMap<String, Usage> {
        let used = self.ask(move |containers| Ok(containers.usage(uids))).await;
        used.unwrap_or_default()
    }

    async fn found(&self) -> Result<Vec<String>, RuntimeError> {
        let found = self.ask(Containers::adopt).await?;
        Ok(found.into_iter().map(|found| found.id).collect())
    }
}
