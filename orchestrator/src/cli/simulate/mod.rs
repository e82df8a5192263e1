//! `skerry simulate`: a trace of workloads played to the scheduler.

mod generate;
mod random;
mod replay;
mod report;
mod save;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::failure::{Outcome, exit_code};
use super::output::Output;
use super::{bytes, output};
use crate::schedule::{InventoryError, Packing};
use replay::Shape;
use report::Report;
use trace::{Trace, TraceError};

/// Why a simulation cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The trace cannot be used.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The hosts cannot be.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
}

/// Play arrivals and departures of workloads to the scheduler, and say how densely and how fast it places
/// them, beside first fit, best fit and worst fit
#[derive(Debug, Args)]
pub struct Simulate {
    /// The table `vm` of a trace of Azure's packing schema, as CSV [default: one by chance, from --seed]
    #[arg(value_name = "TRACE.csv", requires = "types")]
    trace: Option<PathBuf>,

    /// The table `vmType` that belongs to it, as CSV
    #[arg(long, value_name = "TYPES.csv", requires = "trace")]
    types: Option<PathBuf>,

    /// The machineId whose fractions are read [default: the one that most types run on]
    #[arg(long, value_name = "ID", requires = "trace")]
    machine: Option<u64>,

    /// Hosts
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    hosts: u32,

    /// What each host has
    #[arg(long, value_name = "SHAPE", default_value = "cpus=64,memory=384G,disk=8T,nodes=2", value_parser = shape)]
    host_shape: Shape,

    /// How a host is chosen
    #[arg(long, value_name = "POLICY", default_value = "all")]
    policy: Choice,

    /// What chance begins with
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// Also write the trace into this directory, as vm.csv and types.csv
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "trace")]
    save: Option<PathBuf>,

    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Ours
    Skerry,
    /// The first host that will do
    FirstFit,
    /// The host with least left
    BestFit,
    /// The host with most left
    WorstFit,
    /// Each of these
    All,
}

impl Choice {
    fn policies(self) -> Vec<(&'static str, Packing)> {
        let all = [
            (Choice::Skerry, "skerry", Packing::Skerry),
            (Choice::FirstFit, "first-fit", Packing::FirstFit),
            (Choice::BestFit, "best-fit", Packing::BestFit),
            (Choice::WorstFit, "worst-fit", Packing::WorstFit),
        ];
        let wanted = all
            .into_iter()
            .filter(|one| self == Choice::All || self == one.0);
        wanted.map(|(_, name, packing)| (name, packing)).collect()
    }
}

impl Simulate {
    /// Does it; the exit code.
    pub fn run(self) -> ExitCode {
        exit_code(self.simulate(), 1)
    }

    fn simulate(&self) -> Outcome {
        let report = self.report()?;
        match self.output.json() {
            true => output::print_json(&report)?,
            false => print!("{report}"),
        }
        Ok(0)
    }

    fn report(&self) -> Result<Report, SimulateError> {
        let hosts = self.hosts as usize;
        let trace = match (&self.trace, &self.types) {
            (Some(vms), Some(types)) => Trace::read(vms, types, self.machine)?,
            _ => generate::generate(hosts, self.seed),
        };
        if let Some(directory) = &self.save {
            save::save(&trace, directory)?;
        }
        let mut outcomes = Vec::new();
        for (name, packing) in self.policy.policies() {
            let outcome = replay::replay(&trace, hosts, &self.host_shape, packing)?;
            outcomes.push((name, outcome));
        }
        Ok(Report::new(&trace, hosts, &self.host_shape, &outcomes))
    }
}

/// `cpus=64,memory=384G,disk=8T,nodes=2`.
fn shape(text: &str) -> Result<Shape, String> {
    let mut shape = Shape {
        cpus: 64,
        memory: 384 << 30,
        disk: 8 << 40,
        nodes: 2,
    };
    let number = |key: &str, value: &str, most: u32| {
        let number = value.parse().ok().filter(|n| (1..=most).contains(n));
        number.ok_or_else(|| format!("{key}={value}: it must be a whole number from 1 to {most}"))
    };
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| {
            format!("{part:?} is no setting: give cpus=, memory=, disk= or nodes=")
        })?;
        match key {
            "cpus" => shape.cpus = number(key, value, 4096)?,
            "nodes" => shape.nodes = number(key, value, 64)?,
            "memory" | "disk" => {
                let bytes = bytes::parse(value)?;
                if bytes > 1 << 50 {
                    return Err(format!("{key}={value}: it may be 1P at most"));
                }
                match key {
                    "memory" => shape.memory = bytes,
                    _ => shape.disk = bytes,
                }
            }
            _ => {
                return Err(format!(
                    "{key:?} is no setting: give cpus, memory, disk or nodes"
                ));
            }
        }
    }
    if shape.nodes > shape.cpus {
        return Err(format!(
            "{} nodes of {} CPUs: each needs one",
            shape.nodes, shape.cpus
        ));
    }
    Ok(shape)
}

#[cfg(test)]
#[path = "simulate_test.rs"]
mod tests;
