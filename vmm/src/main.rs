//! `skerry-vmm`: one process, one microVM.

use std::process::ExitCode;

use clap::Parser;
use kvm_ioctls::Kvm;
use skerry_vmm::api::{ApiSocket, serve};
use skerry_vmm::args::Args;
use skerry_vmm::monitor::{
    BootError, Event, Monitor, MonitorOptions, Outcome, RequestError, chain,
};
use skerry_vmm::probe::{self, ProbeError};
use skerry_vmm::sandbox::Sandbox;
use skerry_vmm::{logger, signals};

/// Something failed. clap's usage errors end with 2.
const FAILED: u8 = 1;
/// This KVM cannot run Linux.
const UNFIT: u8 = 3;
/// The guest's kernel panicked.
const PANICKED: u8 = 4;

/// One malloc arena for all threads. They allocate rarely once the guest runs, so nothing contends;
/// it saves memory, and only secondary arenas open files (to trim themselves), which the sandbox
/// forbids.
fn limit_arenas() {
    // SAFETY: no other thread exists yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

fn main() -> ExitCode {
    limit_arenas();
    let args = Args::parse();
    logger::start(args.verbose);
    match run(&args) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::GuestPanic) => PANICKED.into(),
        Ok(Outcome::Failed(why)) => {
            eprintln!("skerry-vmm: {why}");
            FAILED.into()
        }
        Err(error) => {
            eprintln!("skerry-vmm: {}", chain(&*error).join(": "));
            exit_code(&*error).into()
        }
    }
}

fn exit_code(error: &(dyn std::error::Error + 'static)) -> u8 {
    let unfit = |e: &ProbeError| matches!(e, ProbeError::Unfit(_));
    let probe = match error.downcast_ref::<RequestError>() {
        Some(RequestError::Boot(BootError::Probe(e))) => Some(e),
        _ => error.downcast_ref::<ProbeError>(),
    };
    if probe.is_some_and(unfit) {
        UNFIT
    } else {
        FAILED
    }
}

fn run(args: &Args) -> Result<Outcome, Box<dyn std::error::Error>> {
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    if args.probe_only {
        probe::run(&kvm)?;
        println!("this host's KVM can run Linux");
        return Ok(Outcome::Done);
    }
    let vm = args.vm();
    let restored = args.restored();
    if vm.is_none() && restored.is_none() && args.api_socket.is_none() {
        return Err("nothing to do: give --kernel to boot a VM, or --api-socket to be told what to boot (--help shows all)".into());
    }
    let sandbox = Sandbox::new(args.seccomp);
    // Before the first thread, so that all of them leave these signals to one.
    signals::block()?;
    let socket = args
        .api_socket
        .as_deref()
        .map(ApiSocket::listen)
        .transpose()?;
    let options = MonitorOptions {
        probe: !args.no_probe,
        no_reboot: args.no_reboot,
        end_with_vm: args.end_with_vm,
        sandbox,
    };
    let mut monitor = Monitor::new(kvm, options);
    let events = monitor.events();
    signals::watch(sandbox, move |signal| {
        drop(events.send(Event::Signal(signal)))
    })?;
    if let Some(vm) = vm {
        monitor.boot_from_flags(vm)?;
    }
    if let Some(restore) = restored {
        monitor.restore_from_flags(&restore)?;
    }
    let server = match &socket {
        Some(socket) => Some(serve(socket.listener()?, monitor.events(), sandbox)?),
        None => None,
    };
    let outcome = monitor.run();
    if let Some(server) = server {
        server.end();
    }
    Ok(outcome)
}
