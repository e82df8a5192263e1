//! One booted machine: it owns the memory, the CPUs, the buses and the devices.
//!
//! The order of its life: [`Machine::boot`] (stopped CPUs, then they run), any number of
//! [`pause`](Machine::pause) and [`resume`](Machine::resume), then drop: CPUs stop first, then
//! queues, then streams, then workers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use skerry_devices::bus::{Action, BusError, Slot};
use skerry_devices::legacy::AcpiEvents;
use skerry_devices::memory::GuestRam;
use skerry_devices::pci::PciError;
use skerry_devices::stream::{Input, OutputGuard};
use skerry_devices::virtio::net::{TapError, VhostNetError};
use skerry_devices::virtio::transport::VirtioPci;
use skerry_devices::virtio::vhost_user::VhostUserError;
use skerry_devices::virtio::vsock::VsockError;
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::DiskConfig;
use skerry_vmm_api::requests::{DeviceNode, VmCounters};
use skerry_vmm_api::workers::VmMoveQueues;
use thiserror::Error;

use crate::arch::{self, ArchError, layout};
use crate::assembly::Assembly;
use crate::board::Board;
use crate::disks::{DiskError, DiskRequest, Disks};
use crate::kernel::{Kernel, KernelError};
use crate::memory::{self, MemoryError};
use crate::sandbox::{Sandbox, ThreadKind};
use crate::terminal::Terminal;
use crate::vcpu::{CpuEvents, Vcpu};
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
    cpus: Vec<Vcpu>,
    queues: Queues,
    /// Its images are closed when no queue runs any more, and before the worker ends.
    disks: Disks,
    events: Arc<AcpiEvents>,
    _input: Option<Input>,
    _output: Option<OutputGuard>,
    workers: Workers,
    memory_size: u64,
    /// Goes before the memory that it maps.
    _vm: Arc<VmFd>,
    _memory: GuestRam,
}

/// The devices; their queues are stopped before anything below them goes away.
struct Queues(Arc<Board>);

impl Drop for Queues {
    fn drop(&mut self) {
        for (_, function) in self.0.functions() {
            function.reset();
        }
    }
}

impl Machine {
    /// Builds and starts the machine of a checked configuration.
    pub fn boot(
        kvm: &Kvm,
        config: &VmConfig,
        terminals: &Terminals,
        events: Arc<dyn CpuEvents>,
        sandbox: Sandbox,
    ) -> Result<Machine, MachineError> {
        // What may be refused comes before what takes time.
        let kernel_path = config.payload.kernel.clone().unwrap_or_default();
        let kernel_file = open("kernel", &kernel_path)?;
        let mut initramfs = config
            .payload
            .initramfs
            .as_ref()
            .map(|path| open("initramfs", path))
            .transpose()?;
        let workers = Workers::start(config, sandbox)?;
        let memory = memory::create(&config.memory)?;
        let vm = Arc::new(kvm.create_vm().map_err(|source| MachineError::Kvm {
            what: "create a VM",
            source,
        })?);
        // Memory comes first: once there is an interrupt chip, adding a region makes KVM wait for
        // every CPU of the host (milliseconds).
        memory::map_into(&vm, &memory)?;
        arch::prepare_vm(&vm)?;
        let kernel = Kernel::load(&memory, &kernel_path, &kernel_file)?;
        let ram = GuestRam::new(memory);

        let mut assembly = Assembly::new(vm.clone(), ram.clone());
        assembly.legacy(config)?;
        let (input, output) = assembly.serial(config, &terminals.serial, &workers.default())?;
        assembly.devices(config, terminals, &workers)?;
        let board = Arc::new(assembly.board);
        let queues = Queues(board.clone());

        let features = arch::CpuFeatures::of(kvm)?;
        let shape = MachineShape {
            cpus: config.cpus.boot_vcpus,
            memory: config.memory.size,
            phys_bits: config.cpus.max_phys_bits.min(features.phys_bits()),
            nested: config.cpus.nested,
            pvpanic: config.pvpanic,
        };
        let cmdline = config.payload.cmdline.as_deref().unwrap_or_default();
        let boot = arch::prepare_boot(ram.memory(), &kernel, cmdline, initramfs.as_mut(), &shape)?;
        let mut cpus = Vec::new();
        for index in 0..shape.cpus {
            let fd = vm
                .create_vcpu(index.into())
                .map_err(|source| MachineError::Kvm {
                    what: "create a CPU",
                    source,
                })?;
            let start = (index == 0).then_some(&boot);
            arch::setup_vcpu(&features, &fd, index, &shape, start)?;
            let affinity = config
                .cpus
                .affinity
                .iter()
                .find(|a| a.vcpu == index)
                .cloned();
            let prepare = move || {
                if let Some(affinity) = affinity {
                    pin(&format!("CPU {index}"), &affinity.host_cpus)?;
                }
                sandbox.enter(ThreadKind::Vcpu)
            };
            let cpu = Vcpu::start(index, fd, board.clone(), events.clone(), prepare);
            cpus.push(cpu.map_err(system("start a CPU's thread"))?);
        }
        // Threads prepare themselves side by side, and each CPU runs as soon as it is ready.
        cpus.iter().for_each(Vcpu::resume);
        let machine = Machine {
            cpus,
            queues,
            disks: assembly.disks,
            events: assembly.events,
            _input: input,
            _output: output,
            workers,
            memory_size: config.memory.size,
            _memory: ram,
            _vm: vm,
        };
        machine.workers.wait_prepared()?;
        for cpu in &machine.cpus {
            cpu.wait_prepared()
                .map_err(system("start a CPU's thread"))?;
        }
        Ok(machine)
    }

    fn board(&self) -> &Board {
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

    /// Presses the power button.
    pub fn power_button(&self) {
        self.events.power_button();
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
            Action::None | Action::PowerOff | Action::Reboot | Action::GuestPanic => {}
        }
    }

    /// Bytes of RAM.
    pub fn memory_size(&self) -> u64 {
        self.memory_size
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

    /// The devices, by name.
    pub fn device_tree(&self) -> BTreeMap<String, DeviceNode> {
        let node = |(slot, function): (Slot, Arc<VirtioPci>)| {
            let id = function.name().to_owned();
            let bdf = format!("0000:00:{:02x}.0", slot.0);
            (
                id.clone(),
                DeviceNode {
                    id,
                    pci_bdf: Some(bdf),
                    children: Vec::new(),
                },
            )
        };
        self.board().functions().into_iter().map(node).collect()
    }
}

fn open(what: &'static str, path: &std::path::Path) -> Result<File, MachineError> {
    let error = |source| MachineError::Open {
        what,
        path: path.to_owned(),
        source,
    };
    // Opening a FIFO must not block the monitor.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    if metadata.is_dir() {
        return Err(error(io::ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        return Err(error(io::Error::other("it is no regular file")));
    }
    Ok(file)
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
