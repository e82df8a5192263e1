//! The floor that monitors are measured against: the least program that can start the payload on KVM.
//!
//! One vCPU, anonymous memory, the in-kernel irqchip, COM1 as an output and the i8042's reset. No devices, no
//! threads, no sandbox: what a monitor needs beyond this is what it adds.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::size::Size;

const START_INFO: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const COMMAND_LINE_BYTES: usize = 4096;
const LOW_RAM_END: u64 = 0x9_fc00;
const HIGH_RAM: u64 = 0x10_0000;
/// Three pages that KVM wants for itself on some processors.
const TSS: usize = 0xfffb_d000;

const COM1: u16 = 0x3f8;
const COM1_LINE_STATUS: u16 = 0x3fd;
const TRANSMITTER_EMPTY: u8 = 0x60;
const I8042_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// `skerry-bench bare`.
#[derive(Args)]
pub struct BareArguments {
    /// PVH ELF to start
    #[arg(long)]
    kernel: PathBuf,
    /// Guest memory
    #[arg(long, default_value = "128M")]
    memory: Size,
    /// Command line of the guest
    #[arg(long, default_value = "")]
    cmdline: String,
}

/// Runs the payload until it resets the machine.
pub fn run(arguments: &BareArguments) -> Result<()> {
    let kvm = Kvm::new().context("/dev/kvm cannot be opened")?;
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    vm.set_tss_address(TSS).context("KVM_SET_TSS_ADDR")?;
    // Memory comes before the irqchip: each of the two waits for the VM's SRCU readers if something was registered
    // before, and in the other order that costs 7 ms.
    let memory = guest_memory(&vm, arguments.memory)?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    let entry = load(&memory, &arguments.kernel)?;
    describe(&memory, arguments.memory, &arguments.cmdline)?;
    let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID")?;
    vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
    enter_at(&vcpu, entry)?;
    run_vcpu(vcpu)
}

fn guest_memory(vm: &VmFd, size: Size) -> Result<GuestMemoryMmap> {
    let bytes = usize::try_from(size.bytes()).context("memory size")?;
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).context("guest memory")?;
    let region = kvm_userspace_memory_region {
        memory_size: size.bytes(),
        userspace_addr: memory
            .get_host_address(GuestAddress(0))
            .context("guest memory")? as u64,
        ..Default::default()
    };
    // SAFETY: the mapping is `memory_size` bytes long and outlives the vCPU: `run` holds both.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    Ok(memory)
}

fn load(memory: &GuestMemoryMmap, kernel: &Path) -> Result<u64> {
    let mut file = File::open(kernel).with_context(|| format!("kernel {}", kernel.display()))?;
    let loaded = Elf::load(memory, None, &mut file, Some(GuestAddress(HIGH_RAM)))
        .with_context(|| format!("kernel {}", kernel.display()))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(entry.0),
        _ => bail!("kernel {} has no PVH entry note", kernel.display()),
    }
}

/// Writes `hvm_start_info`, its memory map, and the command line.
fn describe(memory: &GuestMemoryMmap, size: Size, cmdline: &str) -> Result<()> {
    if cmdline.len() >= COMMAND_LINE_BYTES {
        bail!("the command line is longer than {COMMAND_LINE_BYTES} bytes");
    }
    let ranges = [(0, LOW_RAM_END), (HIGH_RAM, size.bytes() - HIGH_RAM)];
    let mut info = Vec::new();
    for word in [0x336e_c578u32, 1, 0, 0] {
        info.extend(word.to_le_bytes());
    }
    // No modules, the command line, no ACPI, the memory map.
    for address in [0, COMMAND_LINE, 0, MEMORY_MAP] {
        info.extend(address.to_le_bytes());
    }
    for word in [ranges.len() as u32, 0] {
        info.extend(word.to_le_bytes());
    }
    let mut map = Vec::new();
    for (address, size) in ranges {
        for word in [address, size, 1] {
            map.extend(u64::to_le_bytes(word));
        }
    }
    memory
        .write_slice(&info, GuestAddress(START_INFO))
        .context("start info")?;
    memory
        .write_slice(&map, GuestAddress(MEMORY_MAP))
        .context("memory map")?;
    memory
        .write_slice(
            &[cmdline.as_bytes(), &[0]].concat(),
            GuestAddress(COMMAND_LINE),
        )
        .context("command line")
}

/// The state that the PVH ABI asks for: flat 32-bit segments, paging off, EBX at the start info.
fn enter_at(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 0x08,
        type_: 0xb,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 0x10,
        type_: 0x3,
        ..code
    };
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: 0x18,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.cr0 = 1;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rip = entry;
    regs.rbx = START_INFO;
    regs.rflags = 2;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

fn run_vcpu(mut vcpu: VcpuFd) -> Result<()> {
    // Unbuffered: the first byte is what is measured.
    let mut serial = File::from(
        std::io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .context("stdout")?,
    );
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(COM1, bytes) => serial.write_all(bytes).context("serial output")?,
            VcpuExit::IoOut(I8042_COMMAND, [PULSE_RESET]) => return Ok(()),
            VcpuExit::IoIn(COM1_LINE_STATUS, bytes) => bytes.fill(TRANSMITTER_EMPTY),
            VcpuExit::IoIn(_, bytes) | VcpuExit::MmioRead(_, bytes) => bytes.fill(0xff),
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
            VcpuExit::Hlt | VcpuExit::Shutdown => return Ok(()),
            exit => bail!("the payload stopped the vCPU: {exit:?}"),
        }
    }
}
