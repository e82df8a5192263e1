//! The connection to a back end: what is negotiated, and queues handed over and taken back.
//!
//! Every round of requests is watched: a back end that does not answer in time is cut off, which ends the
//! wait for it.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::EventFd;

use super::VhostUserError;
use crate::memory::GuestRam;
use crate::virtio::queue::{QueueState, ring_index};
use crate::virtio::{QueueIndex, QueueStart};

/// How long a back end may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection.
pub(super) struct Link {
    pub(super) frontend: Frontend,
    /// The same socket, to see that the back end is gone.
    pub(super) socket: Arc<UnixStream>,
    gone: Arc<AtomicBool>,
    path: String,
    /// What the back end offers.
    pub features: u64,
    protocol: VhostUserProtocolFeatures,
}

/// The other end of a connection, as a relay sees it.
pub(crate) struct Watch {
    pub socket: Arc<UnixStream>,
    /// It is known to be gone.
    pub gone: Arc<AtomicBool>,
    pub path: String,
}

impl Link {
    /// Connects and negotiates the protocol; the back end must serve `queues` queues.
    pub fn connect(path: &Path, queues: u16) -> Result<Link, VhostUserError> {
        let shown = path.display().to_string();
        let connect = |source| VhostUserError::Connect {
            path: path.display().to_string(),
            source,
        };
        let socket = connect_in_time(path).map_err(connect)?;
        let watched = socket.try_clone().map_err(connect)?;
        let mut link = Link {
            frontend: Frontend::from_stream(socket, queues.into()),
            socket: Arc::new(watched),
            gone: Arc::new(AtomicBool::new(false)),
            path: shown,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
        };
        let watched = link.socket.clone();
        guarded(&watched, || link.negotiate(queues)).map(|()| link)
    }

    fn negotiate(&mut self, queues: u16) -> Result<(), VhostUserError> {
        let link = self;
        let offered = link.frontend.get_features();
        link.features = link.asked("GET_FEATURES", offered)?;
        let owned = link.frontend.set_owner();
        link.asked("SET_OWNER", owned)?;
        if link.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(link.lacks("knows no protocol features: it is too old"));
        }
        let offered = link.frontend.get_protocol_features();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::DEVICE_STATE;
        link.protocol = link.asked("GET_PROTOCOL_FEATURES", offered)? & wanted;
        let set = link.frontend.set_protocol_features(link.protocol);
        link.asked("SET_PROTOCOL_FEATURES", set)?;
        if link.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            link.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let serves = match link.protocol.contains(VhostUserProtocolFeatures::MQ) {
            true => {
                let number = link.frontend.get_queue_num();
                link.asked("GET_QUEUE_NUM", number)?
            }
            false => 1,
        };
        if link.protocol.contains(VhostUserProtocolFeatures::MQ) && serves < queues.into() {
            return Err(link.lacks(&format!(
                "serves {serves} queues and not {queues}: start it with more, or give num_queues={serves}"
            )));
        }
        Ok(())
    }

    pub(super) fn asked<T>(
        &self,
        what: &'static str,
        result: vhost::Result<T>,
    ) -> Result<T, VhostUserError> {
        result.map_err(|source| VhostUserError::Request {
            path: self.path.clone(),
            what,
            source,
        })
    }

    /// It lacks something.
    pub fn lacks(&self, what: &str) -> VhostUserError {
        VhostUserError::Lacks {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }

    /// Whether the back end was seen to be gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The back end's socket.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Asks the back end for a sign of life.
    pub fn greet(&mut self) -> Result<(), VhostUserError> {
        let answer = guarded(&self.socket, || self.frontend.get_features());
        match answer {
            Ok(_) if !self.is_gone() => Ok(()),
            _ => Err(VhostUserError::Gone(self.path.clone())),
        }
    }

    /// Whether the back end hands over state that it has of the device, and takes it.
    pub fn has_state(&self) -> bool {
        self.protocol
            .contains(VhostUserProtocolFeatures::DEVICE_STATE)
    }

    /// What sees that the back end is gone.
    pub fn watch(&self) -> Watch {
        Watch {
            socket: self.socket.clone(),
            gone: self.gone.clone(),
            path: self.path.clone(),
        }
    }

    /// The first `len` bytes of the device's configuration space.
    pub fn config(&mut self, len: usize) -> Result<Vec<u8>, VhostUserError> {
        let watched = self.socket.clone();
        guarded(&watched, || self.ask_config(len))
    }

    fn ask_config(&mut self, len: usize) -> Result<Vec<u8>, VhostUserError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(self.lacks("does not tell its configuration: use one that does"));
        }
        let empty = vec![0; len];
        let flags = VhostUserConfigFlags::empty();
        let answer = self.frontend.get_config(0, len as u32, flags, &empty);
        let (_, mut config) = self.asked("GET_CONFIG", answer)?;
        config.resize(len, 0);
        Ok(config)
    }

    /// Says what the driver accepted, and hands the guest's memory over.
    pub fn begin(&mut self, negotiated: u64, memory: &GuestRam) -> Result<(), VhostUserError> {
        let watched = self.socket.clone();
        guarded(&watched, || self.hand_memory(negotiated, memory))
    }

    fn hand_memory(&mut self, negotiated: u64, memory: &GuestRam) -> Result<(), VhostUserError> {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        // What the back end does not know of (a network's address) is ours.
        let set = self
            .frontend
            .set_features(negotiated & self.features | protocol);
        self.asked("SET_FEATURES", set)?;
        let regions: vhost::Result<Vec<_>> = memory
            .memory()
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect();
        let regions = self.asked("SET_MEM_TABLE", regions)?;
        let set = self.frontend.set_mem_table(&regions);
        self.asked("SET_MEM_TABLE", set).map(drop)
    }

    /// Hands a queue over; the bell that the back end rings for used buffers.
    pub fn start(
        &mut self,
        index: QueueIndex,
        start: &QueueStart,
    ) -> Result<EventFd, VhostUserError> {
        let watched = self.socket.clone();
        guarded(&watched, || self.hand_queue(index, start))
    }

    fn hand_queue(
        &mut self,
        index: QueueIndex,
        start: &QueueStart,
    ) -> Result<EventFd, VhostUserError> {
        let (state, number) = (start.state, usize::from(index));
        let host = |addr: u64| {
            let at = start.memory.host_range(addr, 1);
            at.map_or(0, |at| at as u64)
        };
        let rings = VringConfigData {
            queue_max_size: state.size,
            queue_size: state.size,
            flags: 0,
            desc_table_addr: host(state.desc),
            used_ring_addr: host(state.used),
            avail_ring_addr: host(state.avail),
            log_addr: None,
        };
        let call = EventFd::new(0);
        let call = self.asked("an eventfd", call.map_err(vhost::Error::VhostOpen))?;
        let frontend = &self.frontend;
        let steps = [
            ("SET_VRING_NUM", frontend.set_vring_num(number, state.size)),
            (
                "SET_VRING_BASE",
                frontend.set_vring_base(number, state.next_avail),
            ),
            ("SET_VRING_ADDR", frontend.set_vring_addr(number, &rings)),
            ("SET_VRING_CALL", frontend.set_vring_call(number, &call)),
            (
                "SET_VRING_KICK",
                frontend.set_vring_kick(number, &start.kick),
            ),
        ];
        for (what, done) in steps {
            self.asked(what, done)?;
        }
        let enabled = self.frontend.set_vring_enable(number, true);
        self.asked("SET_VRING_ENABLE", enabled)?;
        // What the driver rang for before is looked at.
        let _ = start.kick.write(1);
        Ok(call)
    }

    /// Waits until the back end has answered all that is available, as far as it does so soon. Some break
    /// when a queue is taken from them that they are at work on.
    pub fn drain(&self, state: QueueState, memory: &GuestRam) {
        const LOOK: Duration = Duration::from_micros(100);
        let deadline = Instant::now() + PATIENCE;
        let index = |ring| ring_index(ring, memory);
        while !self.is_gone() && index(state.avail) != index(state.used) {
            if Instant::now() > deadline {
                log::warn!("the vhost-user back end on {} is slow to answer", self.path);
                return;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Takes a queue back, with nothing in flight: where it stands; none if the back end does not say.
    pub fn stop(
        &mut self,
        index: QueueIndex,
        state: QueueState,
        memory: &GuestRam,
    ) -> Option<QueueState> {
        if self.is_gone() {
            return None;
        }
        let base = guarded(&self.socket, || self.frontend.get_vring_base(index.into()));
        let base = match base {
            Ok(base) => base,
            Err(e) => {
                log::warn!(
                    "the vhost-user back end on {} keeps queue {index}: {e}",
                    self.path
                );
                self.gone.store(true, Ordering::Release);
                return None;
            }
        };
        Some(QueueState {
            next_avail: base as u16,
            next_used: ring_index(state.used, memory)?,
            ..state
        })
    }
}

/// Connects; a back end whose queue of connections is full is waited for no longer than for an answer.
fn connect_in_time(path: &Path) -> std::io::Result<UnixStream> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(UnixStream::from(socket))
}

/// Does `work`, which asks the other end of `socket` for something, and cuts the connection if that takes too
/// long. The protocol's library would wait for ever.
pub(super) fn guarded<T>(socket: &UnixStream, work: impl FnOnce() -> T) -> T {
    let (done, wait) = sync_channel::<()>(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                log::warn!(
                    "a vhost-user back end did not answer within {PATIENCE:?}: cutting it off"
                );
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
        let result = work();
        drop(done);
        result
    })
}

impl Drop for Link {
    fn drop(&mut self) {
        log::debug!(
            "closing the connection {} to {}",
            self.socket.as_raw_fd(),
            self.path
        );
    }
}
