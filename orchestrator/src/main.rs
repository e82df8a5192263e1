//! `skerry`: one command for hosts and sites; images today.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
