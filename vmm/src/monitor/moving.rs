//! Snapshots and migrations, as far as the monitor's thread has to do with them: it pauses, hands over,
//! resumes. What takes long is done on threads of their own, which send [`Moving`].

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use skerry_link::SILENCE;
use skerry_snapshot::{Directory, WorkingSet};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{
    AfterSnapshot, RestoreMode, VmPrepare, VmRestore, VmRestoreInfo, VmSendMigration, VmSnapshot,
    VmWorkingSetInfo,
};

use super::{
    BootError, Event, Generation, Monitor, MoveRequest, Reply, RequestError, Vm, json, offer_of,
    probe, shell_for, terminals_of,
};
use crate::machine::{Machine, MachineError, system};
use crate::memory;
use crate::migration::{Arrival, Cancel, MigrationError, Sending};
use crate::shell::{Offer, Shell};
use crate::slots::Places;
use crate::snapshot::{Ending, Plan, SnapshotRequestError, Taking, Tracking, is_served};
use crate::start::Surroundings;
use crate::validate;
use crate::vcpu::SLICE;

/// How often a thread is looked at that may not end by itself.
const TICK: Duration = Duration::from_millis(5);

/// What is under way with a VM.
pub(super) enum Busy {
    Snapshot(Ending),
    Migration(Cancel),
}

/// How far a snapshot or a migration has come.
pub enum Moving {
    /// A snapshot has copied what can be copied while the guest runs.
    Copied(Box<Taking>, Reply),
    /// A snapshot failed before it came to its pause.
    NotCopied(Box<Taking>, SnapshotRequestError, Reply),
    /// The snapshot of this name is whole, or has failed after its pause.
    Kept(String, Result<Value, SnapshotRequestError>, Reply),
    /// The guest writes faster than it can be sent.
    Throttle(u32),
    /// A migration has copied what can be copied while the guest runs.
    Sent(Box<Sending>, Reply),
    /// A migration failed before it came to its pause.
    NotSent(Box<Sending>, MigrationError, Reply),
    /// A guest has come.
    Arrived(Box<Arrival>, Reply),
    /// None has come.
    NotArrived(MigrationError, Reply),
}

impl Moving {
    /// Nothing comes of it: its machine is gone.
    pub(super) fn undo(self) {
        match self {
            Moving::Copied(taking, reply) => {
                taking.discard();
                reply(Err(SnapshotRequestError::Ended.into()));
            }
            Moving::NotCopied(taking, error, reply) => {
                taking.discard();
                reply(Err(error.into()));
            }
            // It has all of its machine.
            Moving::Kept(_, result, reply) => reply(result.map(Some).map_err(Into::into)),
            Moving::Sent(mut sending, reply) => {
                sending.tell_cancelled();
                reply(Err(MigrationError::Ended.into()));
            }
            Moving::NotSent(mut sending, error, reply) => {
                sending.tell_cancelled();
                reply(Err(error.into()));
            }
            // Its files go with it, and the source sees that nobody takes the guest.
            Moving::Arrived(arrival, reply) => {
                drop(arrival);
                reply(Err(MigrationError::Cancelled.into()));
            }
            Moving::NotArrived(error, reply) => reply(Err(error.into())),
            Moving::Throttle(_) => {}
        }
    }
}

impl Monitor {
    pub(super) fn begin_move(&mut self, request: MoveRequest, reply: Reply) {
        match request {
            MoveRequest::Snapshot(request) => self.begin_snapshot(*request, reply),
            MoveRequest::Send(request) => self.begin_send(request, reply),
            MoveRequest::Receive(request) => self.begin_receive(&request, reply),
        }
    }

    /// Carries on with what has come so far. `current` is false if its machine is gone.
    pub(super) fn moved(&mut self, current: bool, moving: Moving) {
        match moving {
            Moving::Arrived(arrival, reply) => self.arrived(arrival, reply),
            Moving::NotArrived(error, reply) => {
                self.incoming = None;
                reply(Err(error.into()));
            }
            moving if !current => moving.undo(),
            Moving::Copied(taking, reply) => self.freeze(*taking, reply),
            Moving::NotCopied(taking, error, reply) => {
                match &mut self.vm {
                    Some(vm) => vm.give_up(*taking),
                    None => taking.discard(),
                }
                reply(Err(error.into()));
            }
            Moving::Kept(id, result, reply) => {
                if let Some(vm) = &mut self.vm {
                    vm.busy = None;
                    if let Some(machine) = vm.machine.as_mut().filter(|_| result.is_err()) {
                        // There is nothing that a diff could build on.
                        machine.tracking.take_if(|tracking| tracking.builds_on(&id));
                    }
                }
                reply(result.map(Some).map_err(Into::into));
            }
            Moving::Throttle(percent) => {
                if let Some(machine) = self.vm.as_ref().and_then(|vm| vm.machine.as_ref()) {
                    machine.throttle(percent);
                }
            }
            Moving::Sent(sending, reply) => self.hand_over(*sending, reply),
            Moving::NotSent(mut sending, error, reply) => {
                sending.tell_cancelled();
                if let Some(vm) = &mut self.vm {
                    vm.busy = None;
                    if let Some(machine) = &vm.machine {
                        machine.throttle(0);
                    }
                }
                reply(Err(error.into()));
            }
        }
    }

    /// What is under way with the VM is to end soon: its machine goes away.
    pub(super) fn end_moves(&mut self) {
        match self.vm.as_mut().and_then(|vm| vm.busy.take()) {
            Some(Busy::Snapshot(ending)) => ending.end(),
            Some(Busy::Migration(cancel)) => cancel.cancel(),
            None => {}
        }
    }

    /// The VM's machine, if nothing else is under way with it.
    pub(super) fn idle(
        &mut self,
        verb: &'static str,
    ) -> Result<(&mut Machine, &VmConfig), RequestError> {
        self.machine(verb)?;
        let vm = self.vm()?;
        match (&mut vm.machine, &vm.busy) {
            (Some(machine), None) => Ok((machine, &vm.config)),
            _ => Err(MigrationError::UnderWay.into()),
        }
    }

    /// Starts a thread that does something and says so.
    fn spawn(
        &self,
        what: &str,
        work: impl FnOnce() -> Moving + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let (events, generation) = (self.events.clone(), Generation(self.generation));
        let thread = std::thread::Builder::new().name(what.to_owned());
        let spawned = thread.spawn(move || {
            // The monitor is gone only when the process ends.
            let _ = events.send(Event::Moving(generation, work()));
        });
        if let Err(e) = &spawned {
            // Its reply went with it: the client sees that nobody answers.
            log::error!("cannot start the {what} thread: {e}");
        }
        spawned.ok()
    }

    /// The same for what leaves files behind unless it ends in order: the monitor waits for it before it ends.
    /// Whether it started.
    pub(super) fn spawn_awaited(
        &mut self,
        what: &str,
        snapshot: Option<Ending>,
        work: impl FnOnce() -> Moving + Send + 'static,
    ) -> bool {
        let thread = self.spawn(what, work);
        let started = thread.is_some();
        self.awaited.retain(|(thread, _)| !thread.is_finished());
        self.awaited.extend(thread.map(|thread| (thread, snapshot)));
        started
    }

    /// Waits for such threads. Whoever keeps a snapshot elsewhere may say for ever that it works on that.
    pub(super) fn end_awaited(&mut self) {
        let patience = Instant::now() + SILENCE;
        for (thread, snapshot) in self.awaited.drain(..) {
            if let Some(snapshot) = snapshot {
                while !thread.is_finished() && Instant::now() < patience {
                    std::thread::sleep(TICK);
                }
                snapshot.hang_up();
            }
            let _ = thread.join();
        }
    }

    fn begin_snapshot(&mut self, request: VmSnapshot, reply: Reply) {
        let running = |vm: &Vm| vm.state == VmState::Running;
        let runs = self.vm.as_ref().is_some_and(running);
        let begun = self
            .idle("be kept in a snapshot")
            .and_then(|(machine, config)| {
                complete(machine)?;
                Ok(Taking::begin(request, machine, config, runs)?)
            });
        let mut taking = match begun {
            Ok(taking) => taking,
            Err(e) => return reply(Err(e)),
        };
        if let Some(vm) = &mut self.vm {
            vm.busy = Some(Busy::Snapshot(taking.ending()));
        }
        let ending = Some(taking.ending());
        self.spawn_awaited("snapshot", ending, move || match taking.copy_live() {
            Ok(()) => Moving::Copied(Box::new(taking), reply),
            Err(e) => Moving::NotCopied(Box::new(taking), e, reply),
        });
    }

    /// Lets the guest stand still, if it runs; since when.
    fn hold(&mut self) -> Option<Instant> {
        let vm = self.vm.as_ref().filter(|vm| vm.state == VmState::Running)?;
        let machine = vm.machine.as_ref()?;
        let begun = Instant::now();
        machine.pause();
        Some(begun)
    }

    /// The pause of a snapshot.
    fn freeze(&mut self, mut taking: Taking, reply: Reply) {
        let paused = self.hold();
        let is_ending = self.is_ending();
        let Some(vm) = &mut self.vm else {
            taking.discard();
            return reply(Err(RequestError::NoVm));
        };
        let Some(machine) = vm.machine.as_mut().filter(|_| !is_ending) else {
            vm.give_up(taking);
            return reply(Err(SnapshotRequestError::Ended.into()));
        };
        let frozen = taking.freeze(machine, &mut vm.config, paused);
        let stop = frozen.is_ok() && taking.after() == AfterSnapshot::Stop;
        if paused.is_some() && !stop {
            machine.resume();
            taking.resumed();
        }
        if let Err(e) = frozen {
            vm.give_up(taking);
            return reply(Err(e.into()));
        }
        if stop {
            self.stop();
        }
        let ending = Some(taking.ending());
        self.spawn_awaited("snapshot", ending, move || {
            let id = taking.id();
            let info = taking.finish();
            Moving::Kept(id, info.map(|info| json(&info)), reply)
        });
    }

    /// Makes a VM of a snapshot.
    pub(super) fn restore(&mut self, request: &VmRestore) -> Result<Value, RequestError> {
        let begun = Instant::now();
        if self.vm.is_some() || self.incoming.is_some() {
            return Err(RequestError::Exists);
        }
        let offer = offer_of(&mut self.offer, &self.kvm).map_err(BootError::Machine)?;
        let (plan, problems) = Plan::make(request, &offer)?;
        let info = |problems| VmRestoreInfo {
            problems,
            total_us: begun.elapsed().as_micros() as u64,
        };
        if request.dry_run {
            return Ok(json(&info(problems)));
        }
        if !problems.is_empty() {
            return Err(SnapshotRequestError::Problems(problems).into());
        }
        probe(&self.kvm, self.options, &mut self.probed)?;
        plan.make_overlays()?;
        let restored = self.restore_planned(&plan, &offer, request);
        if restored.is_err() {
            plan.remove_overlays();
        }
        let mut vm = restored?;
        if request.resume {
            vm.go_on();
        }
        self.vm = Some(vm);
        Ok(json(&info(Vec::new())))
    }

    fn restore_planned(
        &mut self,
        plan: &Plan,
        offer: &Arc<Offer>,
        request: &VmRestore,
    ) -> Result<Vm, RequestError> {
        let mut vm = Vm::to_come(plan.config.clone());
        let events = self.next_events();
        let around = Surroundings {
            terminals: terminals_of(&mut vm.terminals, &mut vm.config, self.options.sandbox)
                .map_err(BootError::Terminal)?,
            events,
            sandbox: self.options.sandbox,
        };
        let config = &vm.config;
        let shell = shell_for(&mut self.prepared, &self.kvm, offer, config);
        let machine = shell.and_then(|shell| {
            let (wanted, place) = (&config.memory, &shell.place);
            let memory = match request.mode {
                RestoreMode::Copy => memory::copied(wanted, place, &plan.chain)?,
                RestoreMode::Lazy => memory::mapped(wanted, place, &plan.chain)?,
                RestoreMode::Userfault => memory::fetched(wanted, place, &plan.chain)?,
            };
            plan.fetch_working_set(&memory);
            let mut machine = Machine::revive(shell, config, &around, memory, &plan.kept)?;
            machine.renew_identity()?;
            if is_served(config) {
                // A back end would find nothing where memory is missing, and nobody would hear of it.
                let completed = machine.complete_memory();
                completed.map_err(system("fetch the guest's memory"))?;
            } else if let Some(bandwidth) = request.prefault_bandwidth {
                machine.fetch_ahead(plan.ranges(), bandwidth)?;
            }
            Ok(machine)
        });
        let mut machine = machine.map_err(BootError::Machine)?;
        machine.tracking =
            Tracking::since_restore(&machine.ram, plan.origin(), request.track_dirty)?;
        vm.machine = Some(machine);
        vm.made_of = Some(plan.origin());
        Ok(vm)
    }

    /// Keeps note of what a restored guest has touched until now, with the snapshot that it was made of.
    pub(super) fn record_working_set(&mut self) -> Result<Value, RequestError> {
        self.machine("tell its working set")?;
        let vm = self.vm()?;
        let (Some(machine), Some(origin)) = (&vm.machine, &vm.made_of) else {
            return Err(SnapshotRequestError::NotRestored.into());
        };
        let ranges = machine.working_set().map_err(SnapshotRequestError::Track)?;
        let bytes = ranges.iter().map(|range| range.len).sum();
        let path = origin.path.as_ref();
        let directory = Directory::new(path.ok_or(SnapshotRequestError::NotRestored)?);
        WorkingSet::write(&directory, &origin.id, &ranges)
            .map_err(SnapshotRequestError::Snapshot)?;
        Ok(json(&VmWorkingSetInfo { bytes }))
    }

    /// Makes a VM ready for what will run in it.
    pub(super) fn prepare(&mut self, request: &VmPrepare) -> Result<(), RequestError> {
        if self.vm.is_some() || self.incoming.is_some() {
            return Err(RequestError::Exists);
        }
        let mut config = VmConfig {
            cpus: request.cpus.clone(),
            memory: request.memory.clone(),
            ..VmConfig::default()
        };
        validate::size(&mut config)?;
        probe(&self.kvm, self.options, &mut self.probed)?;
        self.prepared = None;
        let offer = offer_of(&mut self.offer, &self.kvm).map_err(BootError::Machine)?;
        let shell = Shell::new(&self.kvm, &offer, config.cpus.boot_vcpus, &config.memory);
        self.prepared = Some(shell.map_err(BootError::Machine)?);
        Ok(())
    }

    fn begin_send(&mut self, request: VmSendMigration, reply: Reply) {
        // A paused guest would run at its target.
        if let Err(e) = self.running("go elsewhere") {
            return reply(Err(e));
        }
        let cancel = Cancel::default();
        let begun = self.idle("go elsewhere").and_then(|(machine, config)| {
            complete(machine)?;
            Ok(Sending::begin(request, machine, config, cancel.clone())?)
        });
        let mut sending = match begun {
            Ok(sending) => sending,
            Err(e) => return reply(Err(e)),
        };
        if let Some(vm) = &mut self.vm {
            vm.busy = Some(Busy::Migration(cancel));
        }
        let (events, generation) = (self.events.clone(), Generation(self.generation));
        self.spawn("migration", move || {
            let brake = Brake::new(move |percent| {
                let _ = events.send(Event::Moving(generation, Moving::Throttle(percent)));
            });
            let sent = sending.copy_live(|percent| brake.set(percent));
            drop(brake);
            match sent {
                Ok(()) => Moving::Sent(Box::new(sending), reply),
                Err(e) => Moving::NotSent(Box::new(sending), e, reply),
            }
        });
    }

    /// The end of a migration, from here.
    fn hand_over(&mut self, mut sending: Sending, reply: Reply) {
        if let Some(machine) = self.vm.as_ref().and_then(|vm| vm.machine.as_ref()) {
            machine.throttle(0);
        }
        let paused = self.hold();
        let is_ending = self.is_ending();
        let Some(vm) = &mut self.vm else {
            sending.tell_cancelled();
            return reply(Err(RequestError::NoVm));
        };
        vm.busy = None;
        let Some(machine) = vm.machine.as_mut().filter(|_| !is_ending) else {
            sending.tell_cancelled();
            return reply(Err(MigrationError::Ended.into()));
        };
        let Some(begun) = paused else {
            // Somebody paused it meanwhile, and it would run at its target.
            sending.tell_cancelled();
            return reply(Err(MigrationError::Cancelled.into()));
        };
        match sending.hand_over(machine, &mut vm.config, begun) {
            Ok(info) => {
                // What is on the disks is the other one's.
                machine.forget_disks();
                self.stop();
                reply(Ok(Some(json(&info))));
            }
            Err(e @ MigrationError::Stranded(_)) => {
                vm.state = VmState::Paused;
                reply(Err(e.into()));
            }
            Err(e) => {
                machine.resume();
                reply(Err(e.into()));
            }
        }
    }

    pub(super) fn cancel_migration(&mut self) -> Result<(), RequestError> {
        if self.incoming.is_some() {
            self.end_waiting();
            return Ok(());
        }
        match &self.vm()?.busy {
            Some(Busy::Migration(cancel)) => {
                cancel.cancel();
                Ok(())
            }
            _ => Err(MigrationError::None.into()),
        }
    }
}

/// What is kept or sent is all of memory: what a restore has not fetched yet is fetched now.
fn complete(machine: &mut Machine) -> Result<(), SnapshotRequestError> {
    machine
        .complete_memory()
        .map_err(SnapshotRequestError::Fetch)
}

impl From<MachineError> for RequestError {
    fn from(error: MachineError) -> RequestError {
        RequestError::Boot(BootError::Machine(error))
    }
}

impl Vm {
    /// One whose machine is about to be made.
    pub(super) fn to_come(config: VmConfig) -> Vm {
        Vm {
            config,
            state: VmState::Paused,
            terminals: None,
            machine: None,
            owns_process: false,
            busy: None,
            made_of: None,
            places: Places::new(),
        }
    }

    pub(super) fn go_on(&mut self) {
        if let Some(machine) = &mut self.machine {
            machine.resume();
            self.state = VmState::Running;
        }
    }

    /// Nothing comes of a snapshot.
    fn give_up(&mut self, taking: Taking) {
        self.busy = None;
        match &mut self.machine {
            Some(machine) => taking.give_up(machine),
            None => taking.discard(),
        }
    }
}

/// Says again every slice how much a guest is to be slowed down.
struct Brake {
    percent: std::sync::mpsc::Sender<u32>,
}

impl Brake {
    fn new(say: impl Fn(u32) + Send + 'static) -> Brake {
        let (percent, changes) = std::sync::mpsc::channel();
        let work = move || {
            use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
            let mut now = 0;
            loop {
                match changes.recv_timeout(SLICE) {
                    Ok(percent) => now = percent,
                    Err(Timeout) if now > 0 => say(now),
                    Err(Timeout) => {}
                    Err(Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("brake".into());
        if let Err(e) = thread.spawn(work) {
            log::warn!("the guest cannot be slowed down: {e}");
        }
        Brake { percent }
    }

    fn set(&self, percent: u32) {
        let _ = self.percent.send(percent);
    }
}
