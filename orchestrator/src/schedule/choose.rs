//! Which of the hosts that will do is taken.

use std::collections::BTreeMap;

use super::cluster::{Cluster, Packing};
use super::demand::Demand;
use super::gates::Gates;
use super::grid::Cell;
use super::hostset::HostIndex;
use super::score::{Terms, left, terms};

/// A host that will do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub host: HostIndex,
    pub score: f64,
    pub terms: Terms,
}

/// Sizes of the mix that are looked at.
const SIZES: usize = 24;

impl Cluster {
    /// The best hosts for a demand, best first, at most `keep`. None is none that will do.
    pub(super) fn choose(&self, demand: &Demand, gates: &Gates, keep: usize) -> Vec<Candidate> {
        let mut best = Best {
            keep,
            list: Vec::new(),
        };
        match self.policy.packing {
            _ if demand.whole => self.smallest(demand, gates, &mut best),
            Packing::Skerry => self.packed(demand, gates, &mut best),
            Packing::FirstFit => {
                let fitting = gates
                    .eligible
                    .iter()
                    .filter(|&host| self.fits(host, demand));
                for (i, host) in fitting.take(keep).enumerate() {
                    best.add(Candidate::plain(host, -(i as f64)));
                }
            }
            Packing::BestFit | Packing::WorstFit => {
                let worst = self.policy.packing == Packing::WorstFit;
                for host in gates
                    .eligible
                    .iter()
                    .filter(|&host| self.fits(host, demand))
                {
                    let Some(slot) = self.slot(host) else {
                        continue;
                    };
                    let left = left(slot.ledger.free(), slot.ledger.capacity(), demand);
                    best.add(Candidate::plain(host, if worst { left } else { -left }));
                }
            }
        }
        best.list
    }

    fn fits(&self, host: HostIndex, demand: &Demand) -> bool {
        self.slot(host)
            .is_some_and(|slot| slot.ledger.lacks(demand).is_none())
    }

    /// Our own way: hosts from the tightest on, each scored, until enough were.
    fn packed(&self, demand: &Demand, gates: &Gates, best: &mut Best) {
        let mix = self.mix.sizes(SIZES);
        let weights = &self.policy.weights;
        // Many empty hosts are no treasure; the last one takes what nothing else can.
        let scarce = -1.0 / self.idle.len().max(1) as f64;
        let mut rest = match gates.wishes.is_empty() {
            true => self.policy.candidates,
            false => usize::MAX,
        };
        // Hosts of one shape on which nothing runs are all the same: they count as one.
        let mut fresh: BTreeMap<u64, usize> = BTreeMap::new();
        for host in self.grid.from(Cell::of(demand.cpu(), demand.memory)) {
            if !gates.eligible.contains(host) {
                continue;
            }
            let Some(slot) = self.slot(host) else {
                continue;
            };
            let alike = gates.wishes.is_empty() && slot.works.is_empty();
            let seen = if alike {
                fresh.get(&slot.shape).copied().unwrap_or(0)
            } else {
                0
            };
            let ledger = &slot.ledger;
            if seen >= best.keep || ledger.lacks(demand).is_some() {
                continue;
            }
            if alike {
                fresh.insert(slot.shape, seen + 1);
            }
            let one_node = ledger.on_one_node(demand);
            let mut terms = terms(ledger.free(), ledger.capacity(), demand, &mix, one_node);
            if slot.works.is_empty() {
                terms.fresh = scarce;
            }
            terms.wish = gates.wish(host);
            let score = terms.sum(weights);
            best.add(Candidate { host, score, terms });
            rest -= usize::from(seen == 0);
            if rest == 0 {
                break;
            }
        }
    }

    /// The whole host that has least beyond what it must have.
    fn smallest(&self, demand: &Demand, gates: &Gates, best: &mut Best) {
        for host in self.idle.iter() {
            if !gates.eligible.contains(host) || !self.fits(host, demand) {
                continue;
            }
            let Some(slot) = self.slot(host) else {
                continue;
            };
            let size = self.size(slot.ledger.capacity());
            let terms = Terms {
                tight: -size,
                wish: gates.wish(host),
                ..Terms::default()
            };
            let score = terms.sum(&self.policy.weights);
            best.add(Candidate { host, score, terms });
        }
    }
}

impl Candidate {
    fn plain(host: HostIndex, score: f64) -> Self {
        Candidate {
            host,
            score,
            terms: Terms::default(),
        }
    }
}

/// The best so far, best first. Of equals the first host by its index is better.
struct Best {
    keep: usize,
    list: Vec<Candidate>,
}

impl Best {
    fn add(&mut self, new: Candidate) {
        let before = |a: &Candidate, b: &Candidate| {
            b.score
                .total_cmp(&a.score)
                .then(a.host.cmp(&b.host))
                .is_lt()
        };
        if self.list.len() == self.keep {
            match self.list.last() {
                Some(last) if before(&new, last) => self.list.pop(),
                _ => return,
            };
        }
        let place = self.list.iter().position(|old| before(&new, old));
        self.list.insert(place.unwrap_or(self.list.len()), new);
    }
}
