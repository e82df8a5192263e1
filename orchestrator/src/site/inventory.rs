//! What this host has.

use std::path::Path;

use crate::model::{HostStatus, Quantity, Timestamp};

/// Memory that is left to the host itself, in bytes.
const RESERVED: u64 = 256 << 20;

/// Looks at this host, whose workloads' files lie in `state`.
pub fn look(state: &Path) -> HostStatus {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let memory = field("/proc/meminfo", "MemTotal:").saturating_mul(1 << 10);
    let disk =
        rustix::fs::statvfs(state).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
    HostStatus {
        cpus,
        memory: Quantity::of(memory.saturating_sub(RESERVED)),
        disk: Quantity::of(disk),
        hugepages: field("/proc/meminfo", "HugePages_Free:"),
        address: String::new(),
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kvm: match Path::new("/dev/kvm").exists() {
            true => "present".to_owned(),
            false => "missing".to_owned(),
        },
        heard_at: Some(Timestamp::now()),
        phase: "Ready".to_owned(),
        conditions: Vec::new(),
    }
}

/// A number of a file of the kernel's; 0 if it is not there.
fn field(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
