//! What differs between processor architectures, behind one set of names: memory [`layout`],
//! CPU set-up, boot protocols and firmware tables.
//!
//! The rest of the crate uses the names below and nothing from inside `x86_64`. A second
//! architecture is a sibling module with the same names.

mod x86_64;

pub use x86_64::{
    ArchError, Boot, ClockState, CpuFeatures, CpuState, CpuTold, MsrIndices, PROBE_MEMORY,
    PROBE_PASSED, PROBE_PORT, accommodate, facts, lacking, layout, machine_tsc, machine_tsc_read,
    prepare_boot, prepare_vm, probe_program, renew_identity, restore_clock, restore_vcpu,
    save_clock, save_vcpu, setup_vcpu, tsc_khz, was_paused,
};
