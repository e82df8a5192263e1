//! What this host's kernel offers.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use super::{Finding, good, limited, missing};

/// The oldest Linux that this is tested with.
const OLDEST: (u32, u32) = (6, 1);
/// The first that tells which memory was written (PAGEMAP_SCAN).
const TRACKS: (u32, u32) = (6, 7);

/// Its version.
pub fn version() -> Finding {
    const NAME: &str = "kernel";
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    match parsed(&release) {
        Some(version) if version < OLDEST => {
            missing(NAME, format!("Linux {release}"), "use Linux 6.1 or newer")
        }
        Some(version) if version < TRACKS => limited(
            NAME,
            format!("Linux {release}"),
            "Linux 6.7 or newer copies a snapshot's memory while its guest runs; this one does it in the pause",
        ),
        _ => good(NAME, format!("Linux {release}")),
    }
}

fn parsed(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether workloads can have shares of CPU and memory.
pub fn cgroups() -> Finding {
    const NAME: &str = "cgroups";
    let root = Path::new("/sys/fs/cgroup");
    let (version, place) = match root.join("cgroup.controllers").exists() {
        true => ("version 2", root.to_owned()),
        false => ("version 1", root.join("memory")),
    };
    if !place.join("cgroup.procs").exists() {
        let remedy = "mount them: systemd does, or `mount -t cgroup2 cgroup2 /sys/fs/cgroup`";
        return missing(NAME, "no control groups are mounted", remedy);
    }
    let trial = place.join(format!("skerry-doctor-{}", std::process::id()));
    match fs::create_dir(&trial).and_then(|()| fs::remove_dir(&trial)) {
        Ok(()) => good(NAME, format!("{version}, and they can be made")),
        Err(e) => missing(
            NAME,
            format!("{version}, and none can be made: {e}"),
            "be root; in a container, let it write its control groups",
        ),
    }
}

/// Whether disks and networks can use io_uring, without which VMs do not start.
pub fn io_uring() -> Finding {
    const NAME: &str = "io_uring";
    // As <linux/io_uring.h> has it: zeroes ask for nothing special.
    let mut parameters = [0u64; 15];
    // SAFETY: the structure is 120 bytes long, and the kernel fills it.
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, parameters.as_mut_ptr()) };
    match owned(made) {
        Ok(_) => good(NAME, "it can be used"),
        Err(e) => missing(
            NAME,
            format!("it cannot be used: {e}"),
            "allow it: sysctl kernel.io_uring_disabled=0; in a container, by its seccomp profile",
        ),
    }
}

/// Whether memory can be fetched when it is touched.
pub fn userfaultfd() -> Finding {
    const NAME: &str = "userfaultfd";
    // SAFETY: the call takes a number alone.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    match owned(made) {
        Ok(_) => good(NAME, "it can be used"),
        Err(e) => limited(
            NAME,
            format!("it cannot be used: {e}"),
            "snapshots are restored at once, not as they are touched, and copied in their pause: be root, or \
             sysctl vm.unprivileged_userfaultfd=1",
        ),
    }
}

/// What a call that makes a descriptor gave.
fn owned(made: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(made) {
        // SAFETY: it is new, and ours alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether VMs can have huge pages.
pub fn hugepages() -> Finding {
    const NAME: &str = "hugepages";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
    };
    match (field("HugePages_Total:"), field("HugePages_Free:")) {
        (Some(all @ 1..), Some(free)) => good(NAME, format!("{free} of {all} are free")),
        (Some(_), _) => limited(
            NAME,
            "none are reserved",
            "VMs with `hugepages: true` need some: sysctl vm.nr_hugepages=N",
        ),
        (None, _) => limited(
            NAME,
            "this kernel has none",
            "VMs cannot have `hugepages: true` here: use a kernel with HUGETLBFS",
        ),
    }
}

/// Whether the clock is right.
pub fn clock() -> Finding {
    const NAME: &str = "clock";
    // SAFETY: zeroes are a valid timex, which asks for nothing to be changed.
    let state = unsafe {
        let mut time: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut time)
    };
    match state {
        libc::TIME_ERROR | -1 => limited(
            NAME,
            "it is not synchronised",
            "tokens and certificates end at moments: run chrony or systemd-timesyncd (timedatectl set-ntp true)",
        ),
        _ => good(NAME, "it is synchronised"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(parsed("6.12.5+deb13-amd64"), Some((6, 12)));
        assert_eq!(parsed("6.7"), Some((6, 7)));
        assert_eq!(parsed("weird"), None);
    }
}
