//! Becoming a process of its own: whoever starts a shim waits until the container runs, and no longer.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::Path;

use rustix::process::{set_child_subreaper, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// How much a shim may say of a failure, in bytes.
const LONGEST: u64 = 16 << 10;
/// What it says when the container runs.
const READY: &[u8] = b"\0ready";

/// Which of the two processes this is.
pub enum Side {
    /// The one that was started, and hears from the other.
    Starter(PipeReader),
    /// The one that stays, and tells.
    Shim(Ready, Placed),
}

/// Hears, once, that the starter has done its part for the shim.
pub struct Placed(PipeReader);

/// Tells the starter, once.
pub struct Ready(PipeWriter);

/// Makes the second process, in a session of its own, which takes in whoever the container leaves.
/// What it says by itself goes to a file. The starter, which has nothing else to do, puts it where it
/// belongs meanwhile.
pub fn split(log: &Path, place: impl FnOnce(i32) -> io::Result<()>) -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    let (placed, mut placing) = io::pipe()?;
    // SAFETY: this process has one thread, so the new one may do whatever this one may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop((reader, placing));
            setsid()?;
            set_child_subreaper(rustix::process::Pid::from_raw(1))?;
            let null = File::options().read(true).write(true).open("/dev/null")?;
            let log = File::create(log)?;
            dup2_stdin(&null)?;
            dup2_stdout(&null)?;
            dup2_stderr(&log)?;
            Ok(Side::Shim(Ready(writer), Placed(placed)))
        }
        shim => {
            // A shim that is gone says so by the other pipe's end.
            let _ = match place(shim) {
                Ok(()) => placing.write_all(READY),
                Err(e) => placing.write_all(e.to_string().as_bytes()),
            };
            Ok(Side::Starter(reader))
        }
    }
}

impl Placed {
    /// Waits for the starter.
    pub fn wait(self) -> io::Result<()> {
        let mut said = Vec::new();
        self.0.take(LONGEST).read_to_end(&mut said)?;
        match said == READY {
            true => Ok(()),
            false => Err(io::Error::other(
                String::from_utf8_lossy(&said).into_owned(),
            )),
        }
    }
}

impl Ready {
    /// The container runs.
    pub fn say(mut self) {
        // A starter that is gone does not need to know.
        let _ = self.0.write_all(READY);
    }

    /// It does not, for this reason.
    pub fn fail(mut self, why: &str) {
        let _ = self.0.write_all(why.as_bytes());
    }
}

/// Waits for what the shim says: nothing, or why the container does not run.
pub fn hear(reader: PipeReader) -> Result<(), String> {
    let mut said = Vec::new();
    let read = reader.take(LONGEST).read_to_end(&mut said);
    match read {
        Ok(_) if said == READY => Ok(()),
        Ok(0) => {
            Err("the process that looks after it ended at once; its shim.log may say why".into())
        }
        Ok(_) => Err(String::from_utf8_lossy(&said).into_owned()),
        Err(e) => Err(e.to_string()),
    }
}
