//! A VM's cgroup: its monitor's share of the host's CPUs, and the most memory that it may have. It also keeps
//! the monitor out of the agent's own cgroup, with which a service's end would end it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::model::{MicroVmSpec, Tier};
use crate::runtime::container::Cgroup;

/// Those of all VMs are in this one, from the root of each hierarchy.
const PARENT: &str = "skerry.vms";
/// How long the kernel may take to let go of one.
const REMOVED: Duration = Duration::from_secs(10);
/// What a monitor may have beside its guest's memory, generously: 3 MiB were seen beside 128 MiB and 13 MiB beside
/// 4 GiB, as the kernel's tables grow with the guest. The page cache of its disks is counted, too; it goes when it
/// has to.
const BESIDE: u64 = 64 << 20;
const PAGE_TABLES: u64 = 64;
/// What the server of a share may have: some 10 MiB were seen.
const SHARED: u64 = 64 << 20;

/// What a VM may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its part of CPUs that others want, too: 100 is usual for a CPU.
    weight: u64,
    /// Bytes of memory.
    memory: u64,
}

impl Share {
    /// That of a VM.
    pub fn of(spec: &MicroVmSpec) -> Share {
        let each = match spec.tier {
            Tier::Dedicated => 1000,
            Tier::Burst => 100,
            Tier::Dense => 25,
        };
        // Huge pages are counted elsewhere.
        let guest = match spec.hugepages {
            true => 0,
            false => spec.memory.whole(),
        };
        Share {
            weight: (each * u64::from(spec.cpus)).clamp(1, 10_000),
            memory: guest + guest / PAGE_TABLES + BESIDE + SHARED * spec.shares.len() as u64,
        }
    }

    /// That of all VMs: they weigh as much as the host's CPUs, and not as one process beside them.
    fn of_all() -> Share {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Share {
            weight: (100 * cpus).min(10_000),
            memory: u64::MAX,
        }
    }

    /// Its files in a cgroup of version 2 (`unified`) or 1, which counts in 1024ths of what is usual.
    fn limits(self, unified: bool) -> [(&'static str, u64); 2] {
        match unified {
            true => [("cpu.weight", self.weight), ("memory.max", self.memory)],
            false => [
                ("cpu.shares", (self.weight * 1024 / 100).max(2)),
                ("memory.limit_in_bytes", self.memory),
            ],
        }
    }
}

/// Moves a VM's monitor into its cgroup, which is made.
pub fn enter(uid: &str, process: i32, share: Share) -> io::Result<()> {
    let cgroup = cgroup(uid)?;
    cgroup.enter(process)?;
    let mut missing = Vec::new();
    for root in cgroup.roots() {
        let (parent, unified) = (root.join(PARENT), is_unified(root));
        let (directory, limits) = (parent.join(uid), share.limits(unified));
        // A hierarchy of version 1 has one controller, and its root has the controller's files.
        if !unified && !limits.iter().any(|(file, _)| root.join(file).exists()) {
            continue;
        }
        fs::create_dir_all(&directory)?;
        if unified {
            // Who may not hand controllers down has them handed down by somebody else, or goes without.
            for (above, one) in [root, &parent]
                .into_iter()
                .flat_map(|above| ["+cpu", "+memory"].map(|one| (above, one)))
            {
                let _ = fs::write(above.join("cgroup.subtree_control"), one);
            }
        }
        let (file, value) = Share::of_all().limits(unified)[0];
        set(&parent, file, value)?;
        for (file, value) in limits {
            set(&directory, file, value)?;
            if unified && !directory.join(file).exists() {
                missing.push(file);
            }
        }
        fs::write(directory.join("cgroup.procs"), process.to_string())?;
    }
    // A host with both versions has its controllers in the first.
    match missing.is_empty() || cgroup.roots().iter().any(|root| !is_unified(root)) {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "their controllers are not handed down: {}",
            missing.join(", ")
        ))),
    }
}

/// Sets a limit, where there is one of this kind.
fn set(directory: &Path, file: &str, value: u64) -> io::Result<()> {
    let path = directory.join(file);
    match path.exists() {
        true => fs::write(path, value.to_string()),
        false => Ok(()),
    }
}

fn is_unified(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// Removes what there is of it, when its monitor has ended.
pub fn remove(uid: &str) -> io::Result<()> {
    cgroup(uid)?.remove(REMOVED)
}

fn cgroup(uid: &str) -> io::Result<Cgroup> {
    Cgroup::new(&format!("{PARENT}/{uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn share(more: serde_json::Value) -> Share {
        let mut spec = json!({"memory": "1Gi", "boot": {"kernel": "/k"}});
        let fields = more.as_object().expect("fields").clone();
        spec.as_object_mut().expect("fields").extend(fields);
        Share::of(&serde_json::from_value(spec).expect("a spec"))
    }

    #[test]
    fn more_cpus_and_better_tiers_weigh_more() {
        assert_eq!(share(json!({})).weight, 100);
        assert_eq!(share(json!({"cpus": 4})).weight, 400);
        assert_eq!(share(json!({"tier": "dense"})).limits(false)[0].1, 256);
        // Neither version takes any number.
        assert_eq!(
            share(json!({"cpus": 254, "tier": "dedicated"})).weight,
            10_000
        );
    }

    #[test]
    fn memory_is_the_guests_and_something_for_its_monitor() {
        assert_eq!(share(json!({})).memory, (1024 + 16 + 64) << 20);
        // Huge pages are not counted here.
        assert_eq!(share(json!({"hugepages": true})).memory, 64 << 20);
        let shares = json!({"shares": [{"tag": "a", "source": "/a"}]});
        assert_eq!(share(shares).memory, (1024 + 16 + 64 + 64) << 20);
    }
}
