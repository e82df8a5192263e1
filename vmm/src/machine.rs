//! One booted machine: it owns the memory, the CPUs, the buses and the devices.
//!
//! The order of its life: `start.rs` boots or restores it, any number of
//! [`pause`](Machine::pause) and [`resume`](Machine::resume), then drop: CPUs stop first, then
//! queues, then streams, then workers.

mod coming;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use skerry_devices::bus::{Action, BusError, Slot};
use skerry_devices::pci::PciError;
use skerry_devices::stream::{Input, OutputGuard};
use skerry_devices::virtio::net::{TapError, VhostNetError};
use skerry_devices::virtio::transport::{RestoreError, VirtioPci};
use skerry_devices::virtio::vhost_user::VhostUserError;
use skerry_devices::virtio::vsock::VsockError;
use skerry_snapshot::{Range, SnapshotError};
use skerry_vmm_api::config::DiskConfig;
use skerry_vmm_api::requests::{DeviceNode, VmCounters, VmUsage};
use skerry_vmm_api::snapshots::DiskOverlay;
use skerry_vmm_api::workers::VmMoveQueues;
use thiserror::Error;

use crate::arch::{self, ArchError, CpuTold, MsrIndices, layout};
use crate::assembly::Legacy;
use crate::board::Board;
use crate::disks::{DiskError, DiskRequest, Disks, Frozen};
use crate::exits::ExitStats;
use crate::kernel::KernelError;
use crate::memory::{
    FaultServer, MemoryError, Prefault, Ram, RestoreError as MemoryRestoreError, TrackError,
};
use crate::slots::Slots;
use crate::snapshot::Tracking;
use crate::terminal::Terminal;
use crate::vcpu::Vcpu;
use crate::workers::{WorkerError, WorkerRequest, Workers};

/// Why a machine could not be booted.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MachineError {
    #[error("KVM cannot {what}")]
    Kvm {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("cannot open {what} {path}")]
    Open {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Arch(#[from] ArchError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error(transparent)]
    VhostNet(#[from] VhostNetError),
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error("two devices at one address")]
    Bus(#[from] BusError),
    #[error(transparent)]
    RestoreMemory(#[from] MemoryRestoreError),
    #[error(transparent)]
    RestoreDevice(#[from] RestoreError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(
        "the saved state has a device `{0}` that the configuration lacks, or the other way round"
    )]
    Devices(String),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        source: io::Error,
    },
}

/// Names what was tried when the system refuses it.
pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::System { what, source }
}

/// What CPUs and firmware tables tell the guest.
#[derive(Debug, Clone, Copy)]
pub struct MachineShape {
    /// CPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Physical address bits.
    pub phys_bits: u8,
    /// Guests see the hardware's virtualisation.
    pub nested: bool,
    /// There is a panic port.
    pub pvpanic: bool,
}

impl MachineShape {
    /// Where BARs above 4 GiB may go: first and last address.
    pub fn high_window(&self) -> (u64, u64) {
        const ALIGN: u64 = 1 << 30;
        let ram_end = layout::ram(self.memory)
            .last()
            .map_or(0, |(base, len)| base + len);
        let first = ram_end.max(layout::HIGH_RAM).next_multiple_of(ALIGN);
        let last = (1u64 << self.phys_bits.clamp(36, 52)) - 1;
        (first, last.max(first + ALIGN - 1))
    }
}

/// The consoles' host sides, which outlive a machine when it reboots.
pub struct Terminals {
    /// Of the serial port.
    pub serial: Terminal,
    /// Of the virtio console.
    pub console: Terminal,
}

/// A booted machine. Fields are dropped in order.
pub struct Machine {
    pub(crate) cpus: Vec<Vcpu>,
    /// What KVM counts of them.
    pub(crate) exits: Vec<Option<ExitStats>>,
    /// What each was told of its features.
    pub(crate) told: Vec<CpuTold>,
    pub(crate) queues: Queues,
    /// Its images are closed when no queue runs any more, and before the worker ends.
    pub(crate) disks: Disks,
    pub(crate) slots: Slots,
    pub(crate) legacy: Legacy,
    pub(crate) _input: Option<Input>,
    pub(crate) _output: Option<OutputGuard>,
    pub(crate) workers: Workers,
    /// Fetches memory ahead. It goes before the one who fetches it.
    pub(crate) prefault: Option<Prefault>,
    /// Fetches memory that is touched, until all of it is there.
    pub(crate) faults: Option<FaultServer>,
    pub(crate) msrs: MsrIndices,
    /// Writes since the last snapshot, if somebody wants to know.
    pub(crate) tracking: Option<Tracking>,
    /// Goes before the memory that it maps.
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: Ram,
}

/// The devices; their queues are stopped before anything below them goes away.
pub(crate) struct Queues(pub Arc<Board>);

impl Drop for Queues {
    fn drop(&mut self) {
        for (_, function) in self.0.functions() {
            function.reset();
        }
    }
}

impl Machine {
    pub(crate) fn board(&self) -> &Board {
        &self.queues.0
    }

    /// Stops CPUs, then queues, where they are.
    pub fn pause(&self) {
        self.cpus.iter().for_each(Vcpu::pause);
        self.cpus.iter().for_each(Vcpu::wait_paused);
        for (_, function) in self.board().functions() {
            function.pause();
        }
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.workers.revive();
        for (_, function) in self.board().functions() {
            function.resume();
        }
        for cpu in &self.cpus {
            cpu.errand(|fd| arch::was_paused(fd));
        }
        self.cpus.iter().for_each(Vcpu::resume);
    }

    /// Does or begins work on disks.
    pub fn disk_request(
        &mut self,
        request: DiskRequest,
    ) -> Result<Option<serde_json::Value>, DiskError> {
        let worker = self.workers.default();
        let changed = |id: &str| {
            let functions = self.queues.0.functions();
            for (_, function) in functions.iter().filter(|(_, f)| f.name() == id) {
                function.config_changed();
            }
        };
        self.disks.serve(request, &worker, changed)
    }

    /// Looks at workers, or changes what they do.
    pub fn worker_request(
        &mut self,
        request: WorkerRequest,
    ) -> Result<Option<serde_json::Value>, WorkerError> {
        match request {
            WorkerRequest::List => {
                // These types have string keys and no values that JSON lacks.
                let list = serde_json::to_value(self.workers.list());
                return Ok(Some(list.unwrap_or_default()));
            }
            WorkerRequest::Set(set) => self.workers.set(&set)?,
            WorkerRequest::MoveQueues(queues) => self.move_queues(&queues)?,
        }
        Ok(None)
    }

    fn move_queues(&mut self, queues: &VmMoveQueues) -> Result<(), WorkerError> {
        let functions = self.board().functions();
        let found = functions.iter().find(|(_, f)| f.name() == queues.id);
        let Some((_, function)) = found else {
            return Err(WorkerError::NoDevice(queues.id.clone()));
        };
        let count = function.queues();
        let indices = match &queues.queues {
            Some(indices) => indices.clone(),
            None => (0..count).collect(),
        };
        if let Some(queue) = indices.iter().copied().find(|i| *i >= count) {
            return Err(WorkerError::NoQueue {
                id: queues.id.clone(),
                queue,
                queues: count,
            });
        }
        self.workers.revive();
        function.move_queues(&indices, &self.workers.named(Some(&queues.worker))?);
        Ok(())
    }

    /// Says in the configuration which layers the disks have now.
    pub fn note_layers(&self, disks: &mut [DiskConfig]) {
        self.disks.note_layers(disks);
    }

    /// As [`note_layers`](Self::note_layers), when what is under way on disks has been ended.
    pub fn settle_disks(&mut self, disks: &mut [DiskConfig]) {
        self.disks.end_jobs();
        self.disks.note_layers(disks);
    }

    /// Prepares to freeze disks, under new layers.
    pub fn prepare_freeze(&mut self, overlays: Vec<DiskOverlay>) -> Result<Vec<Frozen>, DiskError> {
        self.disks.prepare_freeze(overlays, &self.workers.default())
    }

    /// Freezes disks. The machine is paused.
    pub fn freeze(&mut self, frozen: Vec<Frozen>) -> Result<(), DiskError> {
        self.disks.freeze(frozen, &self.workers.default())
    }

    /// A disk with bitmaps, if there is one.
    pub fn disk_with_bitmaps(&self) -> Option<String> {
        self.disks.with_bitmaps().map(str::to_owned)
    }

    /// Lets another process have the disks. The machine is paused.
    pub fn let_disks_go(&mut self) -> Result<(), DiskError> {
        self.disks.let_go(&self.workers.default())
    }

    /// Takes the disks back that were let go.
    pub fn take_disks_back(&mut self) -> Result<(), DiskError> {
        self.disks.take_back()
    }

    /// The disks are another process's now: they are not even closed.
    pub fn forget_disks(&mut self) {
        self.disks.forget();
    }

    /// What the guest has touched since it was restored.
    pub fn working_set(&self) -> Result<Vec<Range>, TrackError> {
        match &self.faults {
            Some(faults) => Ok(faults.asked()),
            None => self.ram.touched(),
        }
    }

    /// Fetches memory in the background, at so many bytes a second.
    pub fn fetch_ahead(&mut self, ranges: Vec<Range>, bandwidth: u64) -> Result<(), MachineError> {
        let prefault = Prefault::start(&self.ram, self.faults.as_ref(), ranges, bandwidth.max(1));
        self.prefault = Some(prefault.map_err(system("start fetching memory ahead"))?);
        Ok(())
    }

    /// Fetches all memory that is missing, since all of it is needed now.
    pub fn complete_memory(&mut self) -> std::io::Result<()> {
        if let Some(faults) = &self.faults {
            // As long as some of it is missing, there must be one who fetches it.
            faults.complete()?;
        }
        self.prefault = None;
        self.faults = None;
        Ok(())
    }

    /// Slows the guest down: its CPUs stand still for so many percent of the time.
    pub fn throttle(&self, percent: u32) {
        self.cpus.iter().for_each(|cpu| cpu.throttle(percent));
    }

    /// Presses the power button.
    pub fn power_button(&self) {
        self.legacy.events.power_button();
    }

    /// Carries out what a guest asked of a device. It may wait for I/O in flight.
    pub fn carry_out(&mut self, action: Action) {
        match action {
            Action::Activate(slot) => {
                self.workers.revive();
                if let Some(function) = self.board().function(slot) {
                    function.activate();
                }
            }
            Action::Reset(slot) => {
                if let Some(function) = self.board().function(slot) {
                    function.reset();
                }
            }
            Action::ChangeLayout(slot) => self.board().change_layout(slot),
            // The monitor asks for what was given back when nothing else is under way.
            Action::Eject => {}
            Action::None | Action::PowerOff | Action::Reboot | Action::GuestPanic => {}
        }
    }

    /// Bytes of RAM.
    pub fn memory_size(&self) -> u64 {
        self.ram.size()
    }

    /// What the devices counted, by name.
    pub fn counters(&self) -> VmCounters {
        let named = |(_, function): (Slot, Arc<VirtioPci>)| {
            let counters = function.counters();
            let counters: BTreeMap<_, _> = counters
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect();
            (!counters.is_empty()).then(|| (function.name().to_owned(), counters))
        };
        self.board()
            .functions()
            .into_iter()
            .filter_map(named)
            .collect()
    }

    /// All that is counted.
    pub fn usage(&self) -> VmUsage {
        let exits = |stats: &Option<ExitStats>| {
            let read = stats.as_ref().and_then(|stats| stats.read().ok());
            read.unwrap_or_default()
        };
        VmUsage {
            devices: self.counters(),
            cpus: self.exits.iter().map(exits).collect(),
            workers: self.workers.list(),
        }
    }

    /// The devices, by name.
    pub fn device_tree(&self) -> BTreeMap<String, DeviceNode> {
        let node = |(slot, function): (Slot, Arc<VirtioPci>)| {
            let id = function.name().to_owned();
            (
                id.clone(),
                DeviceNode {
                    id,
                    pci_bdf: Some(bdf(slot)),
                    children: Vec::new(),
                },
            )
        };
        self.board().functions().into_iter().map(node).collect()
    }
}

/// A slot's address as PCI writes it.
fn bdf(slot: Slot) -> String {
    format!("0000:00:{:02x}.0", slot.0)
}

/// Lets the calling thread, which is `what`, run on these CPUs of the host only.
pub(crate) fn pin(what: &str, cpus: &[usize]) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        if *cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(io::Error::other(format!("host CPU {cpu} does not exist")));
        }
        set.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|e| io::Error::other(format!("cannot run {what} on host CPUs {cpus:?}: {e}")))
}
