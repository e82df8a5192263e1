//! A guest that comes from another monitor: waited for and received on a thread of its own, then taken in by
//! the monitor's.

use skerry_link::Hangup;
use skerry_vmm_api::snapshots::VmReceiveMigration;

use super::{
    BootError, Monitor, Moving, Reply, RequestError, Vm, chain, offer_of, probe, terminals_of,
};
use crate::machine::Machine;
use crate::memory::Restored;
use crate::migration::{self, Arrival};
use crate::start::Surroundings;

impl Monitor {
    pub(super) fn begin_receive(&mut self, request: &VmReceiveMigration, reply: Reply) {
        if self.vm.is_some() || self.incoming.is_some() {
            return reply(Err(RequestError::Exists));
        }
        let ready = probe(&self.kvm, self.options, &mut self.probed)
            .and_then(|()| Ok(offer_of(&mut self.offer, &self.kvm)?));
        let offer = match ready {
            Ok(offer) => offer,
            Err(e) => return reply(Err(e.into())),
        };
        let receiving = match migration::listen(request) {
            Ok(receiving) => receiving,
            Err(e) => return reply(Err(e.into())),
        };
        let hangup = Hangup::default();
        let (kvm, ends) = (self.kvm.clone(), hangup.clone());
        let started = self.spawn_awaited("migration", None, move || {
            match receiving.receive(&kvm, &offer, &ends) {
                Ok(arrival) => Moving::Arrived(Box::new(arrival), reply),
                Err(e) => Moving::NotArrived(e, reply),
            }
        });
        self.incoming = started.then_some(hangup);
    }

    /// A guest has come. It is taken in unless somebody has changed his mind.
    pub(super) fn arrived(&mut self, arrival: Box<Arrival>, reply: Reply) {
        let hangup = self.incoming.take().unwrap_or_default();
        match hangup.is_hung_up() {
            true => Moving::Arrived(arrival, reply).undo(),
            false => reply(self.take_in(*arrival).map(|()| None)),
        }
    }

    /// Lets a guest that has come go on here.
    fn take_in(&mut self, arrival: Arrival) -> Result<(), RequestError> {
        let (mut decision, shell, ram, kept, config) = arrival.split();
        let mut vm = Vm::to_come(config);
        let events = self.next_events();
        let built = terminals_of(&mut vm.terminals, &mut vm.config, self.options.sandbox)
            .map_err(BootError::Terminal)
            .and_then(|terminals| {
                let around = Surroundings {
                    terminals,
                    events,
                    sandbox: self.options.sandbox,
                };
                let memory = Restored { ram, faults: None };
                Ok(Machine::revive(shell, &vm.config, &around, memory, &kept)?)
            });
        match built {
            Ok(machine) => vm.machine = Some(machine),
            Err(e) => {
                decision.failed(&chain(&e).join(": "));
                return Err(e.into());
            }
        }
        if let Err(e) = decision.wait() {
            // The source takes its disks back when this has none of them.
            drop(vm);
            decision.gone();
            return Err(e.into());
        }
        vm.go_on();
        self.vm = Some(vm);
        Ok(())
    }

    /// Nobody is waited for any more.
    pub(super) fn end_waiting(&mut self) {
        if let Some(hangup) = &self.incoming {
            hangup.hang_up();
        }
    }
}
