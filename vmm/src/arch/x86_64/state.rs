//! What is kept of CPUs and clocks, in the order that KVM wants it set (KVM API §4).

use std::time::Instant;

use kvm_bindings::{
    CpuId, Msrs, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use skerry_snapshot::{CpuFacts, CpuidLeaf};

use super::{ArchError, CpuFeatures, kvm};

/// As many registers as KVM takes at once (KVM API §4.18).
const AT_ONCE: usize = 255;
const MSR_TSC: u32 = 0x10;
/// The memory type range registers, which KVM keeps and does not list (Intel SDM vol. 3 §12.11).
const MTRRS: [std::ops::RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
];
const CR4_VMXE: u64 = 1 << 13;
const EFER_SVME: u64 = 1 << 12;
/// Where the saved extended state says what it has, in 32-bit words.
const XSTATE_BV: usize = 128;
/// The states that every CPU has.
const X87_AND_SSE: u64 = 3;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// A virtual CPU that stands still.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    /// The time-stamp counter.
    tsc: u64,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    mp: kvm_mp_state,
    events: kvm_vcpu_events,
    msrs: Vec<(u32, u64)>,
}

/// The model-specific registers that KVM knows of; asked for before CPUs run.
#[derive(Clone)]
pub struct MsrIndices(Vec<u32>);

impl MsrIndices {
    /// Asks KVM.
    pub fn of(kvm_fd: &Kvm) -> Result<MsrIndices, ArchError> {
        let list = kvm_fd
            .get_msr_index_list()
            .map_err(kvm("list the model-specific registers"))?;
        let mut indices = list.as_slice().to_vec();
        indices.extend(MTRRS.into_iter().flatten());
        indices.sort_unstable();
        indices.dedup();
        Ok(MsrIndices(indices))
    }
}

/// What a CPU was told of its features.
#[derive(Clone)]
pub struct CpuTold(pub(super) Vec<kvm_cpuid_entry2>);

impl CpuState {
    /// What the CPU was told of its features.
    pub fn told(&self) -> CpuTold {
        CpuTold(self.cpuid.clone())
    }
}

/// Which CPU one is that was told so.
pub fn facts(told: Option<&CpuTold>) -> CpuFacts {
    let leaves = told.map_or(&[][..], |told| &told.0);
    let text = |registers: &[u32]| {
        let bytes: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.trim_matches(['\0', ' ']).to_owned()
    };
    let of = |function| leaves.iter().find(move |e| e.function == function);
    let model = (0x8000_0002..=0x8000_0004)
        .filter_map(of)
        .map(|e| text(&[e.eax, e.ebx, e.ecx, e.edx]))
        .collect::<String>();
    CpuFacts {
        vendor: of(0).map_or_else(String::new, |e| text(&[e.ebx, e.edx, e.ecx])),
        model,
        cpuid: leaves
            .iter()
            .map(|e| CpuidLeaf(e.function, e.index, [e.eax, e.ebx, e.ecx, e.edx]))
            .collect(),
    }
}

/// Feature leaves: function, index, and which of the four registers are sets of bits that a guest may
/// rely on (Intel SDM vol. 2, CPUID).
const FEATURES: [(u32, u32, [bool; 4]); 6] = [
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, false, false, true]),
    (0xd, 1, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0008, 0, [false, true, false, false]),
];

/// What the guest was told that this host's KVM does not have, one text a register.
pub fn lacking(facts: &CpuFacts, features: &CpuFeatures) -> Vec<String> {
    let here = features.feature_leaves();
    let registers = |leaves: &[CpuidLeaf], function, index| {
        let leaf = leaves.iter().find(|l| (l.0, l.1) == (function, index));
        leaf.map_or([0; 4], |l| l.2)
    };
    let mut lacking = Vec::new();
    for (function, index, which) in FEATURES {
        let (wanted, has) = (
            registers(&facts.cpuid, function, index),
            registers(&here, function, index),
        );
        for (i, name) in ["EAX", "EBX", "ECX", "EDX"].into_iter().enumerate() {
            let bits = wanted[i] & !has[i];
            if which[i] && bits != 0 {
                lacking.push(format!(
                    "CPU features {bits:#x} of CPUID {function:#x}.{index} {name}"
                ));
            }
        }
    }
    lacking
}

/// Takes from a CPU that was kept what this host's KVM does not have and would not take, so that its guest can
/// go on as far as it does not use that: features, extended states, a counter of another frequency.
pub fn accommodate(state: &mut CpuState, features: &CpuFeatures) {
    let here = features.feature_leaves();
    for entry in &mut state.cpuid {
        let place = (entry.function, entry.index);
        let Some((.., which)) = FEATURES.iter().find(|f| (f.0, f.1) == place) else {
            continue;
        };
        let has = here.iter().find(|l| (l.0, l.1) == place);
        let has = has.map_or([0; 4], |l| l.2);
        let told = [
            &mut entry.eax,
            &mut entry.ebx,
            &mut entry.ecx,
            &mut entry.edx,
        ];
        for ((register, has), is_set) in told.into_iter().zip(has).zip(which) {
            *register &= if *is_set { has } else { u32::MAX };
        }
    }
    let states = features.extended_states();
    match (states, &mut state.xcrs) {
        (Some(states), Some(xcrs)) => {
            let xcr0 = xcrs.xcrs.iter_mut().find(|register| register.xcr == 0);
            xcr0.into_iter()
                .for_each(|register| register.value &= states);
        }
        // It is as a CPU begins.
        (None, xcrs) => *xcrs = None,
        (Some(_), None) => {}
    }
    // XSTATE_BV, two words of it (Intel SDM vol. 1 §13.4.2). What it does not name is as a CPU begins.
    let states = states.unwrap_or(0) | X87_AND_SSE;
    state.xsave.region[XSTATE_BV] &= states as u32;
    state.xsave.region[XSTATE_BV + 1] &= (states >> 32) as u32;
    if !features.scales_tsc() {
        state.tsc_khz = 0;
    }
}

/// The guest's TSC frequency of a saved CPU in kHz; 0 if KVM did not tell.
pub fn tsc_khz(state: &CpuState) -> u32 {
    state.tsc_khz
}

/// Keeps a CPU that stands still, and that was told `told` of its features: not every KVM gives that back
/// as it was. On its own thread. Returns when its counter was read, too.
pub fn save_vcpu(
    vcpu: &VcpuFd,
    indices: &MsrIndices,
    told: CpuTold,
) -> Result<(CpuState, Instant), ArchError> {
    let sregs = vcpu
        .get_sregs()
        .map_err(kvm("tell a CPU's system registers"))?;
    if sregs.cr4 & CR4_VMXE != 0 || sregs.efer & EFER_SVME != 0 {
        // What KVM knows of the guest's own guests would be lost.
        return Err(ArchError::Nested);
    }
    let msrs = read_msrs(vcpu, &indices.0)?;
    let tsc = read_msrs(vcpu, &[MSR_TSC])?;
    let read_at = Instant::now();
    let tsc = tsc.first().map_or(0, |(_, value)| *value);
    let state = CpuState {
        cpuid: told.0,
        tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
        tsc,
        // It takes pending INITs and SIPIs into account, so it comes before what they change.
        mp: vcpu.get_mp_state().map_err(kvm("tell a CPU's run state"))?,
        regs: vcpu.get_regs().map_err(kvm("tell a CPU's registers"))?,
        sregs,
        xsave: vcpu
            .get_xsave()
            .map_err(kvm("tell a CPU's extended state"))?,
        xcrs: vcpu.get_xcrs().ok(),
        debug: vcpu
            .get_debug_regs()
            .map_err(kvm("tell a CPU's debug registers"))?,
        lapic: vcpu
            .get_lapic()
            .map_err(kvm("tell a CPU's interrupt controller"))?,
        events: vcpu
            .get_vcpu_events()
            .map_err(kvm("tell a CPU's pending events"))?,
        msrs: msrs
            .into_iter()
            .filter(|(index, _)| *index != MSR_TSC)
            .collect(),
    };
    Ok((state, read_at))
}

/// Reads those that KVM lets be read; it stops at each that it does not.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, ArchError> {
    let mut read = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let (now, _) = left.split_at(left.len().min(AT_ONCE));
        let entries: Vec<_> = now.iter().map(|index| entry(*index, 0)).collect();
        let Ok(mut msrs) = Msrs::from_entries(&entries) else {
            break;
        };
        let n = vcpu
            .get_msrs(&mut msrs)
            .map_err(kvm("tell a CPU's model-specific registers"))?;
        read.extend(msrs.as_slice()[..n].iter().map(|e| (e.index, e.data)));
        // The one that it stopped at is left out.
        left = &left[(n + usize::from(n < now.len())).min(left.len())..];
    }
    Ok(read)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// Makes a new CPU what was kept. `tsc` is the counter of all of the machine's CPUs: KVM takes writes of
/// the same value as one moment, and so keeps them equal. Returns when it was written.
pub fn restore_vcpu(vcpu: &VcpuFd, state: &CpuState, tsc: u64) -> Result<Instant, ArchError> {
    let cpuid = CpuId::from_entries(&state.cpuid)
        .map_err(|_| kvm("take so many features of a CPU")(kvm_ioctls::Error::new(libc::E2BIG)))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(kvm("set a CPU's features"))?;
    if state.tsc_khz != 0 && vcpu.get_tsc_khz().is_ok_and(|khz| khz != state.tsc_khz) {
        vcpu.set_tsc_khz(state.tsc_khz)
            .map_err(kvm("give a CPU's counter its frequency (a restore with ignore_cpu=on lets it have this host's)"))?;
    }
    vcpu.set_mp_state(state.mp)
        .map_err(kvm("set a CPU's run state"))?;
    vcpu.set_regs(&state.regs)
        .map_err(kvm("set a CPU's registers"))?;
    vcpu.set_sregs(&state.sregs)
        .map_err(kvm("set a CPU's system registers"))?;
    // SAFETY: without dynamic features (which need a permission that nobody asks for) the state is the 4096
    // bytes of the structure.
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(kvm("set a CPU's extended state"))?;
    if let Some(xcrs) = &state.xcrs {
        vcpu.set_xcrs(xcrs)
            .map_err(kvm("set a CPU's extended control registers"))?;
    }
    vcpu.set_debug_regs(&state.debug)
        .map_err(kvm("set a CPU's debug registers"))?;
    vcpu.set_lapic(&state.lapic)
        .map_err(kvm("set a CPU's interrupt controller"))?;
    // The deadline is compared with the counter, so it comes after it.
    let (deadline, others): (Vec<_>, Vec<_>) =
        (state.msrs.iter().copied()).partition(|(index, _)| *index == MSR_TSC_DEADLINE);
    write_msrs(vcpu, &others)?;
    write_msrs(vcpu, &[(MSR_TSC, tsc)])?;
    let written_at = Instant::now();
    write_msrs(vcpu, &deadline)?;
    vcpu.set_vcpu_events(&state.events)
        .map_err(kvm("set a CPU's pending events"))?;
    Ok(written_at)
}

/// Writes them; what KVM lets be read and not be written is left as it is.
fn write_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), ArchError> {
    let mut left = msrs;
    while !left.is_empty() {
        let now = &left[..left.len().min(AT_ONCE)];
        let entries: Vec<_> = now.iter().map(|(i, value)| entry(*i, *value)).collect();
        let Ok(list) = Msrs::from_entries(&entries) else {
            break;
        };
        let n = vcpu
            .set_msrs(&list)
            .map_err(kvm("set a CPU's model-specific registers"))?;
        if let Some((index, value)) = now.get(n) {
            log::debug!("KVM does not take {value:#x} for MSR {index:#x}");
        }
        left = &left[(n + usize::from(n < now.len())).min(left.len())..];
    }
    Ok(())
}

/// The counter that all CPUs get: the one that is furthest, so that none goes back.
pub fn machine_tsc<'a>(cpus: impl IntoIterator<Item = &'a CpuState>) -> u64 {
    cpus.into_iter().map(|cpu| cpu.tsc).max().unwrap_or(0)
}

/// When the counter that all CPUs get was read.
pub fn machine_tsc_read(cpus: &[(CpuState, Instant)]) -> Instant {
    let furthest = cpus.iter().max_by_key(|(cpu, _)| cpu.tsc);
    furthest.map_or_else(Instant::now, |(_, read_at)| *read_at)
}

/// The machine's paravirtual clock.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    /// Nanoseconds since the machine was made, without the time it was kept, when its CPUs' counters showed
    /// what was kept of them. A guest that finds the two apart distrusts its counters.
    nanoseconds: u64,
}

/// Keeps the clock as it was at a moment before.
pub fn save_clock(vm: &VmFd, moment: Instant) -> Result<ClockState, ArchError> {
    let clock = vm.get_clock().map_err(kvm("tell its clock"))?;
    let since = moment.elapsed().as_nanos() as u64;
    Ok(ClockState {
        nanoseconds: clock.clock.saturating_sub(since),
    })
}

/// Lets the clock go on from where it was kept, as if it had done so since a moment before.
pub fn restore_clock(vm: &VmFd, state: &ClockState, moment: Instant) -> Result<(), ArchError> {
    let since = moment.elapsed().as_nanos() as u64;
    let clock = kvm_clock_data {
        clock: state.nanoseconds.saturating_add(since),
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(kvm("set its clock"))
}

/// Tells a guest that its CPU stood still, so that its watchdogs don't take it for a hang.
pub fn was_paused(vcpu: &VcpuFd) {
    // Refused if the guest does not use the clock (KVM API §4.54); then it has no such watchdog.
    let _ = vcpu.kvmclock_ctrl();
}
