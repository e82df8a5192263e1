//! A host that can be switched off.

use std::ffi::OsStr;
use std::io::{Error, Result};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long it may take until it is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// It collects whatever ends, as process 1 has to.
const INIT: &str = "ip link set lo up; while :; do sleep 1000 & wait $!; done";

/// What a host is to the programs on it: processes, mounts and a network of its own, which all end at once when it
/// is switched off. Files stay.
pub struct Machine {
    unshare: Child,
}

impl Machine {
    /// One with nothing but a loopback interface.
    ///
    /// # Errors
    /// If it cannot be made: it needs root, util-linux and iproute2.
    pub fn switched_on() -> Result<Machine> {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--fork", "--kill-child", "--pid", "--mount-proc", "--mount"])
            .args(["--net", "sh", "-c", INIT])
            .stdin(Stdio::null());
        let machine = Machine {
            unshare: unshare.spawn()?,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut addresses = machine.enter("ip");
            let shown = addresses.args(["address", "show", "lo"]).output()?;
            if String::from_utf8_lossy(&shown.stdout).contains("127.0.0.1") {
                return Ok(machine);
            }
            if Instant::now() > deadline {
                let why = String::from_utf8_lossy(&shown.stderr);
                return Err(Error::other(format!(
                    "the machine has no loopback interface: {why}"
                )));
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// A command on it.
    pub fn enter(&self, program: impl AsRef<OsStr>) -> Command {
        let unshare = self.unshare.id();
        let children = format!("/proc/{unshare}/task/{unshare}/children");
        let init = std::fs::read_to_string(children).unwrap_or_default();
        let mut enter = Command::new("nsenter");
        enter
            .args(["--target", init.trim(), "--pid", "--mount", "--net", "--"])
            .arg(program.as_ref());
        enter
    }
}

impl Drop for Machine {
    /// Switches it off.
    fn drop(&mut self) {
        // Its process 1 dies with it, and everything with that.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
