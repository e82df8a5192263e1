//! A trace by chance: what a site of edge hosts may see in a week, repeated by its seed.
//!
//! Most workloads are small, and nearly half are gone within the hour; most of what is taken at any time is
//! taken by those that stay. Dedicated ones want CPUs, shared ones memory; together they want both about as
//! the machine has them, so that neither runs out alone. The cluster is 60 % full at the beginning and is
//! asked for a seventh more than it has at the end.

use super::random::Random;
use super::trace::{Arrival, Trace, Type};
use crate::schedule::Tier;

/// CPUs of the machine whose fractions the types are.
const CPUS: f64 = 64.0;
/// GiB of its memory.
const MEMORY: f64 = 384.0;
/// GiB of its disk.
const DISK: f64 = 8192.0;
/// Days that the trace is long.
const DAYS: f64 = 7.0;
/// How full the cluster is at the beginning.
const BEGIN: f64 = 0.6;
/// What would be taken at the end if there were room.
const END: f64 = 1.15;

/// How often a tier is asked for, the CPUs and the GiB a CPU that it is asked for with, and of how many
/// virtual CPUs a real one is shared.
struct Kind {
    tier: Tier,
    weight: f64,
    shared: f64,
    cpus: &'static [(f64, f64)],
    memory: &'static [(f64, f64)],
}

const KINDS: [Kind; 3] = [
    Kind {
        tier: Tier::Dedicated,
        weight: 0.30,
        shared: 1.0,
        cpus: &[
            (1.0, 0.20),
            (2.0, 0.30),
            (4.0, 0.27),
            (8.0, 0.15),
            (16.0, 0.06),
            (32.0, 0.02),
        ],
        memory: &[(2.0, 0.30), (4.0, 0.40), (8.0, 0.30)],
    },
    Kind {
        tier: Tier::Burst,
        weight: 0.50,
        shared: 4.0,
        cpus: &[
            (1.0, 0.30),
            (2.0, 0.33),
            (4.0, 0.22),
            (8.0, 0.10),
            (16.0, 0.05),
        ],
        memory: &[(1.0, 0.25), (2.0, 0.40), (4.0, 0.35)],
    },
    Kind {
        tier: Tier::Dense,
        weight: 0.20,
        shared: 16.0,
        cpus: &[(1.0, 0.60), (2.0, 0.30), (4.0, 0.10)],
        memory: &[(0.25, 0.30), (0.5, 0.40), (1.0, 0.30)],
    },
];

/// How long workloads stay: a share of them, and the mean in days.
const STAYS: [(f64, f64); 3] = [(0.03, 0.45), (0.6, 0.30), (60.0, 0.25)];

/// All types, and how often each is asked for.
fn types() -> Vec<(Type, f64)> {
    let mut types = Vec::new();
    for kind in &KINDS {
        for (cpus, often) in kind.cpus {
            for (gib, with) in kind.memory {
                let core = cpus / kind.shared / CPUS;
                let memory = cpus * gib / MEMORY;
                let size = Type {
                    id: types.len() as u64,
                    tier: kind.tier,
                    core,
                    memory,
                    hdd: 0.0,
                    ssd: (10.0 + 20.0 * cpus) / DISK,
                    nic: 0.0,
                };
                types.push((size, kind.weight * often * with));
            }
        }
    }
    types
}

/// A trace for so many machines.
pub fn generate(machines: usize, seed: u64) -> Trace {
    let mut random = Random::new(seed);
    let types = types();
    let choices: Vec<(usize, f64)> = types.iter().enumerate().map(|(i, t)| (i, t.1)).collect();
    let all: f64 = types.iter().map(|(_, often)| often).sum();
    // What an average workload takes of a machine, of what it takes most of.
    let mean = |of: fn(&Type) -> f64| {
        types
            .iter()
            .map(|(t, often)| of(t) * often / all)
            .sum::<f64>()
    };
    let mean = mean(|t| t.core).max(mean(|t| t.memory));
    let room = machines as f64 / mean;
    // Arrivals a day, so that as many are there at the end as should be.
    let stay = |mean: f64| mean * (1.0 - (-DAYS / mean).exp());
    let there: f64 = STAYS.iter().map(|&(mean, share)| share * stay(mean)).sum();
    let (long, _) = STAYS[2];
    let rate = room * (END - BEGIN * (-DAYS / long).exp()) / there;
    let mut trace = Trace::default();
    let mut add = |random: &mut Random, start: f64, stay: f64| {
        let id = trace.arrivals.len() as u64;
        let end = start + stay;
        trace.arrivals.push(Arrival {
            id,
            tenant: (random.wait(20.0) * random.wait(2.0)) as u64,
            size: *random.pick(&choices),
            low: random.share() < 0.2,
            start,
            end: (end < 10.0 * DAYS).then_some(end),
        });
    };
    for _ in 0..(BEGIN * room) as usize {
        let start = -random.wait(1.0);
        // Whoever is there at the beginning has not gone before.
        let stay = random.wait(long) - start;
        add(&mut random, start, stay);
    }
    let mut now = 0.0;
    loop {
        // Nights are quieter.
        let day = 1.0 + 0.5 * triangle(now);
        now += random.wait(1.0 / (rate * day));
        if now >= DAYS {
            break;
        }
        let mean = *random.pick(&STAYS);
        let stay = random.wait(mean);
        add(&mut random, now, stay);
    }
    trace.types = types.into_iter().map(|(t, _)| t).collect();
    trace.sort();
    trace
}

/// A day's rise and fall, from -1 at midnight to 1 at noon.
fn triangle(day: f64) -> f64 {
    1.0 - 4.0 * (day.fract() - 0.5).abs()
}

#[cfg(test)]
#[path = "generate_test.rs"]
mod tests;
