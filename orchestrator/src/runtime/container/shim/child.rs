//! A child of the shim that does a piece of work in this very program, without loading it anew.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::stdio::{dup2_stderr, dup2_stdout};

/// Does `work` in a new process with these as its standard output and error. If it fails, what it says
/// goes to a file, and the process' exit code is 1. This process must have one thread.
pub fn run(
    output: OwnedFd,
    error: OwnedFd,
    log: &Path,
    work: impl FnOnce() -> Result<(), String>,
) -> io::Result<i32> {
    // SAFETY: this process has one thread, so the new one may do whatever this one may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let done = match take(output, error) {
                Ok(()) => work(),
                Err(e) => Err(e.to_string()),
            };
            let code = match done {
                Ok(()) => 0,
                Err(why) => {
                    // Without a log the exit code has to do.
                    let _ = fs::write(log, why.replace('\n', " "));
                    1
                }
            };
            // SAFETY: this ends the process at once; nothing of the shim's is to be dropped in it.
            unsafe { libc::_exit(code) }
        }
        child => Ok(child),
    }
}

/// Has the streams, and nothing of the shim's: its lock and its pipes end with it alone.
fn take(output: OwnedFd, error: OwnedFd) -> io::Result<()> {
    dup2_stdout(&output)?;
    dup2_stderr(&error)?;
    std::mem::forget((output, error));
    // SAFETY: no value that owns one of these descriptors is used or dropped in this process any more.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
