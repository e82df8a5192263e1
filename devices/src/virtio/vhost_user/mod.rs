//! vhost-user's front end: a device whose queues another process serves.
//!
//! The guest's memory, doorbells and a way to call back are handed over a socket once; afterwards requests
//! pass this process by, but for the calls, which a relay on a worker turns into interrupts. A back end that
//! goes away breaks the device, not the guest: its driver resets it, and that connects anew. (QEMU's
//! documentation of the vhost-user protocol; virtio 1.3.)

mod kind;
mod link;

use std::path::Path;

use thiserror::Error;

use super::features;
use super::queue::QueueState;
use super::relay::Relay;
use super::running::Running;
use super::{QueueIndex, QueueStart, StartError, VirtioDevice};
use crate::worker::WorkerHandle;
pub use kind::{TAG_LEN, VhostUserKind};
use link::Link;
pub(super) use link::Watch;

/// Why a back end cannot be used.
#[derive(Debug, Error)]
pub enum VhostUserError {
    /// Nobody serves the socket.
    #[error("no vhost-user back end listens on {path}: start it before the VM")]
    Connect {
        /// The socket.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The back end refused, did not answer in time, or answered what makes no sense.
    #[error("the vhost-user back end on {path} failed at {what}")]
    Request {
        /// The socket.
        path: String,
        /// What was asked.
        what: &'static str,
        /// What came of it.
        source: vhost::Error,
    },
    /// The back end lacks something.
    #[error("the vhost-user back end on {path} {what}")]
    Lacks {
        /// The socket.
        path: String,
        /// What it lacks, and what to do.
        what: String,
    },
}

/// A device that a vhost-user back end serves.
pub struct VhostUser {
    kind: VhostUserKind,
    link: Option<Link>,
    path: String,
    queue_sizes: Vec<u16>,
    features: u64,
    config: Vec<u8>,
    running: Vec<Option<Served>>,
}

/// A queue that the back end serves.
struct Served {
    state: QueueState,
    memory: crate::memory::GuestRam,
    relay: Running<Relay>,
}

impl VhostUser {
    /// Connects to the back end on the socket at `path`. `queues` is how many it is to serve, of
    /// `queue_size` descriptors at most.
    pub fn connect(
        path: &Path,
        kind: VhostUserKind,
        queues: u16,
        queue_size: u16,
    ) -> Result<VhostUser, VhostUserError> {
        let mut link = Link::connect(path, queues)?;
        let offered = kind.features(link.features, queues);
        if !features::has(offered, features::VERSION_1) {
            return Err(link.lacks("is older than virtio 1.0: use another"));
        }
        let (config, offered) = kind.config(&mut link, queues, offered)?;
        Ok(VhostUser {
            path: path.display().to_string(),
            queue_sizes: vec![queue_size; queues.into()],
            running: (0..queues).map(|_| None).collect(),
            features: offered,
            config,
            kind,
            link: Some(link),
        })
    }

    /// Begins with the back end, or with its successor if it went away unseen.
    fn begin(&mut self, start: &QueueStart) -> Result<(), VhostUserError> {
        let begun = self.link()?.begin(start.features, &start.memory);
        match begun {
            Err(e) => {
                log::info!("connecting anew: {e}");
                self.link = None;
                self.link()?.begin(start.features, &start.memory)
            }
            Ok(()) => Ok(()),
        }
    }

    /// The connection, made anew if the back end went away.
    fn link(&mut self) -> Result<&mut Link, VhostUserError> {
        if self.link.as_ref().is_some_and(Link::is_gone) {
            self.link = None;
        }
        match &mut self.link {
            Some(link) => Ok(link),
            empty => {
                let link = Link::connect(Path::new(&self.path), self.running.len() as u16)?;
                let lost =
                    self.features & !self.kind.features(link.features, self.running.len() as u16);
                if lost != 0 {
                    return Err(link.lacks(&format!(
                        "lacks features {lost:#x} that its predecessor had: start one like that"
                    )));
                }
                Ok(empty.insert(link))
            }
        }
    }
}

impl VirtioDevice for VhostUser {
    fn device_type(&self) -> u16 {
        self.kind.device_type()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config(&self) -> Vec<u8> {
        self.config.clone()
    }

    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError> {
        if !matches!(self.running.get(usize::from(index)), Some(None)) {
            return Err(StartError::Index(index));
        }
        // Its rings are checked here, so that the back end is not given what is not there.
        start.queue()?;
        let first = self.running.iter().all(Option::is_none);
        let refused = |e: VhostUserError| StartError::Host {
            what: "its vhost-user back end cannot serve it",
            source: std::io::Error::other(e),
        };
        if first {
            self.begin(&start).map_err(refused)?;
        }
        let link = self.link().map_err(refused)?;
        let call = link.start(index, &start).map_err(refused)?;
        let gone = link.watch();
        let (state, memory) = (start.state, start.memory.clone());
        let relay = Running::attach(start.worker.clone(), |home| {
            Relay::new(start, call, Some(gone), home)
        });
        self.running[usize::from(index)] = Some(Served {
            state,
            memory,
            relay,
        });
        Ok(())
    }

    /// Only the relay moves: the back end goes on.
    fn move_queue(&mut self, index: QueueIndex, worker: &WorkerHandle) -> bool {
        let Some(served) = self
            .running
            .get_mut(usize::from(index))
            .and_then(Option::take)
        else {
            return false;
        };
        let Served {
            state,
            memory,
            relay,
        } = served;
        let Some(relay) = relay.stop() else {
            return false;
        };
        let relay = Running::attach(worker.clone(), |home| relay.again(home));
        self.running[usize::from(index)] = Some(Served {
            state,
            memory,
            relay,
        });
        true
    }

    fn stop_queue(&mut self, index: QueueIndex) -> Option<QueueState> {
        let served = self.running.get_mut(usize::from(index))?.take()?;
        served.relay.stop();
        let link = self.link.as_mut()?;
        // A network's receive queue is never empty.
        if self.kind == VhostUserKind::Blk {
            link.drain(served.state, &served.memory);
        }
        let state = link.stop(index, served.state, &served.memory);
        if state.is_none() {
            // It is not known where the queue stands, nor what the back end still does with it.
            self.link = None;
        }
        state
    }
}
