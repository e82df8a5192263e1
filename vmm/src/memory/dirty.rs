//! Which pages of RAM were written, whoever wrote them: CPUs, workers, the kernel.
//!
//! The kernel protects pages, notes the first write to each, and lifts the protection by itself
//! (userfaultfd's UFFD_FEATURE_WP_ASYNC and PAGEMAP_SCAN, Linux 6.7). It works on the process's page
//! tables, which KVM follows and every write of a device goes through; so devices know nothing of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use skerry_snapshot::{Range, coalesce};
use thiserror::Error;

use super::Ram;
use super::raw::{self, Look, features};

/// Writes cannot be tracked.
#[derive(Debug, Error)]
#[error(
    "cannot track which memory the guest writes ({what}): that needs Linux 6.7 with userfaultfd; take full snapshots"
)]
pub struct TrackError {
    what: &'static str,
    source: io::Error,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> TrackError {
    move |source| TrackError { what, source }
}

/// Tracks writes to RAM, for as long as it lives.
pub struct DirtyTracker {
    _uffd: OwnedFd,
    pagemap: File,
    ram: Ram,
    /// Written, taken, and given back.
    carried: Vec<Range>,
    /// Of RAM that is mapped from a snapshot: what this process has its own copies of. The kernel does not
    /// tell them from untouched pages any more once these are protected.
    copied: Vec<Range>,
}

impl DirtyTracker {
    /// Everything counts as unwritten from now on. About 10 ms a GiB; afterwards the first write to each
    /// page costs a fault.
    pub fn start(ram: &Ram) -> Result<DirtyTracker, TrackError> {
        use rustix::mm::{UserfaultfdFlags, userfaultfd};
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: whoever writes to the ranges goes on by itself; nobody has to serve this descriptor.
        let uffd = unsafe { userfaultfd(flags) };
        let uffd = uffd.map_err(|e| failed("open a userfaultfd")(e.into()))?;
        let wanted = features::WP_ASYNC | features::WP_UNPOPULATED | features::WP_HUGETLBFS_SHMEM;
        raw::userfault_api(uffd.as_fd(), wanted).map_err(failed("asynchronous protection"))?;
        let mut own = match ram.is_private() {
            true => copied(ram)?,
            false => Vec::new(),
        };
        for (_, piece) in ram.pieces() {
            raw::watch_writes(uffd.as_fd(), piece).map_err(failed("watch guest memory"))?;
            raw::protect(uffd.as_fd(), piece).map_err(failed("protect guest memory"))?;
        }
        let pagemap = File::open("/proc/self/pagemap").map_err(failed("open its page map"))?;
        if ram.is_private() {
            // And what was written between the two: it has just been touched, so it is in memory.
            let fresh = scan(&pagemap, ram, Look::CopiedAndPresent);
            own.extend(fresh.map_err(failed("scan guest memory"))?);
        }
        Ok(DirtyTracker {
            _uffd: uffd,
            pagemap,
            ram: ram.clone(),
            carried: Vec::new(),
            copied: coalesce(own),
        })
    }

    /// What was written since the start or the last take, sorted and apart. It is then unwritten.
    pub fn take(&mut self) -> Result<Vec<Range>, TrackError> {
        let written = scan(&self.pagemap, &self.ram, Look::Written);
        let mut ranges = written.map_err(failed("scan guest memory"))?;
        if self.ram.is_private() {
            self.copied.extend_from_slice(&ranges);
            self.copied = coalesce(std::mem::take(&mut self.copied));
        }
        ranges.append(&mut self.carried);
        Ok(coalesce(ranges))
    }

    /// Of RAM that is mapped from a snapshot: what this process had its own copies of at the last take.
    pub fn copied(&self) -> &[Range] {
        &self.copied
    }

    /// What was taken was not kept after all: it counts as written.
    pub fn give_back(&mut self, ranges: &[Range]) {
        self.carried.extend_from_slice(ranges);
    }
}

/// What this process has its own copies of, of RAM that is mapped from a snapshot.
pub(super) fn copied(ram: &Ram) -> Result<Vec<Range>, TrackError> {
    let pagemap = File::open("/proc/self/pagemap").map_err(failed("open its page map"))?;
    scan(&pagemap, ram, Look::Copied).map_err(failed("scan guest memory"))
}

/// What is mapped of RAM: what the guest and its devices have touched.
pub(super) fn present(ram: &Ram) -> Result<Vec<Range>, TrackError> {
    let pagemap = File::open("/proc/self/pagemap").map_err(failed("open its page map"))?;
    scan(&pagemap, ram, Look::Present).map_err(failed("scan guest memory"))
}

fn scan(pagemap: &File, ram: &Ram, look: Look) -> io::Result<Vec<Range>> {
    let mut ranges = Vec::new();
    for (base, piece) in ram.pieces() {
        let found = raw::scan(pagemap, piece, look)?;
        ranges.extend(found.into_iter().map(|(start, len)| Range {
            start: base + start,
            len,
        }));
    }
    Ok(ranges)
}
