//! `cargo xtask`: the developer's one entry point. Builds guests, runs the lab, the tests and the demo.
mod cargo;
mod cloud;
mod command;
mod cpio;
mod demo;
mod download;
mod guest;
mod kernel;
mod lab;
mod lint;
mod modules;
mod package;
mod packages;
mod probe;
mod progress;
mod soak;
mod sources;
mod test;
mod virtiofsd;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    about = "Skerry's developer commands"
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boot a Linux guest on skerry-vmm and show it at work
    Demo(demo::Arguments),
    /// Run the tests: every tier, or one
    Test(test::Arguments),
    /// Run a command in the lab: QEMU's TCG with nested SVM and an IOMMU, this file system inside
    Lab(lab::Arguments),
    /// Build the demo's guest (kernel, initramfs, root disk) under target/guest
    Guest(guest::Arguments),
    /// Make a Debian cloud image under target/cloud, small enough to be booted in the lab
    Cloud(cloud::Arguments),
    /// Run the disk engine's seeded tests for long: a million power cuts, and more
    Soak(soak::Arguments),
    /// Make the Debian package, target/package/skerry.deb
    Package(package::Arguments),
    /// Check formatting, clippy and the documentation's build
    Lint,
    /// What the lab's init starts inside; not for people
    #[command(hide = true)]
    LabInside(lab::inside::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Lab(arguments) => lab::run(&arguments),
        Task::Guest(arguments) => guest::run(&arguments),
        Task::Cloud(arguments) => cloud::run(&arguments),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Package(arguments) => package::run(&arguments),
        Task::Lint => lint::run(),
        Task::LabInside(arguments) => lab::inside::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
