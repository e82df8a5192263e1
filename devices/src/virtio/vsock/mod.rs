//! virtio-vsock (virtio 1.3 §5.10): stream sockets between the guest and the host, whose side are
//! Unix sockets, as clients of Firecracker and Cloud Hypervisor know them.
//!
//! A host program connects to the device's socket, writes `CONNECT <port>\n` and reads
//! `OK <host port>\n` once the guest has accepted. A guest program that connects to port P of
//! CID 2 reaches whoever listens on `<socket>_<P>`.

mod connection;
mod handshake;
mod muxer;
mod packet;
mod sockets;
mod source;
mod switch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::features;
use super::queue::QueueState;
use super::running::Running;
use super::{Counter, QueueIndex, QueueStart, StartError, VirtioDevice};
use muxer::Muxer;
use sockets::{SocketFile, Sockets};
use source::{Lanes, VsockSource};
use switch::{News, Switch};

/// Stream sockets (VIRTIO_VSOCK_F_STREAM, virtio 1.3 §5.10.3).
const F_STREAM: u32 = 0;
const QUEUES: usize = 3;

/// Why there can be no such device.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The address is reserved.
    #[error("{0} is no guest's CID: choose one from 3 to 4294967294")]
    Cid(u64),
    /// The socket's path leaves no room for a port.
    #[error(
        "the socket path {} is too long: with `_<port>` behind it it must fit into 107 bytes",
        .0.display()
    )]
    PathTooLong(PathBuf),
    /// Somebody listens there.
    #[error(
        "somebody listens on {} already: choose another path, or stop the other one",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} exists and is no socket: choose another path, or remove it", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {what} {}: see that its directory exists and may be written", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What the device counted.
#[derive(Default)]
pub(super) struct VsockCounters {
    /// Payload to and from the guest.
    pub rx_bytes: Counter,
    pub tx_bytes: Counter,
    /// Connections that came about.
    pub connections: Counter,
    /// Connections that were refused or aborted from here.
    pub resets: Counter,
    /// Packets and buffers that broke the rules.
    pub malformed: Counter,
}

/// A socket device.
pub struct Vsock {
    cid: u64,
    counters: Arc<VsockCounters>,
    /// Which queues the driver's side has started.
    started: [bool; QUEUES],
    /// Started queues, while the source does not run.
    parked: [Option<QueueStart>; QUEUES],
    /// The connections, while the source does not run. None for good if a worker was lost.
    switch: Option<Box<Switch>>,
    running: Option<Running<VsockSource>>,
    /// This guest's connections are known here: it was reset, or ran, with this device.
    known: bool,
    /// Removed last.
    _file: SocketFile,
}

impl Vsock {
    /// A device with the guest address `cid` (3 or more), listening on `socket`.
    ///
    /// A socket file that nobody listens on any more is replaced. The file is removed when the
    /// device is dropped.
    pub fn new(cid: u64, socket: &Path) -> Result<Vsock, VsockError> {
        if !(3..u64::from(u32::MAX)).contains(&cid) {
            return Err(VsockError::Cid(cid));
        }
        let (sockets, file) = Sockets::listen(socket)?;
        let counters = Arc::<VsockCounters>::default();
        Ok(Vsock {
            cid,
            switch: Some(Box::new(Switch {
                muxer: Muxer::new(cid, counters.clone()),
                sockets,
                news: News::None,
                counters: counters.clone(),
            })),
            counters,
            started: [false; QUEUES],
            parked: [None, None, None],
            running: None,
            known: false,
            _file: file,
        })
    }

    /// Takes everything back from the worker.
    fn halt(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        let Some(source) = running.stop() else {
            log::warn!("vsock: the worker is gone, and the connections with it");
            return;
        };
        let (parked, switch) = source.into_parts();
        self.parked = parked;
        self.switch = Some(switch);
    }

    /// Runs the source if the queues it needs are started.
    fn go(&mut self) -> Result<(), StartError> {
        let [Some(rx), Some(tx), _] = &self.parked else {
            return Ok(());
        };
        let worker = rx.worker.clone();
        // What came with a history that is not ours was restored: its connections are gone.
        let restored = !self.known && used(&tx.state);
        let Some(mut switch) = self.switch.take() else {
            return Err(StartError::Host {
                what: "the vsock device lost its connections with its worker: make a new one",
                source: io::ErrorKind::BrokenPipe.into(),
            });
        };
        self.known = true;
        if restored {
            switch.news = News::ToTell;
        }
        if let [Some(rx), Some(tx), event] = std::mem::take(&mut self.parked) {
            let lanes = Lanes::new(rx, tx, event, switch)?;
            self.running = Some(Running::attach(worker, |home| {
                VsockSource::new(lanes, home)
            }));
        }
        Ok(())
    }
}

fn used(state: &QueueState) -> bool {
    state.next_avail != 0 || state.next_used != 0
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        19
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128; QUEUES]
    }

    fn features(&self) -> u64 {
        features::COMMON | 1 << F_STREAM
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_vsock_config: guest_cid.
        self.cid.to_le_bytes().to_vec()
    }

    /// The queues run together, once receive and transmit queue were both started.
    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError> {
        let place = usize::from(index);
        if self.started.get(place) != Some(&false) {
            return Err(StartError::Index(index));
        }
        start.queue()?;
        self.halt();
        self.started[place] = true;
        self.parked[place] = Some(start);
        self.go().inspect_err(|_| {
            self.started[place] = false;
            self.parked[place] = None;
        })
    }

    fn moves_whole(&self) -> bool {
        true
    }

    /// Connections stay, and go on when the queues are started again.
    fn stop_queue(&mut self, index: QueueIndex) -> Option<QueueState> {
        let place = usize::from(index);
        if !std::mem::take(self.started.get_mut(place)?) {
            return None;
        }
        self.halt();
        let state = self.parked[place].take().map(|start| start.state);
        // Without the event queue the other two go on.
        if let Err(e) = self.go() {
            log::warn!("vsock: {e}");
        }
        state
    }

    fn reset(&mut self) {
        self.halt();
        self.started = [false; QUEUES];
        self.parked = [None, None, None];
        self.known = true;
        if let Some(switch) = &mut self.switch {
            switch.muxer = Muxer::new(self.cid, self.counters.clone());
            switch.news = News::None;
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = &self.counters;
        vec![
            ("rx_bytes", c.rx_bytes.get()),
            ("tx_bytes", c.tx_bytes.get()),
            ("connections", c.connections.get()),
            ("resets", c.resets.get()),
            ("malformed", c.malformed.get()),
        ]
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // The sockets are on the worker.
        self.halt();
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
