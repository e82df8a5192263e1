//! What a process's threads have used of the processors, virtual CPUs apart.

use std::path::Path;

use anyhow::{Context, Result};

/// Nanoseconds that threads ran, up to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Threads that run the guest.
    pub vcpus: u64,
    /// All others.
    pub others: u64,
}

impl Used {
    /// Of all threads.
    pub fn all(self) -> u64 {
        self.vcpus + self.others
    }

    /// What process `pid` has used until now.
    pub fn by(pid: u32) -> Result<Used> {
        let tasks = format!("/proc/{pid}/task");
        let mut used = Used::default();
        for entry in std::fs::read_dir(&tasks).with_context(|| tasks.clone())? {
            let path = entry.with_context(|| tasks.clone())?.path();
            // A thread that ended in between is no longer there.
            if let Some((name, ns)) = thread(&path) {
                match is_vcpu(&name) {
                    true => used.vcpus += ns,
                    false => used.others += ns,
                }
            }
        }
        Ok(used)
    }

    /// What was used since an earlier look.
    pub fn since(self, earlier: Used) -> Used {
        Used {
            vcpus: self.vcpus.saturating_sub(earlier.vcpus),
            others: self.others.saturating_sub(earlier.others),
        }
    }
}

/// Lets process `pid`'s virtual CPUs run on the host's first CPU, and its other threads on the second. Where
/// both poll, a scheduler that puts them on one makes any monitor a thousand times slower.
pub fn pin(pid: u32) -> Result<()> {
    let tasks = format!("/proc/{pid}/task");
    for entry in std::fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        let path = entry.with_context(|| tasks.clone())?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let Some(((name, _), number)) = thread(&path).zip(number) else {
            continue;
        };
        let mut set = rustix::thread::CpuSet::new();
        set.set(if is_vcpu(&name) { 0 } else { 1 });
        let thread = rustix::thread::Pid::from_raw(number);
        // One that ended in between needs no place; the kernel's own threads keep theirs.
        let _ = rustix::thread::sched_setaffinity(thread, &set);
    }
    Ok(())
}

/// While it lives, this thread runs as soon as it is woken. On a host whose processors are all busy, also with
/// guests that spin, it would else notice what has arrived up to a tick later.
pub struct Prompt(());

impl Prompt {
    /// Programs that are started meanwhile are not urgent themselves. Without the privilege that it takes,
    /// times are only less exact.
    pub fn new() -> Prompt {
        const LOWEST: i32 = 1;
        if !schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, LOWEST) {
            eprintln!("cannot be scheduled promptly (CAP_SYS_NICE): times are less exact");
        }
        Prompt(())
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        schedule(libc::SCHED_OTHER, 0);
    }
}

fn schedule(policy: i32, priority: i32) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: 0 is this thread, and the call reads `parameters` only while it lasts.
    unsafe { libc::sched_setscheduler(0, policy, &parameters) == 0 }
}

fn thread(path: &Path) -> Option<(String, u64)> {
    let name = std::fs::read_to_string(path.join("comm")).ok()?;
    let times = std::fs::read_to_string(path.join("schedstat")).ok()?;
    let ns = times.split_ascii_whitespace().next()?.parse().ok()?;
    Some((name.trim().to_owned(), ns))
}

/// As the monitors call them: ours and Cloud Hypervisor's `vcpu0`, Firecracker's `fc_vcpu 0`, QEMU's
/// `CPU 0/KVM`.
fn is_vcpu(name: &str) -> bool {
    name.contains("vcpu") || name.starts_with("CPU ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_cpus_are_known_by_name() {
        assert!(["vcpu0", "fc_vcpu 0", "CPU 0/KVM"].into_iter().all(is_vcpu));
        assert!(
            !["io", "IO io0", "qemu-system-x86", "iou-wrk-12", "vmm"]
                .into_iter()
                .any(is_vcpu)
        );
    }

    #[test]
    fn what_is_started_meanwhile_is_as_urgent_as_anything() {
        let prompt = Prompt::new();
        let chrt = std::process::Command::new("chrt")
            .args(["-p", "0"])
            .output();
        drop(prompt);
        // Without util-linux there is nobody to ask.
        if let Ok(output) = chrt {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("SCHED_OTHER"), "{text}");
        }
    }

    #[test]
    fn this_process_uses_time() {
        let own = || Used::by(std::process::id()).unwrap();
        let before = own();
        let begun = std::time::Instant::now();
        let mut n = 0u64;
        // On a busy host it may take a while to get that much.
        while own().since(before).others < 10_000_000 {
            n = std::hint::black_box(n + 1);
            assert!(begun.elapsed().as_secs() < 20, "{:?}", own());
        }
    }
}
