//! Whether VMs run here, and with devices of the host's.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Finding, good, limited, missing};

/// The monitor's exit code for a KVM that cannot run Linux.
const NO_LINUX: i32 = 3;
/// The monitor knows within this.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often is looked whether it does.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of what it says.
const SAID: u64 = 4096;

/// Whether there is a KVM, and whether it runs Linux, which the monitor finds out by trying.
pub fn look(vmm: &Path) -> Finding {
    const NAME: &str = "kvm";
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let remedy = "be root, or in the group that owns /dev/kvm";
            return missing(NAME, "/dev/kvm may not be used", remedy);
        }
        Err(e) => {
            let remedy = "switch virtualisation on in the firmware, and load the module kvm_intel or kvm_amd; in a \
                          VM, its host has to allow nested virtualisation; in a container, pass /dev/kvm in. \
                          Containers run without it";
            return missing(NAME, format!("/dev/kvm cannot be opened: {e}"), remedy);
        }
    }
    match probe(vmm) {
        Ok((Some(0), _)) => good(NAME, "it runs Linux"),
        Ok((Some(NO_LINUX), said)) => missing(
            NAME,
            format!("it does not run Linux: {said}"),
            "use a host whose KVM has hardware under it; small payloads run with `skerry up --no-probe`",
        ),
        Ok((_, said)) => missing(
            NAME,
            format!("the monitor's probe failed: {said}"),
            "see what it said",
        ),
        Err(e) => missing(
            NAME,
            format!("{} cannot be run: {e}", vmm.display()),
            "install the monitor beside this program, or name it: --vmm",
        ),
    }
}

/// What the monitor's probe ends with and says. It is ended itself if it takes too long.
fn probe(vmm: &Path) -> std::io::Result<(Option<i32>, String)> {
    let mut child = Command::new(vmm)
        .arg("--probe-only")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok((None, "it did not end".to_owned()));
        }
        std::thread::sleep(LOOK);
    };
    let mut said = String::new();
    if let Some(errors) = child.stderr.take() {
        errors.take(SAID).read_to_string(&mut said)?;
    }
    let line = said.lines().next().unwrap_or("it said nothing");
    let line = line.strip_prefix("skerry-vmm: ").unwrap_or(line);
    Ok((status.code(), line.to_owned()))
}

/// Whether devices of the host's can be given to VMs.
pub fn vfio() -> Finding {
    const NAME: &str = "vfio";
    let groups = fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count);
    if groups == 0 {
        let remedy = "to give devices to VMs, switch the IOMMU on: in the firmware (VT-d, AMD-Vi), and on Intel by \
                      intel_iommu=on on the kernel's command line";
        return limited(NAME, "there is no IOMMU", remedy);
    }
    let found = format!("{groups} IOMMU groups");
    match Path::new("/dev/vfio/vfio").exists() {
        true => good(NAME, found),
        false => limited(
            NAME,
            format!("{found}, but no /dev/vfio/vfio"),
            "to give devices to VMs, load the module vfio-pci",
        ),
    }
}
