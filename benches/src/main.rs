//! `skerry-bench`: measures Skerry side by side with its peers.

mod api;
mod bare;
mod boot;
mod chart;
mod check;
mod clones;
mod command;
mod cpu;
mod crowd;
mod disk;
mod engine;
mod exits;
mod images;
mod kept;
mod machine;
mod memory;
mod net;
mod node;
mod peer;
mod report;
mod running;
mod schedule;
mod size;
mod smaps;
mod snapshot;
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
    /// Measure how soon many clones of a guest are there, and what each takes of the host's memory
    Clone(clones::CloneArguments),
    /// Measure small requests from a guest to its disk
    Disk(disk::DiskArguments),
    /// Measure what leaving the guest costs
    Exits(exits::ExitArguments),
    /// Measure frames between a guest and the host
    Net(net::NetArguments),
    /// Measure small requests on disk images without a guest, beside `qemu-img bench`
    Engine(engine::EngineArguments),
    /// Measure how soon an image file is a disk that VMs can lie on, beside `qemu-img convert`
    Images(images::ImageArguments),
    /// Measure what a host takes of the CPUs while somebody looks at `skerry top` or the page
    Looking(node::NodeArguments),
    /// Measure the monitor's memory beyond the guest's, with a disk and a network device
    Memory(memory::MemoryArguments),
    /// Measure a host under `skerry up`: how soon what is declared is there, and what the host's own process takes
    Node(node::NodeArguments),
    /// Measure how densely and how fast workloads are placed, beside simple policies
    Schedule(schedule::ScheduleArguments),
    /// Measure how soon a guest goes on from a snapshot, and how long it stands still for one
    Snapshot(snapshot::SnapshotArguments),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Bare(arguments) => bare::run(&arguments),
        Command::Boot(arguments) => boot::run(&arguments),
        Command::Clone(arguments) => clones::run(&arguments),
        Command::Disk(arguments) => disk::run(&arguments),
        Command::Exits(arguments) => exits::run(&arguments),
        Command::Net(arguments) => net::run(&arguments),
        Command::Engine(arguments) => engine::run(&arguments),
        Command::Images(arguments) => images::run(&arguments),
        Command::Memory(arguments) => memory::run(&arguments),
        Command::Looking(arguments) => node::look(&arguments),
        Command::Node(arguments) => node::run(&arguments),
        Command::Schedule(arguments) => schedule::run(&arguments),
        Command::Snapshot(arguments) => snapshot::run(&arguments),
    }
}
