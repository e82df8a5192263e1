//! What came of a simulation: a table for people, and the same for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::replay::{Outcome, Shape};
use super::trace::Trace;
use crate::cli::bytes;

/// What came of a simulation.
#[derive(Debug, Serialize)]
pub struct Report {
    hosts: usize,
    shape: String,
    arrivals: usize,
    types: usize,
    days: f64,
    skipped: usize,
    policies: Vec<Line>,
}

/// What came of it with one policy.
#[derive(Debug, Serialize)]
struct Line {
    policy: &'static str,
    placed: usize,
    rejected: usize,
    /// At the first rejection.
    first_rejection: First,
    /// What those that did not asked for, as a share of all that was asked for.
    rejected_share: f64,
    /// What was unplaceable, on average over the trace.
    unplaceable: f64,
    /// The share of hosts on which nothing ran, on average over the trace.
    idle: f64,
    /// The mean density from its first rejection to the end.
    full_density: f64,
    /// The share of pinning workloads that got CPUs or memory of several NUMA nodes.
    split: f64,
    /// By the clock.
    placements_per_second: f64,
    /// In a second of CPU time, which others on the machine do not lengthen.
    placements_per_cpu_second: f64,
    latency_us: Latency,
}

#[derive(Debug, Serialize)]
struct First {
    /// Whether there was one; otherwise this is the end of the trace.
    happened: bool,
    arrivals: usize,
    day: f64,
    density: f64,
    cpu: f64,
    memory: f64,
    unplaceable: f64,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Report {
    /// From what each policy came to.
    pub fn new(
        trace: &Trace,
        hosts: usize,
        shape: &Shape,
        outcomes: &[(&'static str, Outcome)],
    ) -> Self {
        let (begin, end) = match trace.arrivals.as_slice() {
            [first, .., last] => (first.start, last.start),
            _ => (0.0, 0.0),
        };
        Report {
            hosts,
            shape: format!(
                "{} CPUs, {} of memory, {} of disk, {} NUMA nodes",
                shape.cpus,
                bytes::show(shape.memory),
                bytes::show(shape.disk),
                shape.nodes
            ),
            arrivals: trace.arrivals.len(),
            types: trace.types.len(),
            days: end - begin,
            skipped: trace.skipped,
            policies: outcomes
                .iter()
                .map(|(name, outcome)| Line::new(name, outcome))
                .collect(),
        }
    }
}

impl Line {
    fn new(policy: &'static str, outcome: &Outcome) -> Self {
        let first = &outcome.first;
        let latency = |share: f64| {
            let last = outcome.latencies.len().saturating_sub(1);
            let at = (share * last as f64).round() as usize;
            f64::from(outcome.latencies.get(at).copied().unwrap_or(0)) / 1e3
        };
        let rate = |time: Duration| {
            let seconds = time.max(Duration::from_nanos(1)).as_secs_f64();
            outcome.placed as f64 / seconds
        };
        Line {
            policy,
            placed: outcome.placed,
            rejected: outcome.rejected,
            rejected_share: outcome.rejected_share,
            first_rejection: First {
                happened: outcome.any_rejected,
                arrivals: first.arrivals,
                day: first.day,
                density: first.density(),
                cpu: first.cpu,
                memory: first.memory,
                unplaceable: first.unplaceable,
            },
            unplaceable: outcome.unplaceable(),
            idle: outcome.idle(),
            full_density: outcome.full_density,
            split: outcome.split,
            placements_per_second: rate(outcome.busy),
            placements_per_cpu_second: rate(outcome.work),
            latency_us: Latency {
                p50: latency(0.5),
                p99: latency(0.99),
                max: latency(1.0),
            },
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} hosts, each {}", self.hosts, self.shape)?;
        writeln!(
            f,
            "{} arrivals of {} types in {:.1} days{}",
            self.arrivals,
            self.types,
            self.days,
            match self.skipped {
                0 => String::new(),
                skipped => format!("; {skipped} do not run on this machine"),
            }
        )?;
        writeln!(
            f,
            "\n{:<10} {:>31} {:>31}\n{:<10} {:>9} {:>9} {:>11} {:>11} {:>8} {:>10} {:>12} {:>12} {:>7} {:>7}",
            "",
            "_______ at first rejection ____",
            "____ over the whole trace _____",
            "",
            "when",
            "density",
            "unplaceable",
            "unplaceable",
            "rejected",
            "split",
            "placements/s",
            "by CPU time",
            "p50 us",
            "p99 us"
        )?;
        for line in &self.policies {
            let first = &line.first_rejection;
            let percent = |share: f64| format!("{:.2} %", 100.0 * share);
            let when = match first.happened {
                true => format!("day {:.2}", first.day),
                false => "never".into(),
            };
            writeln!(
                f,
                "{:<10} {when:>9} {:>9} {:>11} {:>11} {:>8} {:>10} {:>12.0} {:>12.0} {:>7.1} {:>7.1}",
                line.policy,
                percent(first.density),
                percent(first.unplaceable),
                percent(line.unplaceable),
                percent(line.rejected_share),
                percent(line.split),
                line.placements_per_second,
                line.placements_per_cpu_second,
                line.latency_us.p50,
                line.latency_us.p99,
            )?;
        }
        Ok(())
    }
}
