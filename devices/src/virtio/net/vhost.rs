//! virtio-net whose frames the host's kernel moves between the queues and the tap (vhost-net): neither
//! requests nor doorbells come by here, only the kernel's calls, which a relay turns into interrupts.

use std::sync::Arc;

use thiserror::Error;
use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net as KernelNet;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{Mac, NetOffloads, Tap, config_of, features_of, tap_offloads};
use crate::memory::GuestRam;
use crate::virtio::queue::QueueState;
use crate::virtio::relay::Relay;
use crate::virtio::running::Running;
use crate::virtio::{QueueIndex, QueueStart, StartError, VirtioDevice, features};
use crate::worker::WorkerHandle;

const F_MRG_RXBUF: u64 = 1 << 15;
/// The features that are the kernel's business; the others are the tap's.
const KERNELS: u64 = features::COMMON | F_MRG_RXBUF;

/// Why the kernel cannot serve a network.
#[derive(Debug, Error)]
pub enum VhostNetError {
    /// There is no /dev/vhost-net.
    #[error(
        "vhost=on needs /dev/vhost-net: load the module vhost_net and be allowed to open it, or leave vhost out"
    )]
    Missing(#[source] vhost::Error),
    /// The kernel refused.
    #[error("vhost-net refuses {what}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: vhost::Error,
    },
}

/// A network device that the kernel serves.
pub struct VhostNet {
    kernel: KernelNet<Arc<GuestMemoryMmap>>,
    tap: Tap,
    features: u64,
    kernels: u64,
    config: [u8; 12],
    queue_sizes: [u16; 2],
    running: [Option<(QueueState, GuestRam, Running<Relay>)>; 2],
}

impl VhostNet {
    /// A device on a tap, for a guest with this memory.
    pub fn new(
        tap: Tap,
        mac: Mac,
        mtu: Option<u16>,
        queue_size: u16,
        offloads: NetOffloads,
        memory: &GuestRam,
    ) -> Result<VhostNet, VhostNetError> {
        let memory = Arc::new(memory.memory().clone());
        let kernel = KernelNet::new(memory).map_err(VhostNetError::Missing)?;
        let refused = |what| move |source| VhostNetError::Refused { what, source };
        kernel.set_owner().map_err(refused("an owner"))?;
        let kernels = kernel.get_features().map_err(refused("its features"))?;
        Ok(VhostNet {
            features: features_of(offloads, mtu) & (!KERNELS | kernels),
            kernels: kernels & KERNELS,
            kernel,
            tap,
            config: config_of(mac, 1, mtu),
            queue_sizes: [queue_size; 2],
            running: [None, None],
        })
    }

    /// Says what the driver accepted, and hands the guest's memory over.
    fn begin(&self, start: &QueueStart) -> vhost::Result<()> {
        let has = |bit| features::has(start.features, bit);
        let offloads = self.tap.set_offloads(tap_offloads(has));
        offloads.map_err(vhost::Error::IoctlError)?;
        self.kernel.set_features(start.features & self.kernels)?;
        let memory = start.memory.memory().iter();
        let regions: vhost::Result<Vec<_>> = memory
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect();
        self.kernel.set_mem_table(&regions?).map(drop)
    }

    fn hand_queue(&self, index: usize, start: &QueueStart) -> vhost::Result<EventFd> {
        let state = start.state;
        // Guest addresses: the library knows where they are here.
        let rings = VringConfigData {
            queue_max_size: state.size,
            queue_size: state.size,
            flags: 0,
            desc_table_addr: state.desc,
            used_ring_addr: state.used,
            avail_ring_addr: state.avail,
            log_addr: None,
        };
        let call = EventFd::new(0).map_err(vhost::Error::IoctlError)?;
        self.kernel.set_vring_num(index, state.size)?;
        self.kernel.set_vring_base(index, state.next_avail)?;
        self.kernel.set_vring_addr(index, &rings)?;
        self.kernel.set_vring_call(index, &call)?;
        self.kernel.set_vring_kick(index, &start.kick)?;
        self.kernel.set_backend(index, Some(self.tap.file()))?;
        // What the driver rang for before is looked at.
        let _ = start.kick.write(1);
        Ok(call)
    }
}

impl VirtioDevice for VhostNet {
    fn device_type(&self) -> u16 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError> {
        let number = usize::from(index);
        if !matches!(self.running.get(number), Some(None)) {
            return Err(StartError::Index(index));
        }
        start.queue()?;
        let refused = |what| {
            move |e: vhost::Error| StartError::Host {
                what,
                source: std::io::Error::other(e),
            }
        };
        if self.running.iter().all(Option::is_none) {
            let begun = self.begin(&start);
            begun.map_err(refused("vhost-net refuses the guest's memory or offloads"))?;
        }
        let call = self.hand_queue(number, &start);
        let call = call.map_err(refused("vhost-net refuses the queue"))?;
        let (state, memory) = (start.state, start.memory.clone());
        let relay = Running::attach(start.worker.clone(), |home| {
            Relay::new(start, call, None, home)
        });
        self.running[number] = Some((state, memory, relay));
        Ok(())
    }

    fn move_queue(&mut self, index: QueueIndex, worker: &WorkerHandle) -> bool {
        let place = self.running.get_mut(usize::from(index));
        let Some((state, memory, relay)) = place.and_then(Option::take) else {
            return false;
        };
        let Some(relay) = relay.stop() else {
            return false;
        };
        let relay = Running::attach(worker.clone(), |home| relay.again(home));
        self.running[usize::from(index)] = Some((state, memory, relay));
        true
    }

    fn stop_queue(&mut self, index: QueueIndex) -> Option<QueueState> {
        let number = usize::from(index);
        let (state, memory, relay) = self.running.get_mut(number)?.take()?;
        relay.stop();
        // Without the tap the kernel ends what it is at.
        let stopped = self.kernel.set_backend(number, None);
        let base = stopped.and_then(|()| self.kernel.get_vring_base(number));
        match base {
            Ok(base) => Some(QueueState {
                next_avail: base as u16,
                next_used: crate::virtio::queue::ring_index(state.used, &memory)?,
                ..state
            }),
            Err(e) => {
                log::error!("vhost-net keeps queue {index}: {e}");
                None
            }
        }
    }
}
