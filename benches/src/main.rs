//! `skerry-bench`: measures Skerry side by side with its peers.

mod bare;
mod size;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Measures Skerry side by side with its peers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the payload by a bare KVM program without devices
    Bare(bare::BareArguments),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Bare(arguments) => bare::run(&arguments),
    }
}
