//! `skerry up`: the store, the API and the agent of a host in one process.

mod pki;
mod state;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

pub use pki::PkiError;
pub use state::State;

use crate::api::{ApiError, Listening, Objects, router, sweep};
use crate::metadata::Metadata;
use crate::model::{BareMetal, Container, Meta, MicroVM, Namespace, untyped};
use crate::network::services::{Names, Services, Terms};
use crate::network::{NetworkError, Registry, Subnet, keeper};
use crate::runtime::container::ContainerError;
use crate::runtime::{Claims, Images, Pool, Ports, Shares, Shims, Vmm, Vms, monitor_of};
use crate::site::{Agent, AgentError, Owners, Placer, Runtimes, count};
use crate::store::{Embedded, StoreError};
use crate::telemetry::{Counted, Sampler, Telemetry};
use crate::ui;
use crate::volumes::{Blocks, Keeper};

/// How a host is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept.
    pub state: PathBuf,
    /// Where clients with certificates or tokens connect; nowhere if none.
    pub listen: Option<String>,
    /// This host's name.
    pub host: String,
    /// The monitor.
    pub vmm: PathBuf,
    /// What makes containers' namespaces, with runc's command line; the library that is built in if none.
    pub oci_runtime: Option<PathBuf>,
    /// Directories of the host's whose contents containers may mount, and VMs share.
    pub share: Vec<PathBuf>,
    /// What serves VMs' shares; the host's own if none.
    pub virtiofsd: Option<PathBuf>,
    /// The addresses of the network `default`.
    pub subnet: Subnet,
    /// The addresses of services.
    pub service_subnet: Subnet,
    /// Elastic addresses that may be taken; all if there is none.
    pub elastic: Vec<Subnet>,
    /// Monitors find out whether this host's KVM can run Linux.
    pub probe: bool,
    /// Monitors that wait for clones.
    pub warm: usize,
}

/// Why a host does not run, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// Something of the system.
    #[error("cannot {what} {place}")]
    System {
        /// What was tried, as a verb.
        what: &'static str,
        /// With what.
        place: String,
        /// Why not.
        source: io::Error,
    },
    /// The store cannot be used.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// An object cannot be made.
    #[error("the first objects cannot be made")]
    Api(#[from] ApiError),
    /// What there is of the network cannot be found.
    #[error("the network cannot be looked at")]
    Network(#[from] NetworkError),
    /// Services would have addresses of workloads.
    #[error(
        "the subnets of services, {services}, and of the network, {network}, overlap: give another --service-subnet"
    )]
    Overlap {
        /// That of services.
        services: Subnet,
        /// That of the network `default`.
        network: Subnet,
    },
    /// Containers cannot be found.
    #[error("containers cannot be run")]
    Containers(#[from] ContainerError),
    /// The agent cannot start.
    #[error("the agent cannot start")]
    Agent(#[from] AgentError),
    /// The certificates cannot be made.
    #[error("the certificates cannot be made")]
    Pki(#[from] PkiError),
}

/// A failure of the system.
fn system(what: &'static str, place: impl ToString) -> impl FnOnce(io::Error) -> UpError {
    let place = place.to_string();
    move |source| UpError::System {
        what,
        place,
        source,
    }
}

/// Threads for what blocks: each container that runs has one, which waits for its end.
const BLOCKING: usize = 8192;

/// Runs a host until it is asked to end. What runs on it goes on.
///
/// # Errors
/// Why it cannot.
pub fn run(options: Options) -> Result<(), UpError> {
    // One thread serves the API and reconciles; what blocks has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING)
        .build()
        .map_err(system("start", "the runtime"))?;
    let served = runtime.block_on(serve(options));
    // Threads that wait for containers' ends would keep us for as long.
    runtime.shutdown_background();
    served
}

async fn serve(options: Options) -> Result<(), UpError> {
    let (services, network) = (options.service_subnet, options.subnet);
    if services.meets(network.base(), network.prefix()) {
        return Err(UpError::Overlap { services, network });
    }
    let state = State::open(&options.state)?;
    let (store, stored) = Counted::around(Arc::new(Embedded::open(&state.store())?));
    let objects = Objects::new(store);
    first_objects(&objects).await?;
    // Monitors are started elsewhere.
    let vmm = std::path::absolute(&options.vmm).map_err(system("find", options.vmm.display()))?;
    let registry = Registry::open(options.subnet, &state.namespaces())?;
    let ports = Ports::new(registry.clone(), &state.resolvers());
    let images = Images::new(&state.images());
    let shims = Shims::new(
        &state.containers(),
        options.oci_runtime.as_deref(),
        ports.clone(),
        &options.share,
        images.clone(),
    )?;
    let vmm = Arc::new(Vmm::new(&vmm, options.probe));
    let pool = Arc::new(Pool::new(&state.warm(), vmm.clone(), options.warm));
    let virtiofsd = options.virtiofsd.as_deref().map(std::path::absolute);
    let virtiofsd = virtiofsd.transpose().map_err(system("find", "virtiofsd"))?;
    let shares = Shares::new(&options.share, virtiofsd.as_deref());
    let homes = state.vms();
    let blocks = Arc::new(Blocks::new(
        objects.clone(),
        &options.host,
        state.path(),
        move |uid| monitor_of(&homes, uid),
    ));
    let vms = Vms::new(
        &state.vms(),
        vmm,
        pool.clone(),
        ports,
        images,
        blocks.clone(),
        shares,
    );
    let vms = Arc::new(vms);
    let runtimes = Runtimes::default()
        .with::<MicroVM>(vms)
        .with::<Container>(Arc::new(shims))
        .with::<BareMetal>(Arc::new(Claims::new(objects.clone(), &options.host)));
    let placer = Arc::new(Placer::new(objects.clone()));
    let app = router(objects.clone(), Arc::new(runtimes.clone()), placer.clone());
    let seen = objects.clone();
    let sampler = Sampler::new(
        seen.clone(),
        runtimes.clone(),
        &options.host,
        options.state.clone(),
    );
    let app = Telemetry::new(seen, sampler, stored, placer.counts().clone()).around(app);
    let app = ui::around(app);
    let socket = state.socket();
    let local = Listening::unix(&socket).map_err(system("listen on", socket.display()))?;
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(local.serve(app.clone()));
    if let Some(address) = &options.listen {
        let tls = pki::prepare(&state, address)?;
        let remote = Listening::tls(address, &tls).await;
        servers.spawn(remote.map_err(system("listen on", address))?.serve(app));
        log::info!("kubectl --kubeconfig {}", state.kubeconfig().display());
    }
    let mut term = signal(SignalKind::terminate()).map_err(system("catch", "SIGTERM"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(system("catch", "SIGINT"))?;
    let swept = objects.clone();
    let owners = Owners::new(objects.clone());
    let terms = Terms {
        host: options.host.clone(),
        pool: options.service_subnet,
        elastic: options.elastic,
    };
    let names = Names::default();
    registry.set_services(Arc::new(names.clone()));
    let services = Services::new(objects.clone(), terms, names);
    let networks = keeper::Keeper::new(objects.clone(), registry.clone());
    let agent = Agent::new(objects, &options.host, &options.state, runtimes, placer);
    agent.register().await?;
    tokio::spawn(agent.run());
    tokio::spawn(owners.run());
    tokio::spawn(Keeper::new(blocks).run());
    tokio::spawn(count(swept.clone()));
    tokio::spawn(Metadata::new(swept.clone(), &options.host).run());
    tokio::spawn(services.run());
    tokio::spawn(networks.run());
    tokio::spawn(crate::network::serve::serve(registry));
    let keeping = pool.clone();
    let keeping = tokio::spawn(async move { keeping.keep().await });
    tokio::spawn(sweep(swept));
    log::info!("this is {}, on {}", options.host, socket.display());
    let ended = tokio::select! {
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        Some(ended) = servers.join_next() => {
            let ended = ended.unwrap_or_else(|e| Err(io::Error::other(e)));
            ended.map_err(system("serve", "the API"))
        }
    };
    let _ = std::fs::remove_file(&socket);
    // Who waits for a clone would wait for ever.
    keeping.abort();
    pool.clear().await;
    ended
}

/// What every host has from the beginning.
async fn first_objects(objects: &Objects) -> Result<(), ApiError> {
    let meta = Meta {
        name: "default".to_owned(),
        ..Meta::default()
    };
    let object = untyped(meta, &Namespace::default());
    match objects.create(object, false).await {
        Ok(_) | Err(ApiError::Exists { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}
