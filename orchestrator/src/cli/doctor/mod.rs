//! `skerry doctor`: what this host can and cannot do, and what to do about it.

mod kernel;
mod kvm;
mod network;
mod room;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::failure::{Outcome, exit_code};
use super::output::{Output, on_a_line, print_json};

/// Say what this host can and cannot do, and what to do about it
///
/// The exit code is 1 if something is missing without which VMs or containers do not run, else 0.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Where everything would be kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skerry")]
    state: PathBuf,
    /// The monitor [default: skerry-vmm beside this program]
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Good,
    /// Something that some want is missing.
    Limited,
    /// Something is missing without which workloads do not run.
    Missing,
}

/// Something that was looked at.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    /// What.
    name: &'static str,
    /// How it is.
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do, unless it is good.
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'static str,
}

/// All findings.
#[derive(Debug, Serialize)]
struct Report {
    /// Nothing is missing without which workloads do not run.
    good: bool,
    findings: Vec<Finding>,
}

/// It is as it should be.
fn good(name: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        name,
        verdict: Verdict::Good,
        found: found.into(),
        remedy: "",
    }
}

/// Something that some want is missing.
fn limited(name: &'static str, found: impl Into<String>, remedy: &'static str) -> Finding {
    Finding {
        verdict: Verdict::Limited,
        remedy,
        ..good(name, found)
    }
}

/// Something is missing without which workloads do not run.
fn missing(name: &'static str, found: impl Into<String>, remedy: &'static str) -> Finding {
    Finding {
        verdict: Verdict::Missing,
        remedy,
        ..good(name, found)
    }
}

impl Doctor {
    /// Does it.
    pub fn run(self) -> ExitCode {
        exit_code(self.look(), 2)
    }

    fn look(self) -> Outcome {
        let beside = std::env::current_exe().unwrap_or_default();
        let vmm = self.vmm;
        let vmm = vmm.unwrap_or_else(|| beside.with_file_name("skerry-vmm"));
        let mut findings = vec![kernel::version(), kvm::look(&vmm), kernel::cgroups()];
        findings.extend(network::look());
        findings.extend([
            kernel::io_uring(),
            kernel::userfaultfd(),
            kernel::hugepages(),
            kvm::vfio(),
            kernel::clock(),
        ]);
        findings.extend(room::look(&self.state));
        let report = Report {
            good: findings.iter().all(|one| one.verdict != Verdict::Missing),
            findings,
        };
        match self.output.json() {
            true => print_json(&report)?,
            false => print(&report),
        }
        Ok(u8::from(!report.good))
    }
}

fn print(report: &Report) {
    for one in &report.findings {
        let word = match one.verdict {
            Verdict::Good => "good",
            Verdict::Limited => "limited",
            Verdict::Missing => "MISSING",
        };
        println!("{word:<8} {:<12} {}", one.name, on_a_line(&one.found));
        if !one.remedy.is_empty() {
            println!("{:<21} → {}", "", one.remedy);
        }
    }
    let how = match report.good {
        true => "This host can run VMs and containers.",
        false => "This host cannot run all kinds of workloads: see what is MISSING.",
    };
    println!("{how}");
}
