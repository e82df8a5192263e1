//! Where a run took place: the machine, its kernel, its KVM, and the versions of the programs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The host of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The processor's name.
    pub cpu: String,
    /// Processors.
    pub cpus: usize,
    /// MiB of memory.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// What is behind /dev/kvm: `hardware (kvm_intel)`, `software (kvm_pvm)`, ….
    pub kvm: String,
    /// What the programs say of their versions.
    pub programs: BTreeMap<String, String>,
}

impl Host {
    /// This host, with these programs.
    pub fn here<'a>(programs: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Host {
        let cpuinfo = read("/proc/cpuinfo");
        let meminfo = read("/proc/meminfo");
        let kib = field(&meminfo, "MemTotal")
            .split(' ')
            .next()
            .and_then(|n| n.parse().ok());
        let versions = programs.into_iter();
        Host {
            cpu: field(&cpuinfo, "model name").to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib.unwrap_or(0u64) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kvm: kvm(&cpuinfo),
            programs: versions
                .map(|(name, path)| (name.to_owned(), version(path)))
                .collect(),
        }
    }
}

/// Bytes of memory that programs can get without others losing theirs.
pub fn available_memory() -> u64 {
    let meminfo = read("/proc/meminfo");
    let kib = field(&meminfo, "MemAvailable").split(' ').next();
    kib.and_then(|kib| kib.parse().ok()).unwrap_or(0u64) << 10
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first `name : value`.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    let found = pairs.find(|(key, _)| key.trim() == name);
    found.map_or("unknown", |(_, value)| value.trim())
}

fn kvm(cpuinfo: &str) -> String {
    let loaded = |module: &str| Path::new("/sys/module").join(module).is_dir();
    for module in ["kvm_intel", "kvm_amd"] {
        if loaded(module) {
            let nested = field(cpuinfo, "flags")
                .split(' ')
                .any(|flag| flag == "hypervisor");
            let nested = if nested { ", in a virtual machine" } else { "" };
            return format!("hardware ({module}{nested})");
        }
    }
    match loaded("kvm_pvm") {
        true => "software (kvm_pvm)".to_owned(),
        false => "unknown".to_owned(),
    }
}

/// The frequency of this processor's TSC in kHz, measured for a moment: guests on a software KVM cannot
/// find it out.
pub fn tsc_khz() -> u64 {
    use std::arch::x86_64::_rdtsc;
    let begun = std::time::Instant::now();
    // SAFETY: every x86-64 processor has RDTSC, and Linux allows it.
    let first = unsafe { _rdtsc() };
    std::thread::sleep(std::time::Duration::from_millis(100));
    // SAFETY: as above.
    let ticks = unsafe { _rdtsc() } - first;
    (ticks as f64 / begun.elapsed().as_secs_f64() / 1e3).round() as u64
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let text = text.unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "host: {} x {}, {} MiB, Linux {}, KVM: {}",
            self.cpus, self.cpu, self.memory_mib, self.kernel, self.kvm
        )?;
        for (name, version) in &self.programs {
            writeln!(f, "{name}: {version}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nmodel name\t: another\n";
        assert_eq!(field(text, "model name"), "A CPU @ 3 GHz");
        assert_eq!(field(text, "flags"), "unknown");
    }

    #[test]
    fn some_memory_is_available_and_not_more_than_there_is() {
        let host = Host::here([]);
        let available = available_memory();
        assert!(available > 0 && available >> 20 <= host.memory_mib);
    }

    #[test]
    fn this_host_has_a_kernel_and_processors() {
        let host = Host::here([]);
        assert!(host.cpus > 0 && !host.kernel.is_empty() && host.memory_mib > 0);
    }
}
