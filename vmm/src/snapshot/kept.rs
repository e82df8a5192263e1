//! What is kept of a machine beside its memory and its disks, as records.
//!
//! | kind | id | version | content |
//! |---|---|---|---|
//! | `cpu` | its number | 1 | [`CpuState`], JSON |
//! | `clock` | | 1 | [`ClockState`], JSON |
//! | `legacy` | | 1 | [`LegacyState`], JSON |
//! | `slots` | | 1 | [`SlotsState`], JSON; snapshots of monitors before there was hotplug have none |
//! | `virtio` | the device's name | 1 | [`VirtioState`], JSON |
//! | `back-end` | the device's name | 1 | what the process that serves it has of it, in that one's own form; only if it has any |
//!
//! A change of any of them is a new version of that record, and the reader of the version before stays.

use std::collections::BTreeMap;

use skerry_devices::virtio::transport::VirtioState;
use skerry_snapshot::{Records, SnapshotError, State};

use super::SnapshotRequestError;
use crate::arch::{self, ClockState, CpuState};
use crate::assembly::LegacyState;
use crate::machine::Machine;
use crate::slots::SlotsState;

const CPU: &str = "cpu";
const CLOCK: &str = "clock";
const LEGACY: &str = "legacy";
const SLOTS: &str = "slots";
const VIRTIO: &str = "virtio";
const BACK_END: &str = "back-end";
const VERSION: u32 = 1;

/// A machine's state.
pub struct Kept {
    /// Of its CPUs, in order.
    pub cpus: Vec<CpuState>,
    /// Of its clock.
    pub clock: ClockState,
    /// Of what is no function.
    pub legacy: LegacyState,
    /// Of the slots that functions are in.
    pub slots: Option<SlotsState>,
    /// Of its functions, by name.
    pub devices: BTreeMap<String, VirtioState>,
    /// Of what other processes have of functions, by name.
    pub held: BTreeMap<String, Vec<u8>>,
}

impl Kept {
    /// Of a paused machine.
    pub fn of(machine: &Machine) -> Result<Kept, SnapshotRequestError> {
        let mut cpus = Vec::with_capacity(machine.cpus.len());
        for (index, (cpu, told)) in (0..).zip(machine.cpus.iter().zip(&machine.told)) {
            let (msrs, told) = (machine.msrs.clone(), told.clone());
            let saved = cpu.errand(move |fd| arch::save_vcpu(fd, &msrs, told));
            cpus.push(saved.ok_or(SnapshotRequestError::Cpu(index))??);
        }
        let functions = machine.board().functions();
        let mut held = BTreeMap::new();
        for (_, function) in &functions {
            let id = function.name().to_owned();
            match function.save_held() {
                Ok(state) => held.extend(state.map(|state| (id, state))),
                Err(source) => return Err(SnapshotRequestError::Held { id, source }),
            }
        }
        let clock = arch::save_clock(&machine.vm, arch::machine_tsc_read(&cpus))?;
        Ok(Kept {
            cpus: cpus.into_iter().map(|(cpu, _)| cpu).collect(),
            clock,
            legacy: machine.legacy.save(),
            slots: Some(machine.slots.save(machine.board())),
            devices: functions
                .iter()
                .map(|(_, function)| (function.name().to_owned(), function.save()))
                .collect(),
            held,
        })
    }

    /// Writes it as records.
    pub fn put(&self, records: &mut Records) {
        for (index, cpu) in self.cpus.iter().enumerate() {
            records.put_value(CPU, &index.to_string(), VERSION, cpu);
        }
        records.put_value(CLOCK, "", VERSION, &self.clock);
        records.put_value(LEGACY, "", VERSION, &self.legacy);
        if let Some(slots) = &self.slots {
            records.put_value(SLOTS, "", VERSION, slots);
        }
        for (id, device) in &self.devices {
            records.put_value(VIRTIO, id, VERSION, device);
        }
        for (id, state) in &self.held {
            records.put(BACK_END, id, VERSION, state);
        }
    }

    /// Takes it from a state file, all of whose records must be known then.
    pub fn take(state: &mut State) -> Result<Kept, SnapshotError> {
        let header = state.header();
        let has_slots = header.records.iter().any(|record| record.kind == SLOTS);
        let devices: Vec<String> = header.devices.iter().map(|d| d.id.clone()).collect();
        let cpus = (0..header.machine.cpus).map(|index| index.to_string());
        let mut held = BTreeMap::new();
        for id in &devices {
            let state = state.take_bytes(BACK_END, id, VERSION)?;
            held.extend(state.map(|state| (id.clone(), state.to_owned())));
        }
        let kept = Kept {
            held,
            cpus: cpus
                .map(|index| state.take_value(CPU, &index, VERSION))
                .collect::<Result<_, _>>()?,
            clock: state.take_value(CLOCK, "", VERSION)?,
            legacy: state.take_value(LEGACY, "", VERSION)?,
            slots: match has_slots {
                true => Some(state.take_value(SLOTS, "", VERSION)?),
                false => None,
            },
            devices: devices
                .into_iter()
                .map(|id| {
                    let device = state.take_value(VIRTIO, &id, VERSION)?;
                    Ok((id, device))
                })
                .collect::<Result<_, SnapshotError>>()?,
        };
        state.finish()?;
        Ok(kept)
    }
}
