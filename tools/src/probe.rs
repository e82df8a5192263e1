//! Can this host's KVM run Linux? The monitor's probe vCPU knows.
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command;

/// The probe's exit code for a KVM that works but cannot run Linux.
const CANNOT_RUN_LINUX: i32 = 3;

/// What the probe found out.
pub enum Probe {
    /// Linux runs here.
    Capable,
    /// It does not, for this reason.
    Incapable(String),
}

/// Asks the monitor to try this host's KVM.
///
/// # Errors
/// When the probe itself fails.
pub fn probe(vmm: &Path) -> Result<Probe> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Probe::Incapable("this host has no /dev/kvm".to_owned()));
    }
    let output = command::output(Command::new(vmm).arg("--probe-only"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(Probe::Capable),
        Some(CANNOT_RUN_LINUX) => Ok(Probe::Incapable(said)),
        _ => bail!(
            "`{} --probe-only` failed: {}\n{said}",
            vmm.display(),
            output.status
        ),
    }
}
