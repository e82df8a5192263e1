//! What kinds of workloads there are: the sizes of what runs, in classes. What is left free on a host is
//! worth what of these it can still take.
//!
//! The mix is a sum over what runs, and nothing else: giving a place back undoes what taking it did.

use std::collections::BTreeMap;

use super::demand::{Demand, MICRO};

/// How many workloads of each class run, and what they take together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mix {
    classes: BTreeMap<Class, Sum>,
}

/// A class of sizes: octaves of CPU and of memory.
type Class = (u32, u32);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    number: u64,
    cpu: u128,
    memory: u128,
}

/// A size that is asked for, and how much of all that is asked for is so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Size {
    /// Millionths of CPUs.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// The share of requests, by number; all together are 1.
    pub share: f64,
}

fn class(demand: &Demand) -> Class {
    let octave = |number: u64| (number + 1).ilog2();
    (
        octave(demand.cpu() / (MICRO / 16)),
        octave(demand.memory >> 24),
    )
}

impl Mix {
    /// One more of these.
    pub fn add(&mut self, demand: &Demand) {
        if demand.whole {
            return;
        }
        let sum = self.classes.entry(class(demand)).or_default();
        sum.number += 1;
        sum.cpu += u128::from(demand.cpu());
        sum.memory += u128::from(demand.memory);
    }

    /// One less of these.
    pub fn remove(&mut self, demand: &Demand) {
        let class = class(demand);
        let Some(sum) = self.classes.get_mut(&class).filter(|_| !demand.whole) else {
            return;
        };
        sum.number -= 1;
        sum.cpu -= u128::from(demand.cpu());
        sum.memory -= u128::from(demand.memory);
        if sum.number == 0 {
            self.classes.remove(&class);
        }
    }

    /// The sizes with the largest shares, at most so many.
    pub fn sizes(&self, most: usize) -> Vec<Size> {
        let mut sums: Vec<&Sum> = self.classes.values().collect();
        sums.sort_by_key(|sum| std::cmp::Reverse(sum.number));
        sums.truncate(most);
        let all: u64 = sums.iter().map(|sum| sum.number).sum();
        let mean = |sum: u128, number: u64| (sum / u128::from(number)) as u64;
        let size = |sum: &&Sum| Size {
            cpu: mean(sum.cpu, sum.number),
            memory: mean(sum.memory, sum.number),
            share: sum.number as f64 / all as f64,
        };
        sums.iter().map(size).collect()
    }
}
