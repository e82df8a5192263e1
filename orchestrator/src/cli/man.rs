//! `skerry man`: manual pages, made of the commands' own help.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::failure::{Failure, Outcome, exit_code};

/// Write the manual pages of all commands into a directory
#[derive(Debug, Args)]
pub struct Man {
    /// The directory, which is made
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Man {
    /// Does it, for a command with all that are below it.
    pub fn run(self, command: clap::Command) -> ExitCode {
        exit_code(self.write(command), 1)
    }

    fn write(self, command: clap::Command) -> Outcome {
        let failed = |source| Failure::System {
            what: "write manual pages into",
            path: self.folder.clone(),
            source,
        };
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        clap_mangen::generate_to(command, &self.folder).map_err(failed)?;
        Ok(0)
    }
}
