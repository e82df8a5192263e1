//! virtio-net (virtio 1.3 §5.1) on a tap: offloads with the vnet header, several queue pairs.

mod control;
mod rx;
mod tap;
mod tx;
mod vhost;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::features;
use super::queue::QueueState;
use super::running::Running;
use super::served::Served;
use super::{Counter, DeviceState, QueueIndex, QueueStart, StartError, VirtioDevice};
use crate::limit::{Limiter, Throttle};
use crate::worker::FdWait;
pub use tap::{Offloads, Tap, TapError, VNET_HEADER};
pub use vhost::{VhostNet, VhostNetError};

const F_CSUM: u32 = 0;
const F_GUEST_CSUM: u32 = 1;
const F_MTU: u32 = 3;
const F_MAC: u32 = 5;
const F_GUEST_TSO4: u32 = 7;
const F_GUEST_TSO6: u32 = 8;
const F_GUEST_ECN: u32 = 9;
const F_HOST_TSO4: u32 = 11;
const F_HOST_TSO6: u32 = 12;
const F_HOST_ECN: u32 = 13;
const F_MRG_RXBUF: u32 = 15;
const F_STATUS: u32 = 16;
const F_CTRL_VQ: u32 = 17;
const F_GUEST_ANNOUNCE: u32 = 21;
const F_MQ: u32 = 22;

/// The link is up (VIRTIO_NET_S_LINK_UP).
const S_LINK_UP: u8 = 1;
/// The driver is to announce its address (VIRTIO_NET_S_ANNOUNCE).
const S_ANNOUNCE: u8 = 2;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What one direction of one queue pair counted.
#[derive(Default)]
pub(super) struct NetCounters {
    pub bytes: Counter,
    pub frames: Counter,
}

/// Which offloads the device offers.
#[derive(Debug, Clone, Copy)]
pub struct NetOffloads {
    /// Checksums.
    pub csum: bool,
    /// TCP segmentation.
    pub tso: bool,
}

/// A network device.
pub struct Net {
    pairs: Vec<Pair>,
    control: Option<(QueueIndex, Running<Served<control::ControlQueue>>)>,
    /// How many pairs the driver uses (VIRTIO_NET_CTRL_MQ), and so how many of the tap's queues the
    /// host spreads frames over. Shared with the control queue.
    active: Arc<AtomicU16>,
    /// The driver is asked to tell its neighbours where it is now.
    announce: Arc<AtomicBool>,
    queue_sizes: Vec<u16>,
    config: [u8; 12],
    features: u64,
    /// To the guest, and from it.
    limiters: [Option<Arc<Limiter>>; 2],
}

/// A queue pair and its own queue of the tap.
struct Pair {
    tap: Arc<Tap>,
    rx_kick: Option<Arc<EventFd>>,
    rx: Option<Running<Served<rx::RxQueue>>>,
    tx: Option<Running<Served<tx::TxQueue>>>,
    rx_counters: Arc<NetCounters>,
    tx_counters: Arc<NetCounters>,
}

impl Net {
    /// A device on a tap's queues, one queue pair each.
    pub fn new(
        taps: Vec<Tap>,
        mac: Mac,
        mtu: Option<u16>,
        queue_size: u16,
        offloads: NetOffloads,
    ) -> Net {
        let pairs = taps.len();
        let mut features = features_of(offloads, mtu);
        let config = config_of(mac, pairs as u16, mtu);
        let mut queue_sizes = vec![queue_size; 2 * pairs];
        features |= 1 << F_CTRL_VQ | 1 << F_GUEST_ANNOUNCE;
        queue_sizes.push(64);
        if pairs > 1 {
            features |= 1 << F_MQ;
        }
        let active = Arc::new(AtomicU16::new(pairs as u16));
        let net = Net {
            pairs: taps
                .into_iter()
                .map(|tap| Pair {
                    tap: Arc::new(tap),
                    rx_kick: None,
                    rx: None,
                    tx: None,
                    rx_counters: Arc::default(),
                    tx_counters: Arc::default(),
                })
                .collect(),
            control: None,
            active,
            announce: Arc::default(),
            queue_sizes,
            config,
            features,
            limiters: [None, None],
        };
        net.use_pairs(1);
        net
    }

    /// The same with limits to the guest and from it, which its pairs share.
    pub fn limited(self, limiters: [Option<Arc<Limiter>>; 2]) -> Net {
        Net { limiters, ..self }
    }

    /// Attaches the first `pairs` queues of the tap, and detaches the others.
    fn use_pairs(&self, pairs: u16) {
        let taps: Vec<_> = self.pairs.iter().map(|p| p.tap.clone()).collect();
        control::attach_queues(&taps, &self.active, pairs);
    }

    /// The control queue's number (virtio 1.3 §5.1.2): it follows the pairs that were negotiated.
    fn control_index(&self, negotiated: u64) -> Option<QueueIndex> {
        features::has(negotiated, F_CTRL_VQ).then(|| {
            let pairs = if features::has(negotiated, F_MQ) {
                self.pairs.len() as u16
            } else {
                1
            };
            2 * pairs
        })
    }
}

/// What is offered on a tap with one queue pair.
fn features_of(offloads: NetOffloads, mtu: Option<u16>) -> u64 {
    let mut features = features::COMMON | 1 << F_MAC | 1 << F_MRG_RXBUF | 1 << F_STATUS;
    if offloads.csum {
        features |= 1 << F_CSUM | 1 << F_GUEST_CSUM;
    }
    if offloads.csum && offloads.tso {
        features |= 1 << F_GUEST_TSO4 | 1 << F_GUEST_TSO6 | 1 << F_GUEST_ECN;
        features |= 1 << F_HOST_TSO4 | 1 << F_HOST_TSO6 | 1 << F_HOST_ECN;
    }
    if mtu.is_some() {
        features |= 1 << F_MTU;
    }
    features
}

/// struct virtio_net_config: mac, status (link up), max_virtqueue_pairs, mtu.
fn config_of(mac: Mac, pairs: u16, mtu: Option<u16>) -> [u8; 12] {
    let mut config = [0; 12];
    config[..6].copy_from_slice(&mac);
    config[6] = S_LINK_UP;
    config[8..10].copy_from_slice(&pairs.to_le_bytes());
    config[10..12].copy_from_slice(&mtu.unwrap_or(0).to_le_bytes());
    config
}

/// What may be in frames to a guest whose driver accepted what `has` says.
fn tap_offloads(has: impl Fn(u32) -> bool) -> Offloads {
    Offloads {
        csum: has(F_GUEST_CSUM),
        tso4: has(F_GUEST_TSO4),
        tso6: has(F_GUEST_TSO6),
        ecn: has(F_GUEST_ECN),
    }
}

/// The largest frame that the host may send, with the vnet and Ethernet headers and a VLAN tag.
fn max_frame(offloads: Offloads, mtu: u16) -> u64 {
    let payload = if offloads.tso4 || offloads.tso6 {
        65536
    } else {
        u64::from(mtu.max(1500))
    };
    payload + 14 + 4 + VNET_HEADER as u64
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn spun_for(&self) -> Option<QueueIndex> {
        self.control_index(self.features)
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.config.to_vec();
        if self.announce.load(Ordering::Relaxed) {
            config[6] |= S_ANNOUNCE;
        }
        config
    }

    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError> {
        if self.control_index(start.features) == Some(index) {
            if self.control.is_some() {
                return Err(StartError::Index(index));
            }
            let taps = self.pairs.iter().map(|p| p.tap.clone()).collect();
            let kicks = self.pairs.iter().map(|p| p.rx_kick.clone()).collect();
            let (active, announce) = (self.active.clone(), self.announce.clone());
            let running = Served::start(start, |queue| control::ControlQueue {
                chain: queue.chain(),
                pairs: control::PairSwitch {
                    taps,
                    kicks,
                    active,
                },
                announce,
            })?;
            self.control = Some((index, running));
            return Ok(());
        }
        let pair = self
            .pairs
            .get_mut(usize::from(index / 2))
            .ok_or(StartError::Index(index))?;
        let tap = pair.tap.clone();
        if index.is_multiple_of(2) {
            if pair.rx.is_some() {
                return Err(StartError::Index(index));
            }
            let has = |bit| features::has(start.features, bit);
            let offloads = tap_offloads(has);
            if index == 0 {
                // They are the interface's, not the queue's.
                tap.set_offloads(offloads)
                    .map_err(|source| StartError::Host {
                        what: "the tap refused the guest's offloads",
                        source,
                    })?;
            }
            pair.rx_kick = Some(start.kick.clone());
            let mergeable = has(F_MRG_RXBUF);
            let max_frame = max_frame(
                offloads,
                u16::from_le_bytes([self.config[10], self.config[11]]),
            );
            let counters = pair.rx_counters.clone();
            let throttle = Throttle::new(self.limiters[0].clone());
            pair.rx = Some(Served::start(start, |queue| {
                rx::RxQueue::new(queue.chain(), tap, mergeable, max_frame, counters, throttle)
            })?);
        } else {
            if pair.tx.is_some() {
                return Err(StartError::Index(index));
            }
            let counters = pair.tx_counters.clone();
            let throttle = Throttle::new(self.limiters[1].clone());
            pair.tx = Some(Served::start(start, |queue| tx::TxQueue {
                chain: queue.chain(),
                tap,
                counters,
                room: FdWait::default(),
                full: false,
                throttle,
            })?);
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: QueueIndex) -> Option<QueueState> {
        if let Some((_, control)) = self.control.take_if(|(at, _)| *at == index) {
            return Some(control.stop()?.state());
        }
        let pair = self.pairs.get_mut(usize::from(index / 2))?;
        if index.is_multiple_of(2) {
            Some(pair.rx.take()?.stop()?.state())
        } else {
            Some(pair.tx.take()?.stop()?.state())
        }
    }

    fn reset(&mut self) {
        self.announce.store(false, Ordering::Relaxed);
        self.use_pairs(1);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net {
            active_pairs: self.active.load(Ordering::Relaxed),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), String> {
        match state {
            DeviceState::Net { active_pairs } if usize::from(*active_pairs) <= self.pairs.len() => {
                self.use_pairs(*active_pairs);
                // Its switch ports may be others now.
                self.announce.store(true, Ordering::Relaxed);
                Ok(())
            }
            other => Err(format!(
                "{other:?} is not a state of a network of {} queue pairs",
                self.pairs.len()
            )),
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let sum = |field: fn(&Pair) -> u64| self.pairs.iter().map(field).sum();
        vec![
            ("rx_bytes", sum(|p| p.rx_counters.bytes.get())),
            ("rx_frames", sum(|p| p.rx_counters.frames.get())),
            ("tx_bytes", sum(|p| p.tx_counters.bytes.get())),
            ("tx_frames", sum(|p| p.tx_counters.frames.get())),
        ]
    }
}
