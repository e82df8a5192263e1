//! The commands.

mod failure;
mod image;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run microVMs and containers on one host or on many sites.
#[derive(Debug, Parser)]
#[command(name = "skerry", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, look at, check, copy and change disk images
    Image(image::Image),
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let wrong = e.use_stderr();
            // Whether it can be shown does not matter any more.
            let _ = e.print();
            return ExitCode::from(if wrong { image::usage_code() } else { 0 });
        }
    };
    match cli.command {
        Command::Image(image) => image.run(),
    }
}
