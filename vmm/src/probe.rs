//! Finds out by running a CPU whether this KVM can run Linux. Capabilities don't tell: a software
//! KVM offers what hardware offers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuExit};
use skerry_vmm_api::config::MemoryConfig;
use thiserror::Error;

use crate::arch;
use crate::machine::MachineShape;
use crate::memory;
use crate::vcpu::KickTarget;

/// How long the probe's few instructions may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// Why Linux cannot run here.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// There is no KVM.
    #[error("cannot open /dev/kvm: load the kvm module, and give this user access to it")]
    Open(#[source] kvm_ioctls::Error),
    /// KVM runs, but not what Linux consists of.
    #[error(
        "this host's KVM cannot run Linux ({0}): it is a software KVM, or virtualisation is passed through badly. \
         Use a host with VMX or SVM; payloads made for such a KVM start with --no-probe"
    )]
    Unfit(String),
    /// The probe itself could not be set up.
    #[error("cannot probe KVM")]
    Setup(#[from] ProbeSetupError),
}

/// Why the probe could not be made.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ProbeSetupError {
    #[error("KVM refused")]
    Kvm(#[from] kvm_ioctls::Error),
    #[error(transparent)]
    Arch(#[from] arch::ArchError),
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    #[error("no thread")]
    Thread(#[from] io::Error),
}

/// Runs the probe.
pub fn run(kvm: &Kvm) -> Result<(), ProbeError> {
    let outcome = attempt(kvm)?;
    match outcome {
        Outcome::Reported(arch::PROBE_PASSED) => Ok(()),
        Outcome::Reported(level) => Err(ProbeError::Unfit(format!(
            "a system call from ring 3 arrives in ring {} instead of 0",
            level ^ arch::PROBE_PASSED
        ))),
        Outcome::Other(why) => Err(ProbeError::Unfit(why)),
    }
}

enum Outcome {
    Reported(u8),
    Other(String),
}

fn attempt(kvm: &Kvm) -> Result<Outcome, ProbeSetupError> {
    let vm = kvm.create_vm()?;
    let config = MemoryConfig {
        size: arch::PROBE_MEMORY,
        thp: false,
        ..MemoryConfig::default()
    };
    let place = Arc::new(memory::Reservation::new(&config)?);
    let memory = memory::create(&config, &place)?;
    place.show(&vm)?;
    arch::prepare_vm(&vm)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let features = arch::CpuFeatures::of(kvm)?;
    let shape = MachineShape {
        cpus: 1,
        memory: arch::PROBE_MEMORY,
        phys_bits: features.phys_bits(),
        nested: true,
        pvpanic: false,
    };
    arch::setup_vcpu(&features, &vcpu, 0, &shape, None)?;
    arch::probe_program(memory.guest().memory(), &vcpu)?;

    // A KVM that makes no progress must not hang the monitor: somebody kicks the CPU in the end.
    let running = KickTarget::of_this_thread(&mut vcpu);
    let target = running.target();
    let over = Arc::new(AtomicBool::new(false));
    let (finished, watch) = std::sync::mpsc::channel::<()>();
    let expired = over.clone();
    let watchdog = std::thread::Builder::new()
        .name("probe-deadline".into())
        .spawn(move || {
            while watch.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                expired.store(true, Ordering::SeqCst);
                target.kick();
            }
        })?;
    let outcome = loop {
        let exit = vcpu.run();
        match exit {
            Ok(VcpuExit::IoOut(arch::PROBE_PORT, &[value])) => break Outcome::Reported(value),
            Ok(VcpuExit::InternalError) => {
                break Outcome::Other("it does not know an instruction of a kernel".into());
            }
            Ok(VcpuExit::Shutdown) => {
                break Outcome::Other("a system call from ring 3 ends in a triple fault".into());
            }
            Ok(VcpuExit::Intr) | Err(_) if over.load(Ordering::SeqCst) => {
                break Outcome::Other(format!(
                    "a few instructions did not end within {} s",
                    DEADLINE.as_secs()
                ));
            }
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Ok(other) => break Outcome::Other(format!("unexpected exit {other:?}")),
            Err(e) => break Outcome::Other(format!("KVM_RUN: {e}")),
        }
    };
    drop(finished);
    let _ = watchdog.join();
    drop(running);
    Ok(outcome)
}
