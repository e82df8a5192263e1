//! The command `skerry`: all of it is in the library, which tests and benchmarks use too.

use std::process::ExitCode;

fn main() -> ExitCode {
    skerry::cli::main()
}
