//! Opening what a snapshot's directory has under a name.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file for reading. None if it is something else: a pipe, say, which nobody waits for.
pub(crate) fn regular(path: &Path) -> io::Result<Option<File>> {
    let at_once = OFlags::NONBLOCK.bits() as i32;
    let file = File::options()
        .read(true)
        .custom_flags(at_once)
        .open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}
