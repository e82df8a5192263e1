//! How a machine comes about: booted from a kernel, or restored from a snapshot.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use skerry_vmm_api::VmConfig;

use crate::arch::{self, CpuState};
use crate::assembly::Assembly;
use crate::exits::ExitStats;
use crate::kernel::Kernel;
use crate::machine::{Machine, MachineError, MachineShape, Queues, Terminals, pin, system};
use crate::memory::{self, Ram, Restored};
use crate::sandbox::{Sandbox, ThreadKind};
use crate::shell::Shell;
use crate::slots::Places;
use crate::snapshot::Kept;
use crate::vcpu::{CpuEvents, Vcpu};
use crate::workers::Workers;

/// What a machine needs of those who outlive it.
pub struct Surroundings<'a> {
    /// The consoles' host sides.
    pub terminals: &'a Terminals,
    /// Who hears of the CPUs.
    pub events: Arc<dyn CpuEvents>,
    /// What confines its threads.
    pub sandbox: Sandbox,
}

/// What makes the CPUs of a machine what they are before they run.
enum Cpus<'a> {
    /// The first starts the kernel, the others wait.
    Boot(arch::Boot, MachineShape),
    /// All go on.
    Restore(&'a [CpuState]),
}

/// What a machine's devices were before.
enum Origin<'a> {
    /// They are new, and go where they were.
    Booted(&'a Places),
    /// They go on.
    Kept(&'a Kept),
}

impl Machine {
    /// Builds and starts the machine of a checked configuration in `shell`, which is of its size. Devices that
    /// were there `before` go into the slots where they were.
    pub fn boot(
        shell: Shell,
        config: &VmConfig,
        before: &Places,
        around: &Surroundings<'_>,
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
        let workers = Workers::start(config, around.sandbox)?;
        let ram = memory::create(&config.memory, &shell.place)?;
        let memory = ram.guest().clone();
        let kernel = Kernel::load(memory.memory(), &kernel_path, &kernel_file)?;
        let shape = MachineShape {
            cpus: config.cpus.boot_vcpus,
            memory: config.memory.size,
            phys_bits: config
                .cpus
                .max_phys_bits
                .min(shell.offer.features.phys_bits()),
            nested: config.cpus.nested,
            pvpanic: config.pvpanic,
        };
        let cmdline = config.payload.cmdline.as_deref().unwrap_or_default();
        let boot = arch::prepare_boot(
            memory.memory(),
            &kernel,
            cmdline,
            initramfs.as_mut(),
            &shape,
        )?;
        let machine = build(
            shell,
            config,
            around,
            workers,
            ram,
            Cpus::Boot(boot, shape),
            Origin::Booted(before),
        )?;
        // Threads prepare themselves side by side, and each CPU runs as soon as it is ready.
        machine.cpus.iter().for_each(Vcpu::resume);
        machine.wait_prepared()?;
        Ok(machine)
    }

    /// Builds a machine from what was kept of one and its memory, in `shell`, which is of its size. It is
    /// paused.
    pub fn revive(
        shell: Shell,
        config: &VmConfig,
        around: &Surroundings<'_>,
        memory: Restored,
        kept: &Kept,
    ) -> Result<Machine, MachineError> {
        let workers = Workers::start(config, around.sandbox)?;
        let start = Cpus::Restore(&kept.cpus);
        let Restored { ram, faults } = memory;
        let mut machine = build(
            shell,
            config,
            around,
            workers,
            ram,
            start,
            Origin::Kept(kept),
        )?;
        machine.faults = faults;
        machine.wait_prepared()?;
        machine.cpus.iter().for_each(Vcpu::wait_paused);
        Ok(machine)
    }

    /// The guest learns that it is another one than the one it was made of.
    pub fn renew_identity(&self) -> Result<(), MachineError> {
        arch::renew_identity(self.ram.guest().memory())?;
        self.legacy.events.identity_changed();
        Ok(())
    }

    fn wait_prepared(&self) -> Result<(), MachineError> {
        self.workers.wait_prepared()?;
        for cpu in &self.cpus {
            cpu.wait_prepared()
                .map_err(system("start a CPU's thread"))?;
        }
        Ok(())
    }
}

/// Puts the devices on their board, and CPUs before it, paused.
fn build(
    shell: Shell,
    config: &VmConfig,
    around: &Surroundings<'_>,
    workers: Workers,
    ram: Ram,
    start: Cpus<'_>,
    origin: Origin<'_>,
) -> Result<Machine, MachineError> {
    let (kept, before) = match origin {
        Origin::Booted(before) => (None, Some(before)),
        Origin::Kept(kept) => (Some(kept), kept.slots.as_ref().map(|slots| &slots.places)),
    };
    let before = before.cloned().unwrap_or_default();
    let mut assembly = Assembly::new(shell.vm.clone(), ram.guest().clone(), kept, before);
    assembly.legacy(config)?;
    let (input, output) = assembly.serial(config, &around.terminals.serial, &workers.default())?;
    assembly.devices(config, around.terminals, &workers)?;
    let (board, disks, slots, legacy) = assembly.finish()?;
    let queues = Queues(Arc::new(board));
    let (mut cpus, mut told) = (Vec::new(), Vec::new());
    let mut counters = None;
    let exits = shell.cpus.iter().map(ExitStats::of).collect();
    for (index, fd) in (0..).zip(shell.cpus) {
        let told_of = match &start {
            Cpus::Boot(boot, shape) => {
                let boot = (index == 0).then_some(boot);
                arch::setup_vcpu(&shell.offer.features, &fd, index, shape, boot)?
            }
            Cpus::Restore(states) => {
                let state = states.get(index as usize);
                let state = state.ok_or_else(|| MachineError::Devices(format!("CPU {index}")))?;
                let written = arch::restore_vcpu(&fd, state, arch::machine_tsc(*states))?;
                // The others' counters are made equal to the first one's.
                counters.get_or_insert(written);
                state.told()
            }
        };
        told.push(told_of);
        let affinity = config
            .cpus
            .affinity
            .iter()
            .find(|a| a.vcpu == index)
            .cloned();
        let sandbox = around.sandbox;
        let prepare = move || {
            if let Some(affinity) = affinity {
                pin(&format!("CPU {index}"), &affinity.host_cpus)?;
            }
            sandbox.enter(ThreadKind::Vcpu)
        };
        let cpu = Vcpu::start(index, fd, queues.0.clone(), around.events.clone(), prepare);
        cpus.push(cpu.map_err(system("start a CPU's thread"))?);
    }
    if let (Some(kept), Some(moment)) = (kept, counters) {
        arch::restore_clock(&shell.vm, &kept.clock, moment)?;
        legacy.announce();
    }
    Ok(Machine {
        cpus,
        exits,
        told,
        queues,
        disks,
        slots,
        legacy,
        _input: input,
        _output: output,
        workers,
        msrs: shell.offer.msrs.clone(),
        tracking: None,
        prefault: None,
        faults: None,
        ram,
        vm: shell.vm,
    })
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
