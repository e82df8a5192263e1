//! `cargo xtask test`: every tier, each with the number of cases that it really ran.
pub mod count;
pub mod tiers;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use count::Count;

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
    count: Count,
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
    let mut count = Count::default();
    let outcome = match tier {
        Tier::Unit => tiers::unit(filter, &mut count),
        Tier::Kvm => tiers::kvm(filter, &mut count),
        Tier::Lab => tiers::lab(filter, arguments.in_lab, &mut count),
    };
    let error = outcome.and_then(|()| something_ran(count, filter)).err();
    eprintln!("=== tier {}: {} cases ===", tier.name(), count.cases());
    if let Some(error) = &error {
        eprintln!("xtask: tier {}: {error:#}", tier.name());
    }
    Row {
        tier,
        count,
        seconds: started.elapsed().as_secs_f64(),
        error,
    }
}

/// A tier never passes by skipping, unless the person at the keyboard asked for tests of another one.
fn something_ran(count: Count, filter: Option<&str>) -> Result<()> {
    if count.cases() == 0 && filter.is_none() {
        bail!("not one test ran: a tier without tests proves nothing");
    }
    Ok(())
}

/// Prints the table and, as the last line, the sum. A tier that broke down counts as one failure beside those of its cases.
fn summary(rows: &[Row]) -> ExitCode {
    println!(
        "\n{:<6}{:>8}{:>8}{:>8}{:>9}{:>9}",
        "tier", "cases", "passed", "failed", "ignored", "seconds"
    );
    let mut total = Count::default();
    for row in rows {
        let Row {
            tier,
            count,
            seconds,
            error,
        } = row;
        let broken = if error.is_some() && count.failed == 0 {
            "  did not finish"
        } else {
            ""
        };
        let numbers = format!(
            "{:>8}{:>8}{:>8}{:>9}",
            count.cases(),
            count.passed,
            count.failed,
            count.ignored
        );
        println!("{:<6}{numbers}{seconds:>9.1}{broken}", tier.name());
        total += *count;
        total.failed += u64::from(error.is_some() && count.failed == 0);
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
