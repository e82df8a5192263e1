//! The machine's I/O workers by name: started, revived, looked at, and given queues.

use std::io;
use std::sync::Arc;

use skerry_devices::worker::{PollCap, PollSettings, Worker, WorkerHandle};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::workers::{
    DEFAULT_WORKER, PollMax, VmMoveQueues, VmSetWorker, WorkerConfig, WorkerInfo, WorkerQueueInfo,
};
use thiserror::Error;

use crate::machine::pin;
use crate::sandbox::{Sandbox, ThreadKind};

/// What the API asks of workers.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum WorkerRequest {
    List,
    Set(VmSetWorker),
    MoveQueues(VmMoveQueues),
}

/// Why workers could not do what was asked.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// There is no such worker.
    #[error("there is no worker `{0}`: this machine has {1}")]
    NoWorker(String, String),
    /// There is no such device.
    #[error("the VM has no device called `{0}`: see vm.info for the names")]
    NoDevice(String),
    /// The device has no such queue.
    #[error("`{id}` has no queue {queue}: it has {queues}, counted from 0")]
    NoQueue {
        /// The device.
        id: String,
        /// The queue's number.
        queue: u16,
        /// How many it has.
        queues: u16,
    },
    /// A thread could not be started.
    #[error("cannot start worker `{name}`")]
    Start {
        /// The worker.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

struct Named {
    config: WorkerConfig,
    worker: Worker,
}

/// The workers of a machine, the default one first.
pub struct Workers {
    list: Vec<Named>,
    sandbox: Sandbox,
}

impl Workers {
    /// Starts the threads of a checked configuration. They may be given queues at once;
    /// [`wait_prepared`](Self::wait_prepared) tells whether they run.
    pub fn start(config: &VmConfig, sandbox: Sandbox) -> Result<Workers, WorkerError> {
        let mut configs = config.workers.clone();
        let default = configs.iter().position(|w| w.name == DEFAULT_WORKER);
        let default = default.map(|i| configs.remove(i));
        configs.insert(
            0,
            default.unwrap_or_else(|| WorkerConfig {
                name: DEFAULT_WORKER.to_owned(),
                poll_max_ns: PollMax::default(),
                affinity: Vec::new(),
            }),
        );
        let cap = Arc::new(PollCap::new(config.poll_cap));
        let start = |config: WorkerConfig| {
            let polling = PollSettings {
                max_ns: config.poll_max_ns.0,
                cap: cap.clone(),
            };
            let worker = Worker::start(&config.name, polling, prepare(&config, sandbox));
            match worker {
                Ok(worker) => Ok(Named { config, worker }),
                Err(source) => Err(WorkerError::Start {
                    name: config.name,
                    source,
                }),
            }
        };
        let list = configs.into_iter().map(start).collect::<Result<_, _>>()?;
        Ok(Workers { list, sandbox })
    }

    /// Waits until all threads run.
    pub fn wait_prepared(&self) -> Result<(), WorkerError> {
        for named in &self.list {
            named
                .worker
                .wait_prepared()
                .map_err(|source| WorkerError::Start {
                    name: named.config.name.clone(),
                    source,
                })?;
        }
        Ok(())
    }

    /// The one that serves what is given to none.
    pub fn default(&self) -> WorkerHandle {
        self.list[0].worker.handle()
    }

    /// The one of that name; the default one without a name.
    pub fn named(&self, name: Option<&str>) -> Result<WorkerHandle, WorkerError> {
        let Some(name) = name else {
            return Ok(self.default());
        };
        self.find(name).map(|i| self.list[i].worker.handle())
    }

    fn find(&self, name: &str) -> Result<usize, WorkerError> {
        let found = self.list.iter().position(|w| w.config.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = self.list.iter().map(|w| w.config.name.as_str()).collect();
            WorkerError::NoWorker(name.to_owned(), names.join(", "))
        })
    }

    /// Starts threads anew that broke down: what they serve next is served.
    pub fn revive(&mut self) {
        for named in &mut self.list {
            if named.worker.handle().is_alive() {
                continue;
            }
            let name = &named.config.name;
            match named.worker.revive(prepare(&named.config, self.sandbox)) {
                Ok(()) => log::info!("worker `{name}` was started anew"),
                Err(e) => log::error!("cannot start worker `{name}` anew: {e}"),
            }
        }
    }

    /// Changes how a worker polls.
    pub fn set(&mut self, set: &VmSetWorker) -> Result<(), WorkerError> {
        let named = self.find(&set.name)?;
        let named = &mut self.list[named];
        named.config.poll_max_ns = set.poll_max_ns;
        named.worker.handle().set_poll_max(set.poll_max_ns.0);
        Ok(())
    }

    /// What they are and do.
    pub fn list(&self) -> Vec<WorkerInfo> {
        self.list.iter().map(info).collect()
    }
}

fn info(named: &Named) -> WorkerInfo {
    let handle = named.worker.handle();
    let (stats, alive) = (handle.stats(), handle.is_alive());
    let queues = handle.report().into_iter().map(|queue| WorkerQueueInfo {
        name: queue.name.to_string(),
        polled: queue.polled,
        budget_ns: queue.budget_ns,
    });
    WorkerInfo {
        name: named.config.name.clone(),
        poll_max_ns: PollMax(handle.poll_max()),
        affinity: named.config.affinity.clone(),
        alive,
        sleeps: stats.sleeps,
        polled_ns: stats.polled_ns,
        capped: stats.capped,
        queues: queues.collect(),
    }
}

/// What a worker's thread does first.
fn prepare(
    config: &WorkerConfig,
    sandbox: Sandbox,
) -> impl FnOnce() -> io::Result<()> + Send + 'static {
    let (what, cpus) = (format!("worker `{}`", config.name), config.affinity.clone());
    move || {
        if !cpus.is_empty() {
            pin(&what, &cpus)?;
        }
        sandbox.enter(ThreadKind::Worker)
    }
}
