//! What KVM counts of a CPU: how often the guest left it, by kind. It is read from KVM's binary statistics, so
//! counting costs the guest nothing, and nobody has to stand still for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use kvm_ioctls::VcpuFd;

// From <linux/kvm.h>.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Bytes of the header, and of a description before its name.
const HEADER: usize = 24;
const DESCRIPTION: usize = 16;
/// More descriptions, or longer names, than any kernel has.
const MOST: u32 = 1024;
/// Which statistics are numbers that only grow, of one value each.
const TYPE: u32 = 0xf;
const UNIT: u32 = 0xf0;

/// A CPU's statistics.
pub struct ExitStats {
    file: File,
    /// Names, and where their numbers are. They do not change.
    places: OnceLock<Vec<(String, u64)>>,
}

impl ExitStats {
    /// Those of a CPU; none where KVM has none (before Linux 5.14). KVM API §4.136.
    pub fn of(cpu: &VcpuFd) -> Option<ExitStats> {
        // SAFETY: the call takes no argument, and its answer is a new descriptor or -1.
        let fd = unsafe { libc::ioctl(cpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        (fd >= 0).then(|| ExitStats {
            // SAFETY: it is new, and ours alone.
            file: unsafe { File::from_raw_fd(fd) },
            places: OnceLock::new(),
        })
    }

    /// The numbers now, by name: `exits` is all of them, `io_exits`, `mmio_exits`, `halt_exits` … are kinds.
    pub fn read(&self) -> io::Result<BTreeMap<String, u64>> {
        let places = match self.places.get() {
            Some(places) => places,
            None => {
                let found = places(&self.file)?;
                self.places.get_or_init(|| found)
            }
        };
        let number = |(name, at): &(String, u64)| {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, *at)?;
            Ok((name.clone(), u64::from_ne_bytes(bytes)))
        };
        places.iter().map(number).collect()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_ne_bytes(found.unwrap_or_default())
}

/// Where the numbers of exits are.
fn places(file: &File) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let [name_size, count, _, first, data] = [4, 8, 12, 16, 20].map(|at| word(&header, at));
    if name_size > MOST || count > MOST {
        return Err(io::Error::other("KVM's statistics have an unknown form"));
    }
    let mut all = vec![0; (DESCRIPTION + name_size as usize) * count as usize];
    file.read_exact_at(&mut all, first.into())?;
    let found = all.chunks_exact(DESCRIPTION + name_size as usize);
    let found = found.filter_map(|one| {
        let (flags, at) = (word(one, 0), word(one, 8));
        let single = word(one, 4) >> 16 == 1;
        let name = one.get(DESCRIPTION..)?.split(|byte| *byte == 0).next()?;
        let name = String::from_utf8_lossy(name).into_owned();
        let counts = single && flags & (TYPE | UNIT) == 0 && name.ends_with("exits");
        counts.then(|| (name, u64::from(data) + u64::from(at)))
    });
    Ok(found.collect())
}
