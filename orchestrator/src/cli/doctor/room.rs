//! Whether there is space for what is kept, and whether copies of it are cheap.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{ioctl_ficlone, statvfs};

use super::{Finding, good, limited, missing};

/// With less space, in bytes, a host is soon full.
const LITTLE: u64 = 10 << 30;
/// With less nothing starts.
const NONE: u64 = 64 << 20;

/// Looks at the file system that `state` is on, or would be.
pub fn look(state: &Path) -> Vec<Finding> {
    let mut place = state;
    while !place.exists() {
        match place.parent() {
            Some(parent) => place = parent,
            None => break,
        }
    }
    vec![disk(place), copies(place)]
}

fn disk(place: &Path) -> Finding {
    const NAME: &str = "disk";
    let shown = place.display();
    let free = match statvfs(place) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(e) => {
            let remedy = "name a directory that can be used: --state";
            return missing(NAME, format!("{shown} cannot be looked at: {e}"), remedy);
        }
    };
    let found = format!(
        "{:.1} GiB free at {shown}",
        free as f64 / (1u64 << 30) as f64
    );
    match free {
        0..NONE => missing(
            NAME,
            found,
            "make space, or name another directory: --state",
        ),
        NONE..LITTLE => limited(NAME, found, "disks of VMs and images will need more"),
        _ => good(NAME, found),
    }
}

fn copies(place: &Path) -> Finding {
    const NAME: &str = "reflinks";
    match try_copy(place) {
        Ok(()) => good(NAME, "files are copied by sharing their blocks"),
        Err(e) => limited(
            NAME,
            format!("files cannot share blocks: {e}"),
            "copies of images take time and space: XFS and btrfs do without",
        ),
    }
}

fn try_copy(place: &Path) -> io::Result<()> {
    let names = ["from", "to"]
        .map(|end| place.join(format!(".skerry-doctor-{}-{end}", std::process::id())));
    let tried = || {
        let mut from = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&names[0])?;
        from.write_all(&[1; 4096])?;
        let to = File::create_new(&names[1])?;
        Ok(ioctl_ficlone(&to, &from)?)
    };
    let tried = tried();
    for name in &names {
        // It may not have been made.
        let _ = fs::remove_file(name);
    }
    tried
}
