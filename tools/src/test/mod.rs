//! `cargo xtask test`: every tier, each with the number of cases that it really ran.
//!
//! Many cases run dozens of processes at once under limits of time. One that fails is run once more, by itself; the summary
//! names each that needed that, with what it said at first.
pub mod count;
pub mod tiers;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use count::{Count, Failure, Report};
use tiers::Which;

/// With more failures than this, it is not chance.
const MOST_AGAIN: usize = 3;

/// Where tests run (ARCHITECTURE.md, "Proof").
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Anywhere: unit, property and documentation tests of every crate
    Unit,
    /// On this host's /dev/kvm: the native payload drives the devices
    Kvm,
    /// On a KVM that can run Linux (this host's, or else the lab's): unmodified Linux guests
    Lab,
}

impl Tier {
    const ALL: [Self; 3] = [Self::Unit, Self::Kvm, Self::Lab];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Kvm => "kvm",
            Self::Lab => "lab",
        }
    }
}

/// Which tests to run.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Only this tier (repeatable); all of them without
    #[arg(long = "tier", value_enum, value_name = "TIER")]
    tiers: Vec<Tier>,
    /// Run the lab tier in the lab even where this host's KVM could run it
    #[arg(long)]
    in_lab: bool,
    /// Only tests with this in their name
    filter: Option<String>,
}

struct Row {
    tier: Tier,
    report: Report,
    /// Those that passed at the second try, with what they said at the first.
    flaky: Vec<Failure>,
    seconds: f64,
    error: Option<anyhow::Error>,
}

/// Runs the tiers one after the other, all of them even when one fails, and sums up.
///
/// # Errors
/// Only for what is wrong about the request itself: failures of tests are in the exit code.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let chosen = if arguments.tiers.is_empty() {
        Tier::ALL.to_vec()
    } else {
        arguments.tiers.clone()
    };
    let rows: Vec<Row> = chosen
        .into_iter()
        .map(|tier| run_tier(tier, arguments))
        .collect();
    Ok(summary(&rows))
}

fn run_tier(tier: Tier, arguments: &Arguments) -> Row {
    eprintln!("\n=== tier {} ===", tier.name());
    let started = Instant::now();
    let filter = arguments.filter.as_deref();
    let mut report = Report::default();
    let mut outcome = run_which(tier, Which::Like(filter), arguments, &mut report);
    let flaky = try_again(tier, arguments, &mut report);
    if !flaky.is_empty() {
        outcome = Ok(());
    }
    let count = report.count;
    let error = outcome.and_then(|()| something_ran(count, filter)).err();
    eprintln!("=== tier {}: {} cases ===", tier.name(), count.cases());
    if let Some(error) = &error {
        eprintln!("xtask: tier {}: {error:#}", tier.name());
    }
    Row {
        tier,
        report,
        flaky,
        seconds: started.elapsed().as_secs_f64(),
        error,
    }
}

fn run_which(
    tier: Tier,
    which: Which<'_>,
    arguments: &Arguments,
    report: &mut Report,
) -> Result<()> {
    match tier {
        Tier::Unit => tiers::unit(which, report),
        Tier::Kvm => tiers::kvm(which, report),
        Tier::Lab => tiers::lab(which, arguments.in_lab, report),
    }
}

/// Runs the few that failed once more. If all of them pass, the report says so, and they are returned; if not, all stays as it is.
fn try_again(tier: Tier, arguments: &Arguments, report: &mut Report) -> Vec<Failure> {
    let failures = &report.failures;
    let by_name = u64::try_from(failures.len()).is_ok_and(|n| n == report.count.failed);
    if failures.is_empty() || failures.len() > MOST_AGAIN || !by_name {
        return Vec::new();
    }
    let names: Vec<String> = failures.iter().map(|f| f.name.clone()).collect();
    eprintln!("    Once more, by themselves: {}", names.join(", "));
    let mut second = Report::default();
    let done = run_which(tier, Which::Exactly(&names), arguments, &mut second);
    if done.is_err() || second.count.failed > 0 || second.count.passed < report.count.failed {
        return Vec::new();
    }
    report.count.passed += report.count.failed;
    report.count.failed = 0;
    std::mem::take(&mut report.failures)
}

/// A tier never passes by skipping, unless the person at the keyboard asked for tests of another one.
fn something_ran(count: Count, filter: Option<&str>) -> Result<()> {
    if count.cases() == 0 && filter.is_none() {
        bail!("not one test ran: a tier without tests proves nothing");
    }
    Ok(())
}

/// Prints what failures said, the table and, as the last line, the sum. A tier that broke down counts as one failure beside
/// those of its cases.
fn summary(rows: &[Row]) -> ExitCode {
    for row in rows {
        for failure in &row.report.failures {
            println!("\n--- {} FAILED:\n{}", failure.name, failure.said.trim());
        }
        for failure in &row.flaky {
            let said = failure.said.trim();
            println!(
                "\n--- {} passed at the second try; at the first:\n{said}",
                failure.name
            );
        }
    }
    println!(
        "\n{:<6}{:>8}{:>8}{:>8}{:>9}{:>8}{:>9}",
        "tier", "cases", "passed", "failed", "ignored", "flaky", "seconds"
    );
    let mut total = Count::default();
    for row in rows {
        let count = row.report.count;
        let broken = if row.error.is_some() && count.failed == 0 {
            "  did not finish"
        } else {
            ""
        };
        let numbers = format!(
            "{:>8}{:>8}{:>8}{:>9}{:>8}",
            count.cases(),
            count.passed,
            count.failed,
            count.ignored,
            row.flaky.len()
        );
        println!(
            "{:<6}{numbers}{:>9.1}{broken}",
            row.tier.name(),
            row.seconds
        );
        total += count;
        total.failed += u64::from(row.error.is_some() && count.failed == 0);
    }
    if total.cases() == 0 {
        println!("No test has such a name.");
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_without_cases_fails() {
        assert!(something_ran(Count::default(), None).is_err());
        assert!(something_ran(Count::default(), Some("name")).is_ok());
    }
}
