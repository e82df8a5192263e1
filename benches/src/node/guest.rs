//! The guest that all are clones of: it says one thing when it goes on, and then stands still, so that those
//! that are there do not take the time of those that come.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::api::Api;
use crate::command::{DiskSpec, MachineSpec, command_with_api};
use crate::kept::HALT;
use crate::machine::tsc_khz;
use crate::peer::{Peer, PeerArguments};
use crate::running::Running;

/// What it prints when it is ready to be kept.
const TICKING: &[u8] = b"# tick: ready\n.";
/// Until what is typed is in its serial port.
const TYPED: Duration = Duration::from_millis(200);

/// Keeps one in `directory`, which is made. Its disk is a qcow2 image beside that.
pub fn keep(ours: &Peer, peers: &PeerArguments, disk: &Path, directory: &Path) -> Result<()> {
    let folder = tempfile::tempdir().context("temporary directory")?;
    let socket = folder.path().join("api");
    let cmdline = format!("run=tick:disk=0 tsc-khz={}", tsc_khz());
    let machine = MachineSpec {
        kernel: &peers.kernel()?,
        cmdline: &cmdline,
        memory: peers.memory,
        disk: Some(DiskSpec {
            qcow2: true,
            ..DiskSpec::raw(disk)
        }),
        tap: None,
    };
    let mut command = command_with_api(&ours.plain(), &machine, folder.path(), &socket)?;
    let (keyboard, typing) = rustix::pipe::pipe().context("a pipe")?;
    let mut running = Running::start_reading(&mut command, keyboard.into())?;
    running.wait_for(TICKING)?;
    let api = Api::wait(&socket)?;
    // It finds in its serial port what it is to do next, and did not find it before.
    api.put("/api/v1/vm.pause", &json!(null))?;
    File::from(typing).write_all(HALT).context("typing")?;
    std::thread::sleep(TYPED);
    let url = format!("file://{}", directory.display());
    let request = json!({ "destination_url": url, "after": "stop" });
    api.put("/api/v1/vm.snapshot", &request)?;
    Ok(())
}
