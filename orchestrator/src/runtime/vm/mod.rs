//! MicroVMs: a folder and a monitor each. The monitor is known by its socket: whoever listens on it is it.

mod cgroup;
mod clone;
mod disks;
mod home;
mod monitor;
mod pool;
mod process;
mod served;
mod shares;
mod sockets;
mod usage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use skerry_exec::ExecSpec;
use skerry_vmm_api::client::{Client, ClientError};
use skerry_vmm_api::endpoints::Operation;
use tokio::net::UnixStream;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};

use self::cgroup::Share;
use self::clone::CloneOf;
use self::home::Home;
use self::monitor::Monitor;
pub use self::monitor::Vmm;
pub use self::pool::Pool;
use self::served::Served;
pub use self::shares::Shares;
use super::{End, Images, Life, Ports, Runtime, RuntimeError, Usage, guest, system};
use crate::firstboot::{Seed, Told};
use crate::model::{MicroVM, MicroVmSpec, Object, typed};
use crate::network::Tap;
use crate::volumes::{Blocks, Chains, VolumeError};

/// How long a monitor may take until it answers.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is said of one that does not.
const SILENT: &str = "the monitor does not answer; its log is monitor.log in the VM's folder";
/// How often is looked whether one that somebody else started listens.
const LOOK: Duration = Duration::from_millis(2);
/// One that ends by itself is gone within this.
const ENDING: Duration = Duration::from_secs(5);
/// A killed monitor is gone within this, unless its host is in trouble.
const KILLED: Duration = Duration::from_secs(20);

/// All microVMs of a host.
pub struct Vms {
    root: PathBuf,
    vmm: Arc<Vmm>,
    pool: Arc<Pool>,
    ports: Arc<Ports>,
    images: Images,
    blocks: Arc<Blocks>,
    shares: Arc<Shares>,
    monitors: Mutex<HashMap<String, Monitor>>,
    /// Servers of VMs' shares; those of a VM that an agent before has started are found when somebody asks.
    served: Mutex<HashMap<String, Served>>,
}

impl Vms {
    /// Those with folders in `root`, run by `vmm`; clones get monitors of the `pool` if any wait there. Disks may be
    /// `images` of the host's store, and volumes of `blocks`; `shares` says which directories they may share.
    pub fn new(
        root: &Path,
        vmm: Arc<Vmm>,
        pool: Arc<Pool>,
        ports: Arc<Ports>,
        images: Images,
        blocks: Arc<Blocks>,
        shares: Shares,
    ) -> Vms {
        Vms {
            root: root.to_owned(),
            vmm,
            pool,
            ports,
            images,
            blocks,
            shares: Arc::new(shares),
            monitors: Mutex::new(HashMap::new()),
            served: Mutex::new(HashMap::new()),
        }
    }

    fn home(&self, uid: &str) -> Home {
        Home::new(&self.root, uid)
    }

    /// The monitor of a VM, which may have been started by an agent before.
    fn monitor(&self, uid: &str) -> Option<Monitor> {
        let mut monitors = self.monitors.lock();
        if let Some(monitor) = monitors.get(uid) {
            return Some(monitor.clone());
        }
        let monitor = Monitor::adopt(&self.home(uid).socket())?;
        monitors.insert(uid.to_owned(), monitor.clone());
        Some(monitor)
    }

    /// Refuses what only one that runs can do. A monitor that nobody has looked at yet may have no VM.
    async fn running(&self, uid: &str) -> Result<(), RuntimeError> {
        let known = self.monitors.lock().get(uid).cloned();
        let home = self.home(uid);
        let runs = match known {
            Some(monitor) => !monitor.has_ended(),
            None => Monitor::adopt(&home.socket()).is_some() && !self.is_empty(&home).await,
        };
        match runs {
            true => Ok(()),
            false => Err(RuntimeError::Unfit("it does not run".to_owned())),
        }
    }

    /// The monitor of a VM, also one that a killed agent has just started and that does not listen yet.
    async fn settled(&self, uid: &str) -> Option<Monitor> {
        let (home, deadline) = (self.home(uid), Instant::now() + PATIENCE);
        loop {
            match self.monitor(uid) {
                None if home.is_taken() && Instant::now() < deadline => sleep(LOOK).await,
                found => return found,
            }
        }
    }

    async fn launch(&self, object: &Object) -> Result<Vec<String>, RuntimeError> {
        let vm: MicroVM = typed(object).map_err(RuntimeError::Field)?;
        let (uid, spec) = (&object.meta.uid, vm.spec);
        let chains = self.blocks.claim(object, &spec).await.map_err(unclaimed)?;
        let home = self.home(uid);
        let (ports, declared, mut wanted) = (self.ports.clone(), object.clone(), spec.clone());
        let images = self.images.clone();
        let made = tokio::task::spawn_blocking(move || {
            images.find_snapshot(&mut wanted)?;
            let clone = CloneOf::of(&wanted)?;
            Ok::<_, RuntimeError>((clone, ports.taps(&declared, &wanted.networks)?))
        });
        let made = made.await.map_err(|e| system("make ports")(e.into()))?;
        let (clone, (taps, addresses, words)) = made?;
        let share = Share::of(&spec);
        match clone {
            Some(clone) => {
                self.restore(uid, &home, &clone, &taps).await?;
            }
            None => {
                let ports = (taps.as_slice(), words.as_str());
                self.boot(object, &home, spec, ports, chains).await?;
            }
        }
        self.confine(uid, share).await;
        Ok(addresses)
    }

    /// Moves a monitor into its cgroup. That takes the kernel some milliseconds, so its guest runs already.
    async fn confine(&self, uid: &str, share: Share) {
        let Some(monitor) = self.monitor(uid) else {
            return;
        };
        let (owned, pid) = (uid.to_owned(), monitor.pid());
        let moved = tokio::task::spawn_blocking(move || cgroup::enter(&owned, pid, share)).await;
        match moved.unwrap_or_else(|e| Err(e.into())) {
            Ok(()) => {}
            // It may be quicker than this.
            Err(_) if monitor.has_ended() => {}
            Err(e) => log::warn!("VM {uid} runs without limits, as cgroups cannot be used: {e}"),
        }
    }

    /// Boots a kernel.
    async fn boot(
        &self,
        object: &Object,
        home: &Home,
        spec: MicroVmSpec,
        (taps, words): (&[Tap], &str),
        chains: Chains,
    ) -> Result<(), RuntimeError> {
        home.make().map_err(system("make the VM's folder"))?;
        let uid = &object.meta.uid;
        let (folder, mut wanted) = (home.clone(), spec.clone());
        let (images, owned) = (self.images.clone(), uid.to_owned());
        let told = taps.iter().enumerate();
        let told = told.map(|(n, tap)| Told::of(n, &tap.mac.to_string(), words));
        let seed = spec.first_boot.as_ref();
        let seed = seed.map(|first| Seed::of(object, first, told.collect()));
        let disks = tokio::task::spawn_blocking(move || {
            images.resolve(&owned, &mut wanted)?;
            let mut flags = disks::ensure(&folder, &wanted, &chains)?;
            flags.extend(disks::seed(&folder, seed.as_ref())?);
            Ok::<_, RuntimeError>((flags, wanted.boot))
        });
        let disks = disks.await.map_err(|e| system("make disks")(e.into()))?;
        let (disks, boot) = disks?;
        let spec = MicroVmSpec { boot, ..spec };
        let mut arguments = monitor::arguments(home, &spec, &disks)?;
        monitor::add_networks(&mut arguments, taps, words);
        monitor::add_shares(&mut arguments, self.serve(uid, home, &spec).await?);
        let monitor = match self.vmm.start(home, &arguments) {
            Ok(monitor) => monitor,
            Err(e) => {
                self.unserve(uid, home).await?;
                return Err(e);
            }
        };
        self.monitors.lock().insert(uid.clone(), monitor.clone());
        let started = self.answers(home, &monitor).await;
        if started.is_err() {
            monitor.kill();
        }
        started
    }

    /// Makes a clone, in a monitor that waits for one if there is any.
    async fn restore(
        &self,
        uid: &str,
        home: &Home,
        clone: &CloneOf,
        taps: &[Tap],
    ) -> Result<(), RuntimeError> {
        if let Some(monitor) = self.pool.take(home, &clone.size()) {
            match self.restore_in(monitor, uid, home, clone, taps).await {
                // It has died while it waited, which is no fault of the clone's.
                Err(RuntimeError::Monitor(
                    ClientError::Connect { .. } | ClientError::Http { .. },
                )) => {}
                made => return made,
            }
        }
        let monitor = self.vmm.start_empty(home).await?;
        self.restore_in(monitor, uid, home, clone, taps).await
    }

    /// Makes a clone in a monitor without a VM.
    async fn restore_in(
        &self,
        monitor: Monitor,
        uid: &str,
        home: &Home,
        clone: &CloneOf,
        taps: &[Tap],
    ) -> Result<(), RuntimeError> {
        self.monitors.lock().insert(uid.to_owned(), monitor.clone());
        let made = home.fresh_layers();
        made.map_err(system("make a folder for the clone's layers"))?;
        let client = Client::new(&home.socket());
        let request = clone.request(uid, home, taps);
        let asked = timeout(PATIENCE, client.restore(&request)).await;
        settle(&monitor, &asked).await;
        let refused = match asked {
            Ok(Ok(_)) => return Ok(()),
            // A guest may be quicker than the answer.
            _ if monitor.has_ended() && monitor.end(home).well => return Ok(()),
            Ok(Err(e)) => RuntimeError::Monitor(e),
            Err(_) => RuntimeError::Unfit(SILENT.to_owned()),
        };
        // It never was this VM's: nothing is told of its end.
        self.monitors.lock().remove(uid);
        self.discard(home, &monitor).await;
        Err(refused)
    }

    /// Ends a monitor that has no VM.
    async fn discard(&self, home: &Home, monitor: &Monitor) {
        monitor.kill();
        let _ = timeout(KILLED, monitor.ended()).await;
        if let Err(e) = home.forget_run() {
            log::warn!("{} stays: {e}", home.socket().display());
        }
    }

    /// Waits until a monitor's VM runs.
    async fn answers(&self, home: &Home, monitor: &Monitor) -> Result<(), RuntimeError> {
        let listens = self.vmm.listens(home, monitor).await;
        // It answers when it has made its VM.
        let client = Client::new(&home.socket());
        let asked = timeout(PATIENCE, client.info()).await;
        settle(monitor, &asked).await;
        match asked {
            Ok(Ok(_)) => Ok(()),
            // A guest may be quicker than this.
            _ if monitor.has_ended() && monitor.end(home).well => Ok(()),
            _ if monitor.has_ended() => Err(RuntimeError::Stillborn(home.last_words())),
            Ok(Err(e)) if listens => Err(RuntimeError::Monitor(e)),
            _ => Err(RuntimeError::Unfit(SILENT.to_owned())),
        }
    }

    /// Whether a monitor that an agent before left has no VM: that one took it from the pool for this VM, and was
    /// killed before it could say what to make.
    async fn is_empty(&self, home: &Home) -> bool {
        let asked = timeout(PATIENCE, Client::new(&home.socket()).info()).await;
        matches!(asked, Ok(Err(ClientError::Refused { status: 404, .. })))
    }
}

/// The socket of the monitor that has a VM's folder in `root`, if one has.
pub fn monitor_of(root: &Path, uid: &str) -> Option<PathBuf> {
    let home = Home::new(root, uid);
    home.is_taken().then(|| home.socket())
}

/// Why a VM cannot have its volumes.
fn unclaimed(error: VolumeError) -> RuntimeError {
    match error {
        VolumeError::Waits(what) => RuntimeError::Waits(what),
        error => RuntimeError::Volumes(error),
    }
}

/// Who does not finish an answer, or says so, is ending: waits until it has, so that it is known how.
async fn settle<T>(monitor: &Monitor, asked: &Result<Result<T, ClientError>, Elapsed>) {
    let is_ending = |e: &ClientError| {
        let cut = matches!(e, ClientError::Connect { .. } | ClientError::Http { .. });
        cut || matches!(e, ClientError::Refused { status: 503, .. })
    };
    if let Ok(Err(e)) = asked
        && is_ending(e)
    {
        let _ = timeout(ENDING, monitor.ended()).await;
    }
}

#[async_trait]
impl Runtime for Vms {
    async fn start(&self, object: &Object) -> Result<Vec<String>, RuntimeError> {
        self.launch(object).await
    }

    async fn life(&self, uid: &str) -> Life {
        let known = self.monitors.lock().contains_key(uid);
        let home = self.home(uid);
        match self.monitor(uid) {
            Some(monitor) if !known && self.is_empty(&home).await => {
                self.monitors.lock().remove(uid);
                self.discard(&home, &monitor).await;
                Life::Absent
            }
            Some(monitor) => {
                if !monitor.has_ended() {
                    self.end_unserved(uid, &monitor).await;
                }
                match monitor.has_ended() {
                    false => Life::Running,
                    true => Life::Ended(self.end(uid, &home, &monitor)),
                }
            }
            None if home.ran() => Life::Ended(End {
                well: false,
                how: "it ended while nobody looked".to_owned(),
            }),
            None => Life::Absent,
        }
    }

    async fn ended(&self, uid: &str) {
        let Some(monitor) = self.monitor(uid) else {
            return;
        };
        let served = self.served(uid).await.daemons;
        let unserved = served.iter().map(|one| Box::pin(one.ended()));
        let unserved: Vec<_> = unserved.collect();
        if unserved.is_empty() {
            return monitor.ended().await;
        }
        tokio::select! {
            () = monitor.ended() => {}
            _ = futures_util::future::select_all(unserved) => {}
        }
    }

    async fn stop(&self, uid: &str, grace: Duration) -> Result<(), RuntimeError> {
        let home = self.home(uid);
        if let Some(monitor) = self.settled(uid).await {
            let client = Client::new(&home.socket());
            // A guest that does not listen is ended all the same, a little later.
            let _ = timeout(grace, async {
                let _ = client.act(Operation::VmPowerButton).await;
                monitor.ended().await;
            })
            .await;
            monitor.kill();
            if timeout(KILLED, monitor.ended()).await.is_err() {
                let what = format!("end the monitor, process {}", monitor.pid());
                return Err(system(what)(std::io::ErrorKind::TimedOut.into()));
            }
            self.monitors.lock().remove(uid);
        }
        if home.is_taken() {
            let what = format!(
                "end what holds {}: it does not listen",
                home.lock().display()
            );
            return Err(system(what)(std::io::ErrorKind::TimedOut.into()));
        }
        self.unserve(uid, &home).await?;
        let owned = uid.to_owned();
        let removed = tokio::task::spawn_blocking(move || cgroup::remove(&owned)).await;
        let removed = removed.unwrap_or_else(|e| Err(e.into()));
        removed.map_err(system("remove the VM's cgroup"))?;
        self.blocks.ended(uid).await;
        home.forget_run().map_err(system("clean the VM's folder"))
    }

    async fn remove(&self, uid: &str) -> Result<(), RuntimeError> {
        let (ports, owned) = (self.ports.clone(), uid.to_owned());
        let detached = tokio::task::spawn_blocking(move || ports.detach(&owned)).await;
        detached.map_err(|e| system("remove its port")(e.into()))??;
        self.home(uid)
            .remove()
            .map_err(system("remove the VM's folder"))?;
        // Its layers lie on its images, and are gone now.
        let (images, owned) = (self.images.clone(), uid.to_owned());
        let released = tokio::task::spawn_blocking(move || images.release(&owned)).await;
        released.map_err(|e| system("give its images back")(e.into()))?
    }

    fn vsock(&self, uid: &str) -> Option<PathBuf> {
        Some(self.home(uid).vsock())
    }

    fn log(&self, uid: &str) -> Option<PathBuf> {
        Some(self.home(uid).console())
    }

    async fn exec(&self, uid: &str, spec: ExecSpec) -> Result<UnixStream, RuntimeError> {
        self.running(uid).await?;
        guest::exec(&self.home(uid).vsock(), spec).await
    }

    async fn console(&self, uid: &str) -> Result<UnixStream, RuntimeError> {
        self.running(uid).await?;
        let connected = UnixStream::connect(self.home(uid).console_socket()).await;
        connected.map_err(system("connect to its console"))
    }

    async fn usage(&self, uids: Vec<String>) -> HashMap<String, Usage> {
        let running = |uid: String| {
            let known = self.monitors.lock().get(&uid).cloned();
            let monitor = known.filter(|monitor| !monitor.has_ended())?;
            Some(usage::Running {
                pid: monitor.pid(),
                socket: self.home(&uid).socket(),
                uid,
            })
        };
        usage::look(uids.into_iter().filter_map(running).collect()).await
    }

    async fn found(&self) -> Result<Vec<String>, RuntimeError> {
        home::all(&self.root).map_err(system("read the VMs' folders"))
    }
}
