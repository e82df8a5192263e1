//! vhost-user's front end: a device whose queues another process serves.
//!
//! The guest's memory, doorbells and a way to call back are handed over a socket once; afterwards requests
//! pass this process by, but for the calls, which a relay on a worker turns into interrupts. A back end that
//! goes away breaks the device, not the guest: its driver resets it, and that connects anew. (QEMU's
//! documentation of the vhost-user protocol; virtio 1.3.)

mod kind;
mod link;
mod state;

use std::path::Path;

use thiserror::Error;

use super::features;
use super::queue::QueueState;
use super::relay::Relay;
use super::running::Running;
use super::{DeviceState, Held, QueueIndex, QueueStart, StartError, VirtioDevice};
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
    /// The back end was there and is no more.
    #[error(
        "the vhost-user back end on {0} went away: start it again, and let the guest go on with it"
    )]
    Gone(String),
    /// State was not handed over, or not taken.
    #[error("the vhost-user back end on {path} does not {verb} the device's state")]
    State {
        /// The socket.
        path: String,
        /// Hand over or take.
        verb: &'static str,
        /// What the system said.
        source: std::io::Error,
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
    /// The back end knows of the driver what a successor would not.
    session: bool,
    /// A queue was taken back before all that the back end took from it was answered.
    unfinished: bool,
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
            session: false,
            unfinished: false,
        })
    }

    fn is_readonly(&self) -> bool {
        self.kind.is_readonly(self.features)
    }

    /// It is a directory: the back end knows which of its files the guest has open.
    fn has_session(&self) -> bool {
        matches!(self.kind, VhostUserKind::Fs(_))
    }

    /// Begins with the back end, or with its successor if it went away unseen.
    fn begin(&mut self, start: &QueueStart) -> Result<(), VhostUserError> {
        if self.session && self.link.as_ref().is_none_or(Link::is_gone) {
            return Err(VhostUserError::Gone(self.path.clone()));
        }
        let begun = self.link()?.begin(start.features, &start.memory);
        match begun {
            Err(e) if !self.session => {
                log::info!("connecting anew: {e}");
                self.link = None;
                self.link()?.begin(start.features, &start.memory)
            }
            begun => begun,
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
            self.session = self.has_session();
            self.unfinished = false;
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
        if self.kind.is_answered() {
            link.drain(served.state, &served.memory);
        }
        let state = link.stop(index, served.state, &served.memory);
        match state {
            Some(state) => self.unfinished |= state.next_avail != state.next_used,
            // It is not known where the queue stands, nor what the back end still does with it.
            None => self.link = None,
        }
        state
    }

    fn reset(&mut self) {
        self.session = false;
        self.unfinished = false;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Served {
            readonly: self.is_readonly(),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), String> {
        let now = self.is_readonly();
        let (had, has) = match state {
            DeviceState::Served { readonly } if *readonly == now => return Ok(()),
            DeviceState::Served { readonly: true } => ("read-only", "writable"),
            DeviceState::Served { readonly: false } => ("writable", "read-only"),
            other => return Err(format!("{other:?} is another kind of device's")),
        };
        Err(format!(
            "its back end on {} serves it {has}, and it was {had}: start one like the one before",
            self.path
        ))
    }

    fn held(&self) -> Option<Held> {
        let has_state = || self.link.as_ref().is_none_or(Link::has_state);
        Some(match self.kind {
            VhostUserKind::Blk if !self.is_readonly() => Held::Disk,
            VhostUserKind::Blk | VhostUserKind::Net(_) => Held::Nothing,
            VhostUserKind::Fs(_) if has_state() => Held::State,
            VhostUserKind::Fs(_) => Held::Secret,
        })
    }

    fn save_held(&mut self) -> Result<Option<Vec<u8>>, VhostUserError> {
        let (unfinished, has_session) = (self.unfinished, self.has_session());
        let Some(link) = self.link.as_mut() else {
            return Err(VhostUserError::Gone(self.path.clone()));
        };
        link.greet()?;
        if unfinished {
            return Err(link.lacks(
                "took requests of the guest and did not answer them in time: resume the VM, and try again",
            ));
        }
        match has_session {
            true => link.fetch_state().map(Some),
            false => Ok(None),
        }
    }

    fn restore_held(&mut self, state: Option<&[u8]>) -> Result<(), VhostUserError> {
        let has_session = self.has_session();
        let link = self.link()?;
        match (has_session, state) {
            (false, None) => Ok(()),
            (true, Some(state)) => {
                link.load_state(state)?;
                self.session = true;
                Ok(())
            }
            (false, Some(_)) => Err(link.lacks("has no use for the state that was kept of it")),
            (true, None) => Err(link.lacks("is to have state that was not kept")),
        }
    }
}
