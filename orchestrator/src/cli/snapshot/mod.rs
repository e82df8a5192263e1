//! `skerry snapshot`: what `skerry-vmm` kept of a VM, looked at without a VM.

mod disks;
mod inspect;
mod merge;
mod place;
mod receive;
mod send;
mod verify;
mod watch;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::failure::{Failure, Outcome, exit_code};
use super::{bytes, date, output, progress};

/// Snapshots of VMs: directories with memory, devices and what the disks' layers are.
#[derive(Debug, Args)]
pub struct Snapshot {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Merge(merge::Merge),
    Receive(receive::Receive),
    Send(send::Send),
}

impl Snapshot {
    /// Does it; the exit code.
    pub fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Inspect(c) => c.run(),
            Command::Verify(c) => c.run(),
            Command::Merge(c) => c.run(),
            Command::Receive(c) => c.run(),
            Command::Send(c) => c.run(),
        };
        exit_code(outcome, 1)
    }
}
