//! Builds a machine's board from its configuration: each device opened, made, and put where the
//! guest finds it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use skerry_devices::legacy::{
    AcpiEvents, AcpiRegisters, I8042, IoApic, IoApicPin, IoApicState, PvPanic, Rtc, RtcState,
    Serial, SerialState,
};
use skerry_devices::limit::{Limiter, Rate};
use skerry_devices::memory::GuestRam;
use skerry_devices::pci::{ConfigPorts, ECAM_BUS_SIZE, Ecam, HOTPLUG_LEN, PciRoot};
use skerry_devices::stream::{Input, Output, OutputGuard};
use skerry_devices::virtio::VirtioDevice;
use skerry_devices::virtio::blk::Blk;
use skerry_devices::virtio::console::{Console, ConsoleIo};
use skerry_devices::virtio::net::{Net, NetOffloads, Tap, VhostNet};
use skerry_devices::virtio::rng::Rng;
use skerry_devices::virtio::vhost_user::{VhostUser, VhostUserKind};
use skerry_devices::virtio::vsock::Vsock;
use skerry_devices::worker::WorkerHandle;
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{ConsoleMode, DiskConfig};
use skerry_vmm_api::workers::RateLimiterConfig;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;
use crate::board::Board;
use crate::disks::Disks;
use crate::interrupts::{Interrupts, Vectors};
use crate::machine::{MachineError, Terminals, system};
use crate::slots::{Decoded, Places, Slots};
use crate::snapshot::Kept;
use crate::terminal::Terminal;
use crate::validate::{mac_of, parse_mac};
use crate::workers::Workers;

/// A board being filled.
pub struct Assembly<'a> {
    board: Board,
    slots: Slots,
    ioapic: Arc<IoApic>,
    events: Arc<AcpiEvents>,
    rtc: Arc<Rtc>,
    serial: Option<Arc<Serial>>,
    ram: GuestRam,
    disks: Disks,
    kept: Option<&'a Kept>,
    /// Devices that were given what was kept of them.
    restored: usize,
}

/// What is on the board and has something to be kept, beside functions.
pub struct Legacy {
    ioapic: Arc<IoApic>,
    pci: Arc<PciRoot>,
    rtc: Arc<Rtc>,
    serial: Option<Arc<Serial>>,
    /// The power button's way in.
    pub events: Arc<AcpiEvents>,
}

/// What is kept of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LegacyState {
    ioapic: IoApicState,
    pci_address: u32,
    rtc: RtcState,
    serial: Option<SerialState>,
    acpi_events: u8,
}

impl Legacy {
    /// Lets the guest hear what was lost on the way, now that its CPUs are restored.
    pub fn announce(&self) {
        if let Some(serial) = &self.serial {
            serial.announce();
        }
    }

    /// What is to be kept.
    pub fn save(&self) -> LegacyState {
        LegacyState {
            ioapic: self.ioapic.save(),
            pci_address: self.pci.address(),
            rtc: self.rtc.save(),
            serial: self.serial.as_ref().map(|serial| serial.save()),
            acpi_events: self.events.save(),
        }
    }
}

impl<'a> Assembly<'a> {
    /// An empty board with its interrupt controller. What is put on it is made what was kept of it, and goes
    /// where it was `before`.
    pub fn new(
        vm: Arc<VmFd>,
        ram: GuestRam,
        kept: Option<&'a Kept>,
        before: Places,
    ) -> Assembly<'a> {
        let interrupts = Interrupts::new(vm.clone());
        let ioapic = Arc::new(IoApic::new(interrupts.clone()));
        let event_line = Arc::new(IoApicPin::new(ioapic.clone(), layout::ACPI_EVENTS_GSI));
        Assembly {
            board: Board::new(vm, ioapic.clone()),
            slots: Slots::new(Arc::new(Vectors(interrupts)), ram.clone(), before),
            ioapic,
            events: Arc::new(AcpiEvents::new(event_line)),
            rtc: Arc::default(),
            serial: None,
            ram,
            disks: Disks::default(),
            kept,
            restored: 0,
        }
    }

    /// Puts on what every machine has.
    pub fn legacy(&self, config: &VmConfig) -> Result<(), MachineError> {
        if let Some(Kept { legacy, .. }) = self.kept {
            self.slots.pci.set_address(legacy.pci_address);
            self.rtc.restore(&legacy.rtc);
            self.events.restore(legacy.acpi_events);
        }
        let (ports, memory) = (&self.board.ports, &self.board.memory_bus);
        memory.insert(layout::IOAPIC, 0x1000, self.ioapic.clone())?;
        memory.insert(
            layout::ECAM,
            ECAM_BUS_SIZE,
            Arc::new(Ecam(self.slots.pci.clone())),
        )?;
        ports.insert(
            layout::PCI_PORTS,
            8,
            Arc::new(ConfigPorts(self.slots.pci.clone())),
        )?;
        ports.insert(layout::I8042, 5, Arc::new(I8042))?;
        ports.insert(layout::RTC, 2, self.rtc.clone())?;
        ports.insert(layout::ACPI_REGISTERS, 3, Arc::new(AcpiRegisters))?;
        ports.insert(layout::ACPI_EVENTS, 1, self.events.clone())?;
        ports.insert(layout::PCI_HOTPLUG, HOTPLUG_LEN, self.slots.hotplug.clone())?;
        if config.pvpanic {
            ports.insert(layout::PVPANIC, 1, Arc::new(PvPanic))?;
        }
        Ok(())
    }

    /// Puts on the serial port and connects it to its terminal.
    pub fn serial(
        &mut self,
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
        let room_again = input.is_some().then(|| resume.clone());
        let kept = self.kept.and_then(|kept| kept.legacy.serial.as_ref());
        let serial = Arc::new(match kept {
            Some(state) => Serial::restored(line, output, room_again, state)
                .map_err(system("restore the serial port"))?,
            None => Serial::new(line, output, room_again),
        });
        self.serial = Some(serial.clone());
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

    /// Puts on the virtio devices of the configuration, in its order.
    pub fn devices(
        &mut self,
        config: &VmConfig,
        terminals: &Terminals,
        workers: &Workers,
    ) -> Result<(), MachineError> {
        for disk in &config.disks {
            let (device, worker) = disk_device(disk, &mut self.disks, workers)?;
            self.add(disk.id.as_deref().unwrap_or_default(), device, worker)?;
        }
        for net in &config.net {
            if let Some(socket) = net.vhost_socket.as_deref().filter(|_| net.vhost_user) {
                let shown = socket.display().to_string();
                let mac = net.mac.as_deref().and_then(parse_mac);
                let kind = VhostUserKind::Net(mac.unwrap_or_else(|| mac_of(&shown)));
                let device = VhostUser::connect(socket, kind, net.num_queues, net.queue_size)?;
                let worker = workers.named(net.worker.as_deref())?;
                self.add(
                    net.id.as_deref().unwrap_or_default(),
                    Box::new(device),
                    worker,
                )?;
                continue;
            }
            let mut taps = Tap::open(&net.tap, net.num_queues / 2)?;
            let mac = net
                .mac
                .as_deref()
                .and_then(parse_mac)
                .unwrap_or_else(|| mac_of(&net.tap));
            let offloads = NetOffloads {
                csum: net.offload_csum,
                tso: net.offload_tso,
            };
            if let Some(tap) = taps.pop_if(|_| net.vhost) {
                let (size, ram) = (net.queue_size, &self.ram);
                let device = VhostNet::new(tap, mac, net.mtu, size, offloads, ram)?;
                let worker = workers.named(net.worker.as_deref())?;
                self.add(
                    net.id.as_deref().unwrap_or_default(),
                    Box::new(device),
                    worker,
                )?;
                continue;
            }
            let device = Net::new(taps, mac, net.mtu, net.queue_size, offloads);
            let device =
                device.limited([(); 2].map(|()| limiter(net.rate_limiter_config.as_ref())));
            let worker = workers.named(net.worker.as_deref())?;
            self.add(
                net.id.as_deref().unwrap_or_default(),
                Box::new(device),
                worker,
            )?;
        }
        for fs in &config.fs {
            let kind = VhostUserKind::Fs(fs.tag.clone());
            let device = VhostUser::connect(&fs.socket, kind, fs.num_queues + 1, fs.queue_size)?;
            let id = fs.id.as_deref().unwrap_or_default();
            self.add(id, Box::new(device), workers.default())?;
        }
        if let Some(vsock) = &config.vsock {
            let device = Vsock::new(vsock.cid, &vsock.socket)?;
            let id = vsock.id.as_deref().unwrap_or_default();
            self.add(id, Box::new(device), workers.default())?;
        }
        if config.rng.is_some() {
            self.add("_rng", Box::new(Rng::default()), workers.default())?;
        }
        if config.console.mode != ConsoleMode::Off {
            let duplicate = system("duplicate the console's descriptor");
            let io = ConsoleIo {
                input: terminals.console.input().map_err(&duplicate)?,
                output: terminals.console.output().map_err(&duplicate)?,
            };
            self.add("_console", Box::new(Console::new(io)), workers.default())?;
        }
        Ok(())
    }

    /// The board, when everything is on it, and what else belongs to it.
    pub fn finish(self) -> Result<(Board, Disks, Slots, Legacy), MachineError> {
        if let Some(kept) = self.kept {
            if self.restored != kept.devices.len() {
                let known = self.board.functions();
                let unknown = |name: &&String| !known.iter().any(|(_, f)| f.name() == **name);
                let name = kept.devices.keys().find(unknown).cloned();
                return Err(MachineError::Devices(name.unwrap_or_default()));
            }
            if let Some(slots) = &kept.slots {
                self.slots.hotplug.restore(&slots.hotplug);
            }
            // Last, since it lets interrupts through.
            self.ioapic.restore(&kept.legacy.ioapic);
        }
        let legacy = Legacy {
            ioapic: self.ioapic,
            pci: self.slots.pci.clone(),
            rtc: self.rtc,
            serial: self.serial,
            events: self.events,
        };
        Ok((self.board, self.disks, self.slots, legacy))
    }

    fn add(
        &mut self,
        name: &str,
        device: Box<dyn VirtioDevice>,
        worker: WorkerHandle,
    ) -> Result<(), MachineError> {
        let at_once = Decoded::AtOnce;
        let made = self
            .slots
            .function(&self.board, name, device, worker, at_once);
        let (slot, function) = made?;
        if let Some(kept) = self.kept {
            let state = kept.devices.get(name);
            let state = state.ok_or_else(|| MachineError::Devices(name.to_owned()))?;
            function.restore(state)?;
            function.restore_held(kept.held.get(name).map(Vec::as_slice))?;
            self.restored += 1;
        }
        self.slots.put(&self.board, slot, Arc::new(function));
        Ok(())
    }
}

/// Opens a disk and makes its device; with it the worker that is to serve it.
pub fn disk_device(
    disk: &DiskConfig,
    disks: &mut Disks,
    workers: &Workers,
) -> Result<(Box<dyn VirtioDevice>, WorkerHandle), MachineError> {
    let worker = workers.named(disk.worker.as_deref())?;
    let (queues, size) = (disk.num_queues, disk.queue_size);
    if let Some(socket) = disk.vhost_socket.as_deref().filter(|_| disk.vhost_user) {
        let device = VhostUser::connect(socket, VhostUserKind::Blk, queues, size)?;
        return Ok((Box::new(device), worker));
    }
    let id = disk.id.as_deref().unwrap_or_default();
    let serial = disk.serial.as_deref().unwrap_or(id);
    let blk = Blk::new(disks.open(disk)?, serial, queues, size);
    let blk = blk.limited(limiter(disk.rate_limiter_config.as_ref()));
    Ok((Box::new(blk), worker))
}

fn limiter(config: Option<&RateLimiterConfig>) -> Option<Arc<Limiter>> {
    let config = config?;
    let rates = [config.bandwidth, config.ops].map(|bucket| {
        bucket.map(|b| Rate {
            size: b.size,
            refill: Duration::from_millis(b.refill_time),
            one_time_burst: b.one_time_burst.unwrap_or(0),
        })
    });
    Limiter::new(rates[0], rates[1])
}
