//! `skerry-bench`: measures Skerry side by side with its peers.

mod bare;
mod boot;
mod chart;
mod check;
mod command;
mod cpu;
mod disk;
mod engine;
mod exits;
mod machine;
mod memory;
mod net;
mod peer;
mod report;
mod running;
mod size;
mod stats;
mod tap;
mod traffic;

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
    /// Measure the time from process start to the payload's first byte on the serial port
    Boot(boot::BootArguments),
    /// Measure small requests from a guest to its disk
    Disk(disk::DiskArguments),
    /// Measure what leaving the guest costs
    Exits(exits::ExitArguments),
    /// Measure frames between a guest and the host
    Net(net::NetArguments),
    /// Measure small requests on disk images without a guest, beside `qemu-img bench`
    Engine(engine::EngineArguments),
    /// Measure the monitor's memory beyond the guest's, with a disk and a network device
    Memory(memory::MemoryArguments),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Bare(arguments) => bare::run(&arguments),
        Command::Boot(arguments) => boot::run(&arguments),
        Command::Disk(arguments) => disk::run(&arguments),
        Command::Exits(arguments) => exits::run(&arguments),
        Command::Net(arguments) => net::run(&arguments),
        Command::Engine(arguments) => engine::run(&arguments),
        Command::Memory(arguments) => memory::run(&arguments),
    }
}
