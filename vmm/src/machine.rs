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
use skerry_devices::irq::MsiSource;
use skerry_devices::legacy::{
    AcpiEvents, AcpiRegisters, I8042, IoApic, IoApicPin, PvPanic, Rtc, Serial,
};
use skerry_devices::memory::GuestRam;
use skerry_devices::pci::{ConfigPorts, ECAM_BUS_SIZE, Ecam, PciError, PciRoot};
use skerry_devices::stream::{Input, Output, OutputGuard};
use skerry_devices::virtio::VirtioDevice;
use skerry_devices::virtio::blk::{Blk, Disk, DiskError, DiskOptions};
use skerry_devices::virtio::console::{Console, ConsoleIo};
use skerry_devices::virtio::net::{Net, NetOffloads, Tap, TapError};
use skerry_devices::virtio::rng::Rng;
use skerry_devices::virtio::transport::{BAR_SIZE, VirtioPci};
use skerry_devices::virtio::vsock::{Vsock, VsockError};
use skerry_devices::worker::{Worker, WorkerHandle};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{ConsoleMode, CpuAffinity};
use skerry_vmm_api::requests::{DeviceNode, VmCounters};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::{self, ArchError, layout};
use crate::board::Board;
use crate::interrupts::{Interrupts, Vectors};
use crate::kernel::{Kernel, KernelError};
use crate::memory::{self, MemoryError};
use crate::sandbox::{Sandbox, ThreadKind};
use crate::terminal::Terminal;
use crate::validate::{mac_of, parse_mac};
use crate::vcpu::{CpuEvents, Vcpu};

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
    Pci(#[from] PciError),
    #[error("two devices at one address")]
    Bus(#[from] BusError),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> MachineError {
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
    events: Arc<AcpiEvents>,
    _input: Option<Input>,
    _output: Option<OutputGuard>,
    worker: Worker,
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
        let worker = Worker::start("io", move || sandbox.enter(ThreadKind::Worker))
            .map_err(system("start the I/O worker"))?;
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
        let (input, output) = assembly.serial(config, &terminals.serial, &worker.handle())?;
        assembly.devices(config, terminals)?;
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
                pin(affinity.as_ref())?;
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
            events: assembly.events,
            _input: input,
            _output: output,
            worker,
            memory_size: config.memory.size,
            _memory: ram,
            _vm: vm,
        };
        let prepared = machine.worker.wait_prepared();
        prepared.map_err(system("start the I/O worker"))?;
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
    pub fn resume(&self) {
        for (_, function) in self.board().functions() {
            function.resume(&self.worker.handle());
        }
        self.cpus.iter().for_each(Vcpu::resume);
    }

    /// Presses the power button.
    pub fn power_button(&self) {
        self.events.power_button();
    }

    /// Carries out what a guest asked of a device. It may wait for I/O in flight.
    pub fn carry_out(&self, action: Action) {
        match action {
            Action::Activate(slot) => {
                if let Some(function) = self.board().function(slot) {
                    function.activate(&self.worker.handle());
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

fn pin(affinity: Option<&CpuAffinity>) -> io::Result<()> {
    let Some(affinity) = affinity else {
        return Ok(());
    };
    let mut set = rustix::thread::CpuSet::new();
    for cpu in &affinity.host_cpus {
        if *cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(io::Error::other(format!("host CPU {cpu} does not exist")));
        }
        set.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).map_err(|e| {
        io::Error::other(format!(
            "cannot run CPU {} on host CPUs {:?}: {e}",
            affinity.vcpu, affinity.host_cpus
        ))
    })
}

/// A board being filled.
struct Assembly {
    board: Board,
    pci: Arc<PciRoot>,
    ioapic: Arc<IoApic>,
    vectors: Arc<dyn MsiSource>,
    events: Arc<AcpiEvents>,
    ram: GuestRam,
    next_bar: u64,
}

impl Assembly {
    fn new(vm: Arc<VmFd>, ram: GuestRam) -> Assembly {
        let interrupts = Interrupts::new(vm.clone());
        let ioapic = Arc::new(IoApic::new(interrupts.clone()));
        let event_line = Arc::new(IoApicPin::new(ioapic.clone(), layout::ACPI_EVENTS_GSI));
        Assembly {
            board: Board::new(vm, ioapic.clone()),
            pci: Arc::new(PciRoot::new()),
            ioapic,
            vectors: Arc::new(Vectors(interrupts)),
            events: Arc::new(AcpiEvents::new(event_line)),
            ram,
            next_bar: layout::PCI_WINDOW,
        }
    }

    fn legacy(&self, config: &VmConfig) -> Result<(), MachineError> {
        let (ports, memory) = (&self.board.ports, &self.board.memory_bus);
        memory.insert(layout::IOAPIC, 0x1000, self.ioapic.clone())?;
        memory.insert(
            layout::ECAM,
            ECAM_BUS_SIZE,
            Arc::new(Ecam(self.pci.clone())),
        )?;
        ports.insert(
            layout::PCI_PORTS,
            8,
            Arc::new(ConfigPorts(self.pci.clone())),
        )?;
        ports.insert(layout::I8042, 5, Arc::new(I8042))?;
        ports.insert(layout::RTC, 2, Arc::new(Rtc::default()))?;
        ports.insert(layout::ACPI_REGISTERS, 3, Arc::new(AcpiRegisters))?;
        ports.insert(layout::ACPI_EVENTS, 1, self.events.clone())?;
        if config.pvpanic {
            ports.insert(layout::PVPANIC, 1, Arc::new(PvPanic))?;
        }
        Ok(())
    }

    fn serial(
        &self,
        config: &VmConfig,
        terminal: &Terminal,
        worker: &WorkerHandle,
    ) -> Result<(Option<Input>, Option<OutputGuard>), MachineError> {
        if config.serial.mode == ConsoleMode::Off {
            return Ok((None, None));
        }
        let line = Arc::new(IoApicPin::new(self.ioapic.clone(), layout::COM1_GSI));
        let duplicate = system("duplicate the serial port's descriptor");
        let (output, guard): (Box<dyn io::Write + Send>, _) =
            match terminal.output().map_err(&duplicate)? {
                Some(fd) => {
                    let (output, guard) = Output::start(fd, worker)
                        .map_err(system("start the serial port's output"))?;
                    (Box::new(output), Some(guard))
                }
                None => (Box::new(io::sink()), None),
            };
        let resume = Arc::new(EventFd::new(0).map_err(system("make an eventfd"))?);
        let input = terminal.input().map_err(&duplicate)?;
        let serial = Arc::new(Serial::new(
            line,
            output,
            input.is_some().then(|| resume.clone()),
        ));
        self.board.ports.insert(layout::COM1, 8, serial.clone())?;
        let input = input.map(|fd| {
            Input::start(
                fd,
                Box::new(move |bytes| serial.input(bytes)),
                resume,
                worker,
            )
        });
        Ok((input, guard))
    }

    fn devices(&mut self, config: &VmConfig, terminals: &Terminals) -> Result<(), MachineError> {
        for disk in &config.disks {
            let id = disk.id.as_deref().unwrap_or_default();
            let options = DiskOptions {
                readonly: disk.readonly,
                direct: disk.direct,
            };
            let serial = disk.serial.as_deref().unwrap_or(id);
            let opened = Disk::open(&disk.path, &options)?;
            self.add(
                id,
                Box::new(Blk::new(opened, serial, disk.num_queues, disk.queue_size)),
            )?;
        }
        for net in &config.net {
            let taps = Tap::open(&net.tap, net.num_queues / 2)?;
            let mac = net
                .mac
                .as_deref()
                .and_then(parse_mac)
                .unwrap_or_else(|| mac_of(&net.tap));
            let offloads = NetOffloads {
                csum: net.offload_csum,
                tso: net.offload_tso,
            };
            let device = Net::new(taps, mac, net.mtu, net.queue_size, offloads);
            self.add(net.id.as_deref().unwrap_or_default(), Box::new(device))?;
        }
        if let Some(vsock) = &config.vsock {
            let device = Vsock::new(vsock.cid, &vsock.socket)?;
            self.add(vsock.id.as_deref().unwrap_or_default(), Box::new(device))?;
        }
        if config.rng.is_some() {
            self.add("_rng", Box::new(Rng::default()))?;
        }
        if config.console.mode != ConsoleMode::Off {
            let duplicate = system("duplicate the console's descriptor");
            let io = ConsoleIo {
                input: terminals.console.input().map_err(&duplicate)?,
                output: terminals.console.output().map_err(&duplicate)?,
            };
            self.add("_console", Box::new(Console::new(io)))?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let slot = self.pci.free_slot()?;
        let function = VirtioPci::new(
            name,
            slot,
            device,
            self.next_bar,
            self.ram.clone(),
            self.vectors.clone(),
        );
        let function = Arc::new(function.map_err(system("make a device's doorbells"))?);
        self.next_bar += BAR_SIZE;
        self.pci.insert(slot, function.clone());
        self.board.add(slot, function);
        Ok(())
    }
}
