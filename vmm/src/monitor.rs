//! The thread that owns the VM's life. Everybody else sends it [`Event`]s: the API, the CPUs, the
//! signals.

mod arriving;
mod devices;
mod moving;

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;

use kvm_ioctls::Kvm;
use moving::Busy;
pub use moving::Moving;
use serde_json::Value;
use skerry_devices::bus::Action;
use skerry_link::Hangup;
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{DiskConfig, NetConfig};
use skerry_vmm_api::requests::{VmInfo, VmState, VmmPingResponse};
use skerry_vmm_api::snapshots::{
    VmPrepare, VmReceiveMigration, VmRestore, VmSendMigration, VmSnapshot,
};
use thiserror::Error;

use crate::disks::{DiskError, DiskRequest};
use crate::machine::{Machine, MachineError, Terminals};
use crate::migration::MigrationError;
use crate::sandbox::{Sandbox, ThreadKind};
use crate::shell::{Offer, Shell, Size};
use crate::slots::Places;
use crate::snapshot::{Ending, Origin, SnapshotRequestError};
use crate::start::Surroundings;
use crate::terminal::{Terminal, TerminalError};
use crate::validate::{self, ConfigError};
use crate::vcpu::{CpuEvents, Failure};
use crate::workers::{WorkerError, WorkerRequest};

/// What the API asks.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Request {
    Ping,
    Exit,
    Create(Box<VmConfig>),
    Delete,
    Boot,
    Info,
    Counters,
    Usage,
    Pause,
    Resume,
    Shutdown,
    Reboot,
    PowerButton,
    AddDisk(Box<DiskConfig>),
    AddNet(Box<NetConfig>),
    RemoveDevice(String),
    Disk(DiskRequest),
    Worker(WorkerRequest),
    Restore(Box<VmRestore>),
    Prepare(Box<VmPrepare>),
    CancelMigration,
    WorkingSet,
    /// What takes its time and is answered later.
    Move(MoveRequest),
}

/// What a snapshot or a migration asks.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum MoveRequest {
    Snapshot(Box<VmSnapshot>),
    Send(VmSendMigration),
    Receive(Box<VmReceiveMigration>),
}

/// Why a request was refused.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RequestError {
    #[error("no VM was created: call vm.create first")]
    NoVm,
    #[error("a VM exists already: call vm.delete first")]
    Exists,
    #[error("the VM is {is} and cannot {verb}: {remedy}")]
    State {
        is: &'static str,
        verb: &'static str,
        remedy: &'static str,
    },
    #[error("the configuration is not valid")]
    Config(#[from] ConfigError),
    #[error("a device called `{0}` exists already: give another id")]
    Duplicate(String),
    #[error("the VM has no device called `{0}`: see vm.info for the names")]
    NoDevice(String),
    #[error(
        "`{0}` stays as long as the VM runs, only disks are given back: call vm.shutdown first"
    )]
    Stays(String),
    #[error("disk `{id}` cannot be added")]
    Add { id: String, source: MachineError },
    #[error("the VM cannot boot")]
    Boot(#[from] BootError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotRequestError),
    #[error(transparent)]
    Migration(#[from] MigrationError),
}

/// Why a boot failed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum BootError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error(transparent)]
    Probe(#[from] crate::probe::ProbeError),
}

/// What an answer carries: nothing, or JSON.
pub type Answer = Result<Option<Value>, RequestError>;
/// Where an answer goes.
pub type Reply = Box<dyn FnOnce(Answer) + Send>;

/// What the monitor's thread is told.
pub enum Event {
    /// The API asks something.
    Request(Request, Reply),
    /// A guest asks the machine for something.
    Guest(Generation, Action),
    /// A CPU cannot go on.
    CpuFailed(Generation, u32, Failure),
    /// A snapshot or a migration has come so far.
    Moving(Generation, Moving),
    /// A signal asks the monitor to end.
    Signal(i32),
}

/// Numbers machines: an event of one that is gone is not meant for its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u64);

/// How the monitor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off, or the monitor was asked to end.
    Done,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The machine broke down.
    Failed(String),
}

/// Settings that are not the VM's.
#[derive(Debug, Clone, Copy)]
pub struct MonitorOptions {
    /// Find out first whether this KVM can run Linux.
    pub probe: bool,
    /// A guest's reset ends it like a power off.
    pub no_reboot: bool,
    /// The monitor ends when a VM that the API made ends.
    pub end_with_vm: bool,
    /// What confines the threads.
    pub sandbox: Sandbox,
}

/// The monitor.
pub struct Monitor {
    kvm: Arc<Kvm>,
    options: MonitorOptions,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    /// Events that were looked at before their turn.
    early: VecDeque<Event>,
    vm: Option<Vm>,
    generation: u64,
    probed: bool,
    /// A VM that waits for what is to run in it.
    prepared: Option<Shell>,
    /// Asked when it is needed first.
    offer: Option<Arc<Offer>>,
    /// A VM is waited for, or on its way here; what ends that.
    incoming: Option<Hangup>,
    /// Threads that take snapshots, and how they are ended, or that receive a VM.
    awaited: Vec<(JoinHandle<()>, Option<Ending>)>,
}

struct Vm {
    config: VmConfig,
    state: VmState,
    /// Before its terminals, which hear the last of it.
    machine: Option<Machine>,
    terminals: Option<Terminals>,
    /// Given by flags: when it ends, the monitor ends.
    owns_process: bool,
    /// A snapshot of it is being taken, or it is on its way elsewhere.
    busy: Option<Busy>,
    /// The snapshot that its machine was made of.
    made_of: Option<Origin>,
    /// Which slot each device was in when its machine ended.
    places: Places,
}

/// A CPU's way to the monitor.
struct FromCpus {
    events: Sender<Event>,
    generation: Generation,
}

impl CpuEvents for FromCpus {
    fn action(&self, action: Action) {
        // The monitor is gone only when the process ends.
        let _ = self.events.send(Event::Guest(self.generation, action));
    }

    fn failed(&self, index: u32, failure: Failure) {
        let _ = self
            .events
            .send(Event::CpuFailed(self.generation, index, failure));
    }
}

impl Monitor {
    /// A monitor without a VM.
    pub fn new(kvm: Kvm, options: MonitorOptions) -> Monitor {
        let (events, inbox) = std::sync::mpsc::channel();
        Monitor {
            kvm: Arc::new(kvm),
            options,
            events,
            inbox,
            early: VecDeque::new(),
            vm: None,
            generation: 0,
            probed: false,
            prepared: None,
            offer: None,
            incoming: None,
            awaited: Vec::new(),
        }
    }

    /// Where events are sent.
    pub fn events(&self) -> Sender<Event> {
        self.events.clone()
    }

    /// Creates and boots the VM that the flags describe.
    pub fn boot_from_flags(&mut self, config: VmConfig) -> Result<(), RequestError> {
        self.create(config)?;
        if let Some(vm) = &mut self.vm {
            vm.owns_process = true;
        }
        self.boot()
    }

    /// Restores the VM that the flags describe.
    pub fn restore_from_flags(&mut self, request: &VmRestore) -> Result<(), RequestError> {
        self.restore(request)?;
        if let Some(vm) = &mut self.vm {
            vm.owns_process = true;
        }
        Ok(())
    }

    /// What a machine sends events by; those of machines before it are nobody's from now on.
    fn next_events(&mut self) -> Arc<FromCpus> {
        self.generation += 1;
        Arc::new(FromCpus {
            events: self.events.clone(),
            generation: Generation(self.generation),
        })
    }

    /// Serves events until the monitor is to end.
    pub fn run(mut self) -> Outcome {
        if let Err(e) = self.options.sandbox.enter(ThreadKind::Monitor) {
            return Outcome::Failed(format!("cannot enter the sandbox: {e}"));
        }
        loop {
            let early = self.early.pop_front();
            let Some(event) = early.or_else(|| self.inbox.recv().ok()) else {
                return Outcome::Done;
            };
            let outcome = match event {
                Event::Request(Request::Exit, reply) => {
                    self.end();
                    reply(Ok(None));
                    Some(Outcome::Done)
                }
                Event::Request(Request::Move(request), reply) => {
                    self.begin_move(request, reply);
                    None
                }
                Event::Request(request, reply) => {
                    reply(self.serve(request));
                    None
                }
                Event::Moving(Generation(g), moving) => {
                    self.moved(g == self.generation, moving);
                    None
                }
                Event::Guest(Generation(g), action) if g == self.generation => self.guest(action),
                Event::CpuFailed(Generation(g), index, failure) if g == self.generation => {
                    self.cpu_failed(index, &failure)
                }
                Event::Guest(..) | Event::CpuFailed(..) => None,
                Event::Signal(signal) => {
                    log::info!("signal {signal}: ending");
                    Some(Outcome::Done)
                }
            };
            if let Some(outcome) = outcome {
                self.end();
                return outcome;
            }
            self.finish_removals();
        }
    }

    /// CPUs, queues and streams end in order before the process does, and no snapshot or arrival stays half-made.
    fn end(&mut self) {
        self.end_moves();
        self.end_waiting();
        self.vm = None;
        self.generation += 1;
        self.end_awaited();
        for event in self.early.drain(..).chain(self.inbox.try_iter()) {
            if let Event::Moving(_, moving) = event {
                moving.undo();
            }
        }
    }

    /// Whether the guest, which has been paused, had asked for its machine's end before, and that is still to
    /// be done: whoever went on from where it stands would wait for it for ever.
    fn is_ending(&mut self) -> bool {
        self.early.extend(self.inbox.try_iter());
        let current = Generation(self.generation);
        self.early.iter().any(|event| match event {
            Event::Guest(of, Action::PowerOff | Action::Reboot | Action::GuestPanic)
            | Event::CpuFailed(of, ..) => *of == current,
            _ => false,
        })
    }

    fn serve(&mut self, request: Request) -> Answer {
        match request {
            Request::Ping => return Ok(Some(json(&ping()))),
            Request::Info => return self.info().map(Some),
            Request::Counters => {
                let counters = self.machine("tell counters")?.counters();
                return Ok(Some(json(&counters)));
            }
            Request::Usage => {
                let usage = self.machine("tell what it uses")?.usage();
                return Ok(Some(json(&usage)));
            }
            // These are served by themselves.
            Request::Exit | Request::Move(_) => {}
            Request::WorkingSet => return self.record_working_set().map(Some),
            Request::CancelMigration => self.cancel_migration()?,
            Request::Restore(request) => return self.restore(&request).map(Some),
            Request::Prepare(request) => self.prepare(&request)?,
            Request::Create(config) => self.create(*config)?,
            Request::Delete => {
                self.vm()?;
                self.stop();
                self.vm = None;
            }
            Request::Boot => self.boot()?,
            Request::Pause => self.pause()?,
            Request::Resume => self.resume()?,
            Request::Shutdown => {
                self.machine("shut down")?;
                self.stop();
            }
            Request::Reboot => {
                self.machine("reboot")?;
                self.reboot()?;
            }
            Request::PowerButton => self.running("press the power button")?.power_button(),
            Request::AddDisk(disk) => return self.add_disk(*disk),
            Request::AddNet(net) => self.change("add a network device", |config| {
                validate::net(&net)?;
                config.net.push(*net);
                Ok(())
            })?,
            Request::RemoveDevice(id) => self.remove_device(&id)?,
            Request::Worker(request) => {
                let machine = self.machine_mut("tell of its workers")?;
                return Ok(machine.worker_request(request)?);
            }
            Request::Disk(request) => {
                // The layers are about to be frozen, or let go.
                let machine = match request.changes_disks() {
                    true => self.idle("work on disks")?.0,
                    false => self.machine_mut("work on disks")?,
                };
                return Ok(machine.disk_request(request)?);
            }
        }
        Ok(None)
    }

    fn vm(&mut self) -> Result<&mut Vm, RequestError> {
        self.vm.as_mut().ok_or(RequestError::NoVm)
    }

    /// The machine, running or paused.
    fn machine(&mut self, verb: &'static str) -> Result<&Machine, RequestError> {
        self.machine_mut(verb).map(|machine| &*machine)
    }

    fn machine_mut(&mut self, verb: &'static str) -> Result<&mut Machine, RequestError> {
        let vm = self.vm()?;
        let is = state_name(vm.state);
        vm.machine.as_mut().ok_or(RequestError::State {
            is,
            verb,
            remedy: "call vm.boot first",
        })
    }

    fn running(&mut self, verb: &'static str) -> Result<&Machine, RequestError> {
        let paused = self.vm()?.state == VmState::Paused;
        if paused {
            return Err(RequestError::State {
                is: "paused",
                verb,
                remedy: "call vm.resume first",
            });
        }
        self.machine(verb)
    }

    fn create(&mut self, mut config: VmConfig) -> Result<(), RequestError> {
        if self.vm.is_some() || self.incoming.is_some() {
            return Err(RequestError::Exists);
        }
        validate::check(&mut config)?;
        if config.cpus.max_vcpus > config.cpus.boot_vcpus {
            log::info!("CPUs cannot be added to a running VM: it stays with those it boots with");
        }
        config.cpus.max_vcpus = config.cpus.boot_vcpus;
        self.vm = Some(Vm {
            config,
            state: VmState::Created,
            terminals: None,
            machine: None,
            owns_process: false,
            busy: None,
            made_of: None,
            places: Places::new(),
        });
        Ok(())
    }

    fn boot(&mut self) -> Result<(), RequestError> {
        let vm = self.vm.as_mut().ok_or(RequestError::NoVm)?;
        if vm.machine.is_some() {
            return Err(RequestError::State {
                is: state_name(vm.state),
                verb: "boot",
                remedy: "call vm.shutdown first, or vm.reboot",
            });
        }
        probe(&self.kvm, self.options, &mut self.probed)?;
        let offer = offer_of(&mut self.offer, &self.kvm).map_err(BootError::Machine)?;
        let terminals = terminals_of(&mut vm.terminals, &mut vm.config, self.options.sandbox)
            .map_err(BootError::Terminal)?;
        self.generation += 1;
        let events = Arc::new(FromCpus {
            events: self.events.clone(),
            generation: Generation(self.generation),
        });
        let around = Surroundings {
            terminals,
            events,
            sandbox: self.options.sandbox,
        };
        let shell = shell_for(&mut self.prepared, &self.kvm, &offer, &vm.config);
        let booted = shell
            .and_then(|shell| Machine::boot(shell, &vm.config, &vm.places, &around))
            .map_err(BootError::Machine);
        match booted {
            Ok(machine) => {
                vm.machine = Some(machine);
                vm.state = VmState::Running;
                Ok(())
            }
            Err(e) => {
                // CPUs that ran already may have sent events; nobody is to act on them. And the
                // terminal goes back to whoever reads why this failed.
                self.generation += 1;
                vm.terminals = None;
                Err(e.into())
            }
        }
    }

    fn pause(&mut self) -> Result<(), RequestError> {
        self.running("pause")?.pause();
        self.vm()?.state = VmState::Paused;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), RequestError> {
        let vm = self.vm()?;
        match &mut vm.machine {
            Some(machine) if vm.state == VmState::Paused => {
                // A migration may have let them go and not got them back.
                machine.take_disks_back()?;
                machine.resume();
                vm.state = VmState::Running;
                Ok(())
            }
            _ => Err(RequestError::State {
                is: state_name(vm.state),
                verb: "resume",
                remedy: "only a paused VM resumes",
            }),
        }
    }

    fn stop(&mut self) {
        self.end_moves();
        self.note_layers();
        self.keep_places();
        if let Some(vm) = &mut self.vm {
            vm.machine = None;
            vm.made_of = None;
            vm.state = VmState::Shutdown;
        }
        self.generation += 1;
    }

    fn reboot(&mut self) -> Result<(), RequestError> {
        self.stop();
        self.boot()
    }

    /// Layers may have come and gone: the configuration says what the next boot opens.
    fn note_layers(&mut self) {
        if let Some(vm) = &mut self.vm
            && let Some(machine) = &mut vm.machine
        {
            machine.settle_disks(&mut vm.config.disks);
        }
    }

    fn info(&mut self) -> Result<Value, RequestError> {
        if let Some(vm) = &mut self.vm
            && let Some(machine) = &vm.machine
        {
            machine.note_layers(&mut vm.config.disks);
        }
        let vm = self.vm()?;
        let info = VmInfo {
            config: vm.config.clone(),
            state: vm.state,
            memory_actual_size: vm
                .machine
                .as_ref()
                .map_or(vm.config.memory.size, Machine::memory_size),
            device_tree: vm
                .machine
                .as_ref()
                .map(Machine::device_tree)
                .unwrap_or_default(),
        };
        Ok(json(&info))
    }

    /// What a guest asks of its machine; an outcome if the monitor ends with it.
    fn guest(&mut self, action: Action) -> Option<Outcome> {
        match action {
            Action::PowerOff => self.ended(Outcome::Done),
            Action::Reboot if self.options.no_reboot => self.ended(Outcome::Done),
            Action::Reboot => {
                log::info!("the guest reset itself");
                match self.reboot() {
                    Ok(()) => None,
                    Err(e) => self.ended(Outcome::Failed(format!(
                        "the guest's reboot failed: {}",
                        chain(&e).join(": ")
                    ))),
                }
            }
            Action::GuestPanic => {
                log::error!("the guest's kernel panicked");
                self.ended(Outcome::GuestPanic)
            }
            action => {
                if let Some(machine) = self.vm.as_mut().and_then(|vm| vm.machine.as_mut()) {
                    machine.carry_out(action);
                }
                None
            }
        }
    }

    fn cpu_failed(&mut self, index: u32, failure: &Failure) -> Option<Outcome> {
        let why = match failure {
            Failure::Emulation => format!(
                "KVM could not emulate an instruction on CPU {index}: is this KVM able to run this guest (see --probe-only)?"
            ),
            Failure::Entry(why) => format!("KVM could not enter the guest on CPU {index}: {why}"),
        };
        log::error!("{why}");
        self.ended(Outcome::Failed(why))
    }

    fn ended(&mut self, outcome: Outcome) -> Option<Outcome> {
        self.stop();
        let owns_process = self.vm.as_ref().is_some_and(|vm| vm.owns_process);
        (owns_process || self.options.end_with_vm).then_some(outcome)
    }
}

/// Finds out once whether this KVM can run Linux.
fn probe(kvm: &Kvm, options: MonitorOptions, probed: &mut bool) -> Result<(), BootError> {
    if options.probe && !*probed {
        crate::probe::run(kvm)?;
        *probed = true;
    }
    Ok(())
}

/// A VM's terminals, opened if they are not yet. Its configuration tells what pseudo-terminals are called.
fn terminals_of<'a>(
    place: &'a mut Option<Terminals>,
    config: &mut VmConfig,
    sandbox: Sandbox,
) -> Result<&'a Terminals, TerminalError> {
    let opened = match place.take() {
        Some(open) => open,
        None => {
            let opened = open_terminals(config, sandbox)?;
            config.serial.file = opened.serial.pty.clone().or(config.serial.file.take());
            config.console.file = opened.console.pty.clone().or(config.console.file.take());
            opened
        }
    };
    Ok(place.insert(opened))
}

/// What KVM offers, asked once.
fn offer_of(place: &mut Option<Arc<Offer>>, kvm: &Kvm) -> Result<Arc<Offer>, MachineError> {
    let offer = match place.take() {
        Some(offer) => offer,
        None => Arc::new(Offer::of(kvm)?),
    };
    Ok(place.insert(offer).clone())
}

/// The VM that was prepared, if it fits, or a new one.
fn shell_for(
    prepared: &mut Option<Shell>,
    kvm: &Kvm,
    offer: &Arc<Offer>,
    config: &VmConfig,
) -> Result<Shell, MachineError> {
    let size = Size::of(config.cpus.boot_vcpus, &config.memory);
    match prepared.take_if(|shell| shell.size() == size) {
        Some(shell) => Ok(shell),
        None => Shell::new(kvm, offer, config.cpus.boot_vcpus, &config.memory),
    }
}

fn open_terminals(config: &VmConfig, sandbox: Sandbox) -> Result<Terminals, TerminalError> {
    Ok(Terminals {
        serial: Terminal::open("serial port", &config.serial, sandbox)?,
        console: Terminal::open("console", &config.console, sandbox)?,
    })
}

fn state_name(state: VmState) -> &'static str {
    match state {
        VmState::Created => "not booted",
        VmState::Running => "running",
        VmState::Shutdown => "shut down",
        VmState::Paused => "paused",
    }
}

fn ping() -> VmmPingResponse {
    let version = env!("CARGO_PKG_VERSION");
    VmmPingResponse {
        build_version: format!("skerry-vmm v{version}"),
        version: version.to_owned(),
        pid: i64::from(std::process::id()),
        features: Vec::new(),
    }
}

fn json(value: &impl serde::Serialize) -> Value {
    // These types have string keys and no values that JSON lacks.
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// An error and each of its causes, without those that only repeat the one above.
pub fn chain(error: &dyn StdError) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        if messages.last() != Some(&message) {
            messages.push(message);
        }
        next = error.source();
    }
    messages
}
