//! The commands.

mod bytes;
mod date;
mod doctor;
mod failure;
mod image;
mod man;
mod output;
mod progress;
mod remote;
mod shim;
mod simulate;
mod snapshot;
mod top;
mod up;

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
    /// Make, look at, check, copy and change disk images; bring images into the store
    Image(image::Image),
    /// Look at, check, merge, send and receive snapshots of VMs
    Snapshot(snapshot::Snapshot),
    Up(up::Up),
    Apply(remote::Apply),
    Get(remote::Get),
    Describe(remote::Describe),
    Explain(remote::Explain),
    Delete(remote::Delete),
    Run(remote::Run),
    Logs(remote::Logs),
    Exec(remote::Exec),
    Console(remote::Console),
    Events(remote::Events),
    Token(remote::Token),
    Top(top::Top),
    Cordon(remote::Cordon),
    Uncordon(remote::Uncordon),
    Drain(remote::Drain),
    Doctor(doctor::Doctor),
    #[command(hide = true)]
    Man(man::Man),
    /// Print what a shell needs to complete these commands
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    #[command(hide = true)]
    Shim(shim::Shim),
    /// Play a trace of workloads to the scheduler
    Simulate(simulate::Simulate),
}

impl Command {
    /// Whether it is of no use any more once nobody reads what it prints.
    fn only_prints(&self) -> bool {
        matches!(
            self,
            Command::Image(_)
                | Command::Get(_)
                | Command::Describe(_)
                | Command::Explain(_)
                | Command::Logs(_)
                | Command::Events(_)
                | Command::Completion { .. }
                | Command::Simulate(_)
        )
    }
}

/// Ends this process without a word when nobody reads what it prints any more, as other commands do: `skerry get vms | head`.
fn end_with_reader() {
    // SAFETY: the default action of a signal is set, which no handler of ours depends on; no other thread runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
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
    if cli.command.only_prints() {
        end_with_reader();
    }
    match cli.command {
        Command::Image(image) => image.run(),
        Command::Snapshot(snapshot) => snapshot.run(),
        Command::Up(up) => up.run(),
        Command::Apply(apply) => apply.run(),
        Command::Get(get) => get.run(),
        Command::Describe(describe) => describe.run(),
        Command::Explain(explain) => explain.run(),
        Command::Delete(delete) => delete.run(),
        Command::Run(run) => run.run(),
        Command::Logs(logs) => logs.run(),
        Command::Exec(exec) => exec.run(),
        Command::Console(console) => console.run(),
        Command::Events(events) => events.run(),
        Command::Token(token) => token.run(),
        Command::Top(top) => top.run(),
        Command::Cordon(cordon) => cordon.run(),
        Command::Uncordon(uncordon) => uncordon.run(),
        Command::Drain(drain) => drain.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Man(man) => man.run(<Cli as clap::CommandFactory>::command()),
        Command::Completion { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "skerry", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Shim(shim) => shim.run(),
        Command::Simulate(simulate) => simulate.run(),
    }
}
