//! The PCI transport (virtio 1.3 §4.1): modern devices only, one BAR, MSI-X.
//!
//! vCPUs come in through configuration space and the BAR; they only read and set registers, ring
//! doorbells, and hand out [`Action`]s. The machine's thread carries those out here: it alone
//! starts and stops queues.

mod held;
mod registers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::features;
use super::queue::QueueState;
use super::{DeviceState, Notify, QueueIndex, QueueStart, VirtioDevice};
use crate::bus::{Action, BusDevice, Slot};
use crate::irq::MsiSource;
use crate::memory::GuestRam;
use crate::pci::{Bar, ConfigSpace, Identity, Msix, MsixState, MsixVector, PciFunction};
use crate::worker::WorkerHandle;
use registers::{Registers, RegistersState};

/// Size of the BAR.
pub const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PBA: u64 = 0x6000;
const PAGE: u64 = 0x1000;
const COMMON_LEN: u64 = 0x38;
/// Bytes between two queues' doorbells.
const NOTIFY_MULTIPLIER: u64 = 4;

const NO_VECTOR: u16 = 0xffff;

/// Where a device's queues are between the driver's DRIVER_OK and its reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// The driver has not said DRIVER_OK.
    Idle,
    /// It has, and the queues run or are about to.
    Active,
    /// They were stopped by a pause and go on where they were.
    Paused,
    /// The driver asked for a reset that is not over yet.
    Resetting,
}

/// What is kept of a device and its transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioState {
    registers: RegistersState,
    isr: u8,
    config_vector: u16,
    vectors: Vec<u16>,
    msix: MsixState,
    config: Vec<u8>,
    device_config: Vec<u8>,
    device: DeviceState,
}

/// A kept state is not this device's.
#[derive(Debug, Error)]
#[error("device `{name}` is not the one that was saved: {what}")]
pub struct RestoreError {
    name: String,
    what: String,
}

/// What workers share with the transport.
struct Shared {
    name: String,
    registers: Mutex<Registers>,
    isr: AtomicU8,
    msix: Msix,
    config_vector: AtomicU16,
    /// How often the device gave up.
    breaks: AtomicU32,
}

impl Shared {
    fn config_changed(&self) {
        self.isr.fetch_or(2, Ordering::Relaxed);
        let mut registers = self.registers.lock();
        registers.config_generation = registers.config_generation.wrapping_add(1);
        drop(registers);
        self.fire(&self.config_vector);
    }

    fn fire(&self, vector: &AtomicU16) {
        let vector: Option<Arc<MsixVector>> = self.msix.vector(vector.load(Ordering::Relaxed));
        if let Some(vector) = vector {
            vector.fire();
        }
    }
}

/// One queue's way to its driver.
struct QueueNotify {
    shared: Arc<Shared>,
    vector: Arc<AtomicU16>,
}

impl Notify for QueueNotify {
    fn used(&self) {
        self.shared.isr.fetch_or(1, Ordering::Relaxed);
        self.shared.fire(&self.vector);
    }

    fn config_changed(&self) {
        self.shared.config_changed();
    }

    fn needs_reset(&self, why: &str) {
        // The guest decides how often this happens, so it does not decide how much is logged.
        const LOGGED: u32 = 3;
        match self.shared.breaks.fetch_add(1, Ordering::Relaxed) {
            n @ 0..LOGGED => {
                let last = if n + 1 == LOGGED {
                    " (further ones are not logged)"
                } else {
                    ""
                };
                log::error!(
                    "{}: the device needs a reset: {why}{last}",
                    self.shared.name
                );
            }
            _ => log::debug!("{}: the device needs a reset: {why}", self.shared.name),
        }
        self.shared.registers.lock().status |= features::STATUS_NEEDS_RESET;
        self.config_changed();
    }
}

/// A virtio device in a PCI slot.
pub struct VirtioPci {
    slot: Slot,
    shared: Arc<Shared>,
    config: Mutex<PciConfig>,
    device_config: ArcSwap<Vec<u8>>,
    /// Locked by the machine's thread alone, since it waits under it.
    device: Mutex<Box<dyn VirtioDevice>>,
    kicks: Vec<Arc<EventFd>>,
    /// The queue whose driver spins until it is answered.
    spun_for: Option<usize>,
    vectors: Vec<Arc<AtomicU16>>,
    /// Which worker serves each queue. Locked after the device.
    workers: Mutex<Vec<WorkerHandle>>,
    memory: GuestRam,
    /// The configuration is another than before the device was restored: its driver hears of it at the
    /// resume.
    tell_config: AtomicBool,
}

struct PciConfig {
    space: ConfigSpace,
    msix_capability: u16,
    window_capability: u16,
}

impl VirtioPci {
    /// Puts `device` behind a PCI function whose BAR is at `bar`; `worker` serves its queues.
    pub fn new(
        name: &str,
        slot: Slot,
        device: Box<dyn VirtioDevice>,
        bar: u64,
        memory: GuestRam,
        msi: Arc<dyn MsiSource>,
        worker: WorkerHandle,
    ) -> std::io::Result<VirtioPci> {
        let queues = device.queue_sizes().len() as u16;
        let vectors = queues + 1;
        let (space, msix_capability, window_capability) = configuration(&*device, bar, vectors);
        let shared = Shared {
            name: name.to_owned(),
            registers: Mutex::new(Registers::new(device.features(), device.queue_sizes())),
            isr: AtomicU8::new(0),
            msix: Msix::new(vectors, msi),
            config_vector: AtomicU16::new(NO_VECTOR),
            breaks: AtomicU32::new(0),
        };
        Ok(VirtioPci {
            slot,
            shared: Arc::new(shared),
            config: Mutex::new(PciConfig {
                space,
                msix_capability,
                window_capability,
            }),
            device_config: ArcSwap::from_pointee(device.config()),
            kicks: (0..queues)
                .map(|_| Ok(Arc::new(EventFd::new(0)?)))
                .collect::<std::io::Result<_>>()?,
            spun_for: device.spun_for().map(usize::from),
            vectors: (0..queues)
                .map(|_| Arc::new(AtomicU16::new(NO_VECTOR)))
                .collect(),
            device: Mutex::new(device),
            workers: Mutex::new(vec![worker; queues.into()]),
            memory,
            tell_config: AtomicBool::new(false),
        })
    }

    /// The device's configuration changed: the driver is told to read it again.
    pub fn config_changed(&self) {
        let config = self.device.lock().config();
        self.device_config.store(Arc::new(config));
        self.shared.config_changed();
    }

    /// The device's name, for messages and counters.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What kind of device it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self.device.lock().device_type() {
            1 => "net",
            2 => "block",
            3 => "console",
            4 => "rng",
            19 => "vsock",
            26 => "fs",
            _ => "virtio",
        }
    }

    /// The same as one that comes while the guest runs: its BAR is decoded when the guest says so.
    pub fn switched_off(self) -> VirtioPci {
        self.config.lock().space.switch_off();
        self
    }

    /// Where the BAR is, decoded or not.
    pub fn bar_address(&self) -> Option<Bar> {
        self.config.lock().space.bar_address()
    }

    /// Where the BAR is, if it is decoded.
    pub fn bar(&self) -> Option<Bar> {
        self.config.lock().space.bar()
    }

    /// The queues' doorbells that the hypervisor may ring by itself: offsets in the BAR, and the eventfds.
    pub fn doorbells(&self) -> impl Iterator<Item = (u64, &EventFd)> {
        self.kicks
            .iter()
            .enumerate()
            .filter(|(i, _)| self.spun_for != Some(*i))
            .map(|(i, kick)| (NOTIFY + NOTIFY_MULTIPLIER * i as u64, &**kick))
    }

    /// What the device counted.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.device.lock().counters()
    }

    /// What is to be kept of it. It is paused.
    pub fn save(&self) -> VirtioState {
        let device = self.device.lock();
        let load = |vector: &Arc<AtomicU16>| vector.load(Ordering::Relaxed);
        VirtioState {
            registers: self.shared.registers.lock().keep(),
            isr: self.shared.isr.load(Ordering::Relaxed),
            config_vector: self.shared.config_vector.load(Ordering::Relaxed),
            vectors: self.vectors.iter().map(load).collect(),
            msix: self.shared.msix.save(),
            config: self.config.lock().space.save(),
            // What the driver has acknowledged since is not in what it reads.
            device_config: device.config(),
            device: device.save(),
        }
    }

    /// Makes a new device what was kept: paused, if its driver uses it. Its BAR may be elsewhere then.
    pub fn restore(&self, state: &VirtioState) -> Result<(), RestoreError> {
        let fail = |what: String| RestoreError {
            name: self.name().to_owned(),
            what,
        };
        if state.vectors.len() != self.vectors.len() {
            return Err(fail("it has another number of queues".into()));
        }
        let mut config = self.config.lock();
        if !config.space.restore(&state.config) {
            return Err(fail("its configuration space is another device's".into()));
        }
        let served = self.held().is_some();
        let mut registers = self.shared.registers.lock();
        registers.take(&state.registers).map_err(|what| {
            fail(match served {
                true => format!("{what}: start its back end with all that the one before had"),
                false => what,
            })
        })?;
        let phase = registers.phase;
        drop(registers);
        self.shared.isr.store(state.isr, Ordering::Relaxed);
        let valid = |vector: u16| match vector < self.shared.msix.len() {
            true => vector,
            false => NO_VECTOR,
        };
        self.shared
            .config_vector
            .store(valid(state.config_vector), Ordering::Relaxed);
        for (vector, kept) in self.vectors.iter().zip(&state.vectors) {
            vector.store(valid(*kept), Ordering::Relaxed);
        }
        let mut device = self.device.lock();
        device.restore(&state.device).map_err(fail)?;
        let now = device.config();
        drop(device);
        let changed = now != state.device_config;
        self.device_config.store(Arc::new(now));
        self.tell_config.store(changed, Ordering::Relaxed);
        let control = config.space.read(config.msix_capability + 2, 2) as u16;
        if !self.shared.msix.restore(&state.msix, control) {
            return Err(fail("its interrupt table is another device's".into()));
        }
        drop(config);
        if phase == Phase::Resetting {
            // The driver had asked for it, and waits.
            self.reset();
        }
        Ok(())
    }

    /// Carries out [`Action::Activate`]: runs the queues that the driver enabled.
    pub fn activate(&self) {
        self.start();
    }

    /// Carries out [`Action::Reset`]: stops the queues and shows the driver a fresh device.
    pub fn reset(&self) {
        self.stop();
        let mut device = self.device.lock();
        device.reset();
        self.device_config.store(Arc::new(device.config()));
        drop(device);
        self.shared.msix.reset();
        self.shared.isr.store(0, Ordering::Relaxed);
        self.shared
            .config_vector
            .store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.shared.registers.lock().reset();
    }

    /// Stops the queues where they are, with nothing in flight.
    pub fn pause(&self) {
        let (phase, running, enabled) = {
            let mut registers = self.shared.registers.lock();
            let phase = registers.phase;
            if phase == Phase::Active {
                registers.phase = Phase::Paused;
            }
            (phase, registers.running, registers.enabled_queues())
        };
        if phase == Phase::Resetting {
            // The reset is still to be carried out, and nothing is to be in flight until then.
            self.stop();
        }
        // An activation that is still to be carried out finds its queues where the driver set them up.
        if phase == Phase::Active && running {
            let stopped = self.stop();
            let lost = |(index, _): &(QueueIndex, _)| !stopped.contains(index);
            if let Some((index, _)) = enabled.iter().find(|queue| lost(queue)) {
                // To go on from where it stood earlier would do again what was done.
                log::error!(
                    "{}: it is not known where queue {index} stands: the device needs a reset",
                    self.shared.name
                );
                self.shared.registers.lock().status |= features::STATUS_NEEDS_RESET;
                self.shared.config_changed();
            }
        }
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn resume(&self) {
        {
            let mut registers = self.shared.registers.lock();
            if registers.phase != Phase::Paused {
                return;
            }
            registers.phase = Phase::Active;
        }
        self.start();
        if self.tell_config.swap(false, Ordering::Relaxed) {
            self.shared.config_changed();
        }
    }

    /// Runs the queues if they are to run and do not yet: an activation that a pause and a resume
    /// overtook finds them running.
    fn start(&self) {
        let (negotiated, states) = {
            let mut registers = self.shared.registers.lock();
            if registers.phase != Phase::Active || std::mem::replace(&mut registers.running, true) {
                return;
            }
            if registers.status & features::STATUS_NEEDS_RESET != 0 {
                // It is not known where its queues stand: the driver begins anew.
                return;
            }
            (registers.driver_features, registers.enabled_queues())
        };
        let mut device = self.device.lock();
        self.start_queues(&mut **device, negotiated, &states);
    }

    fn start_queues(
        &self,
        device: &mut dyn VirtioDevice,
        negotiated: u64,
        states: &[(QueueIndex, QueueState)],
    ) {
        for (index, state) in states.iter().copied() {
            let notify = QueueNotify {
                shared: self.shared.clone(),
                vector: self.vectors[usize::from(index)].clone(),
            };
            let start = QueueStart {
                state,
                features: negotiated,
                memory: self.memory.clone(),
                kick: self.kicks[usize::from(index)].clone(),
                notify: Arc::new(notify),
                worker: self.workers.lock()[usize::from(index)].clone(),
                name: format!("{}/{index}", self.shared.name).into(),
            };
            let notify = start.notify.clone();
            if let Err(e) = device.start_queue(index, start) {
                notify.needs_reset(&format!("queue {index} cannot start: {}", chain(&e)));
                // The others would fail the same way, and each may take its time.
                return;
            }
        }
    }

    /// Stops all queues: those whose state is known.
    fn stop(&self) -> Vec<QueueIndex> {
        let mut device = self.device.lock();
        let all: Vec<_> = (0..self.kicks.len() as QueueIndex).collect();
        let stopped = self.stop_queues(&mut **device, &all);
        self.shared.registers.lock().running = false;
        stopped.into_iter().map(|(index, _)| index).collect()
    }

    /// Stops queues and keeps where they stood; those that ran.
    fn stop_queues(
        &self,
        device: &mut dyn VirtioDevice,
        indices: &[QueueIndex],
    ) -> Vec<(QueueIndex, QueueState)> {
        let mut stopped = Vec::new();
        for index in indices.iter().copied() {
            if let Some(state) = device.stop_queue(index) {
                self.shared.registers.lock().save(index, state);
                stopped.push((index, state));
            }
        }
        stopped
    }

    /// Number of queues.
    pub fn queues(&self) -> u16 {
        self.kicks.len() as u16
    }

    /// Lets `worker` serve the queues of these numbers from now on; all, if the device's cannot be
    /// parted. Queues that run go on where they stood, and nothing of them is lost or done twice: what
    /// is in flight ends on the worker before.
    pub fn move_queues(&self, indices: &[QueueIndex], worker: &WorkerHandle) {
        let mut device = self.device.lock();
        let all: Vec<_> = (0..self.queues()).collect();
        let indices = if device.moves_whole() { &all } else { indices };
        for index in indices {
            if let Some(place) = self.workers.lock().get_mut(usize::from(*index)) {
                *place = worker.clone();
            }
        }
        let (running, negotiated) = {
            let registers = self.shared.registers.lock();
            (registers.running, registers.driver_features)
        };
        if running {
            let mut others = indices.to_vec();
            others.retain(|index| !device.move_queue(*index, worker));
            let states = self.stop_queues(&mut **device, &others);
            self.start_queues(&mut **device, negotiated, &states);
        }
    }

    fn write_status(&self, value: u8) -> Action {
        let mut registers = self.shared.registers.lock();
        if value == 0 {
            return match registers.phase {
                Phase::Idle => {
                    registers.reset();
                    self.forget_vectors();
                    Action::None
                }
                Phase::Resetting => Action::None,
                Phase::Active | Phase::Paused => {
                    registers.phase = Phase::Resetting;
                    Action::Reset(self.slot)
                }
            };
        }
        if registers.set_status(value) {
            Action::Activate(self.slot)
        } else {
            Action::None
        }
    }

    fn forget_vectors(&self) {
        self.shared
            .config_vector
            .store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
    }

    fn common_read(&self, offset: u64, size: u8) -> u64 {
        use registers::offsets::*;
        let value = match offset {
            CONFIG_MSIX_VECTOR => self.shared.config_vector.load(Ordering::Relaxed).into(),
            QUEUE_MSIX_VECTOR => {
                let select = self.shared.registers.lock().queue_select;
                let vector = self.vectors.get(usize::from(select));
                vector
                    .map_or(NO_VECTOR, |v| v.load(Ordering::Relaxed))
                    .into()
            }
            _ => self.shared.registers.lock().read(offset, size),
        };
        value & registers::mask(size)
    }

    fn common_write(&self, offset: u64, size: u8, value: u64) -> Action {
        use registers::offsets::*;
        let vector = |value: u64| {
            let value = value as u16;
            // A vector that does not exist is refused by showing none (virtio 1.3 §4.1.5.1.2).
            if value < self.shared.msix.len() {
                value
            } else {
                NO_VECTOR
            }
        };
        match offset {
            DEVICE_STATUS if size == 1 => return self.write_status(value as u8),
            CONFIG_MSIX_VECTOR => self
                .shared
                .config_vector
                .store(vector(value), Ordering::Relaxed),
            QUEUE_MSIX_VECTOR => {
                let select = self.shared.registers.lock().queue_select;
                if let Some(v) = self.vectors.get(usize::from(select)) {
                    v.store(vector(value), Ordering::Relaxed);
                }
            }
            _ => self.shared.registers.lock().write(offset, size, value),
        }
        Action::None
    }

    /// The window into the BAR in configuration space (VIRTIO_PCI_CAP_PCI_CFG, §4.1.4.9): which
    /// access its fields describe, if `offset` is its data.
    fn window(&self, config: &PciConfig, offset: u16) -> Option<(u64, u8)> {
        let at = config.window_capability;
        if offset != at + 16 || config.space.read(at + 4, 1) != 0 {
            return None;
        }
        let len = config.space.read(at + 12, 4);
        let target = config.space.read(at + 8, 4);
        matches!(len, 1 | 2 | 4).then_some((target.into(), len as u8))
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// The function's configuration space, and where its MSI-X and window capabilities are.
fn configuration(device: &dyn VirtioDevice, bar: u64, vectors: u16) -> (ConfigSpace, u16, u16) {
    let kind = device.device_type();
    let class = match kind {
        1 => 0x02_0000,
        2 => 0x01_8000,
        3 => 0x07_8000,
        _ => 0xff_0000,
    };
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1040 + kind,
        revision: 1,
        class,
        subsystem: 0x40 + kind,
    });
    space.set_bar(bar, BAR_SIZE);
    // struct virtio_pci_cap: id, next, len, type, bar, id, padding, offset, length.
    let capability = |kind: u8, offset: u64, len: u64, extra: &[u8]| {
        let mut body = vec![16 + extra.len() as u8, kind, 0, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((len as u32).to_le_bytes());
        body.extend(extra);
        body
    };
    const VENDOR: u8 = 0x09;
    space.add_capability(VENDOR, &capability(1, COMMON, COMMON_LEN, &[]), &[]);
    let multiplier = (NOTIFY_MULTIPLIER as u32).to_le_bytes();
    space.add_capability(VENDOR, &capability(2, NOTIFY, PAGE, &multiplier), &[]);
    space.add_capability(VENDOR, &capability(3, ISR, 1, &[]), &[]);
    let config_len = device.config().len() as u64;
    if config_len > 0 {
        space.add_capability(VENDOR, &capability(4, DEVICE, config_len, &[]), &[]);
    }
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let window = space.add_capability(VENDOR, &capability(5, 0, 0, &[0; 4]), &writable);
    let mut body = Vec::from((vectors - 1).to_le_bytes());
    body.extend((MSIX_TABLE as u32).to_le_bytes());
    body.extend((MSIX_PBA as u32).to_le_bytes());
    let msix = space.add_capability(0x11, &body, &[0, 0xc0]);
    (space, msix, window)
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u16, size: u8) -> u32 {
        let config = self.config.lock();
        match self.window(&config, offset) {
            Some((target, len)) => {
                drop(config);
                self.read(target, len) as u32
            }
            None => config.space.read(offset, size),
        }
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) -> Action {
        let mut config = self.config.lock();
        if let Some((target, len)) = self.window(&config, offset) {
            drop(config);
            return self.write(target, len, u64::from(value) & registers::mask(len));
        }
        let before = config.space.bar();
        config.space.write(offset, size, value);
        let control = config.msix_capability + 2;
        if (offset..offset.saturating_add(size.into())).contains(&(control + 1)) {
            let control = config.space.read(control, 2) as u16;
            self.shared.msix.set_control(control);
        }
        if before == config.space.bar() {
            Action::None
        } else {
            Action::ChangeLayout(self.slot)
        }
    }
}

impl BusDevice for VirtioPci {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset {
            COMMON..ISR => self.common_read(offset - COMMON, size),
            // Reading acknowledges (§4.1.4.5).
            ISR => self.shared.isr.swap(0, Ordering::Relaxed).into(),
            DEVICE..NOTIFY => {
                let config = self.device_config.load();
                let mut value = [0; 8];
                let rest = config.get((offset - DEVICE) as usize..).unwrap_or_default();
                let n = rest.len().min(size.min(8).into());
                value[..n].copy_from_slice(&rest[..n]);
                u64::from_le_bytes(value)
            }
            MSIX_TABLE..MSIX_PBA => self.shared.msix.table_read(offset - MSIX_TABLE, size),
            MSIX_PBA..BAR_SIZE => self.shared.msix.pending_read(offset - MSIX_PBA, size),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Action {
        match offset {
            COMMON..ISR => return self.common_write(offset - COMMON, size, value),
            // Usually the hypervisor's ioeventfd takes these.
            NOTIFY..MSIX_TABLE => {
                let queue = ((offset - NOTIFY) / NOTIFY_MULTIPLIER) as usize;
                if let Some(kick) = self.kicks.get(queue) {
                    let _ = kick.write(1);
                    if self.spun_for == Some(queue) {
                        // The guest would spin for as long as the worker has no CPU.
                        std::thread::yield_now();
                    }
                }
            }
            MSIX_TABLE..MSIX_PBA => self
                .shared
                .msix
                .table_write(offset - MSIX_TABLE, size, value),
            _ => {}
        }
        Action::None
    }
}

#[cfg(test)]
#[path = "transport_test.rs"]
mod tests;
