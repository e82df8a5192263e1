//! Why a request would be placed where it would, or nowhere: asked without reserving anything.

use std::collections::BTreeSet;
use std::fmt;

use super::choose::Candidate;
use super::cluster::Cluster;
use super::demand::Demand;
use super::gates::Gates;
use super::host::{Effect, Taint};
use super::hostset::HostIndex;
use super::ledger::{Lack, Lacking};
use super::refusal::{Miss, Nearest, Reason, Refusal};
use super::request::Request;
use super::score::Terms;

/// Hosts that are listed besides the chosen one.
const NEXT: usize = 3;

/// What would become of a request now.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The request.
    pub id: String,
    /// The hosts that will do, the chosen one first; at most four. Empty if none will.
    pub ranked: Vec<Ranked>,
    /// How many hosts will do.
    pub able: usize,
    /// The others, by reason, most hosts first. With those that will do they are all hosts.
    pub misses: Vec<Miss>,
}

/// A host that will do, and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// Its name.
    pub host: String,
    /// Its score: the largest wins, and of equals the host that was added first.
    pub score: f64,
    /// What each term adds to it.
    pub terms: Vec<(&'static str, f64)>,
}

/// What one host is to a request. One that will do and has no score was not looked at any closer, as others
/// are as good.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Its name.
    pub host: String,
    /// Its score, if it will do.
    pub ranked: Option<Ranked>,
    /// Why it will not do, if it will not.
    pub miss: Option<Miss>,
}

impl Cluster {
    /// What would become of a request now: the host that `place` would take and why, and why not others. Of a
    /// request that has a place, what would become of it if it had not.
    pub fn explain(&self, request: &Request) -> Result<Explanation, Refusal> {
        if let Some(work) = self.works.find(&request.id) {
            let mut without = self.clone();
            without.take_out(work);
            return without.explain(request);
        }
        let demand = self.admit(request)?;
        let gates = Gates::of(self, request, true);
        let (able, misses) = self.misses(request, &demand, &gates);
        let ranked = self.choose(&demand, &gates, 1 + NEXT);
        let ranked = ranked.iter().filter_map(|candidate| self.ranked(candidate));
        Ok(Explanation {
            id: request.id.clone(),
            ranked: ranked.collect(),
            able,
            misses,
        })
    }

    /// What each host is to a request: those with a score, the best first, then the others as they were added;
    /// at most so many. Of a request that has a place, as if it had not.
    pub fn verdicts(&self, request: &Request, most: usize) -> Result<Vec<Verdict>, Refusal> {
        if let Some(work) = self.works.find(&request.id) {
            let mut without = self.clone();
            without.take_out(work);
            return without.verdicts(request, most);
        }
        let demand = self.admit(request)?;
        let gates = Gates::of(self, request, true);
        let ranked = self.choose(&demand, &gates, most);
        let scored: BTreeSet<HostIndex> = ranked.iter().map(|candidate| candidate.host).collect();
        let ranked = ranked.iter().filter_map(|candidate| self.ranked(candidate));
        let ranked = ranked.map(|ranked| Verdict {
            host: ranked.host.clone(),
            ranked: Some(ranked),
            miss: None,
        });
        let others = self.present.iter().filter(|host| !scored.contains(host));
        let others = others.filter_map(|host| {
            let bar = self.bar(host, request, &demand, &gates);
            let miss = bar.map(|bar| self.miss(&Tally::of(bar, host), request));
            Some(Verdict {
                host: self.slot(host)?.name.clone(),
                ranked: None,
                miss,
            })
        });
        Ok(ranked.chain(others).take(most).collect())
    }

    /// Why no host will do.
    pub(super) fn refusal(&self, request: &Request) -> Refusal {
        let gates = Gates::of(self, request, true);
        let demand = self.demand(request);
        let (_, misses) = self.misses(request, &demand, &gates);
        let id = request.id.clone();
        Refusal::NoHost { id, misses }
    }

    fn ranked(&self, candidate: &Candidate) -> Option<Ranked> {
        Some(Ranked {
            host: self.slot(candidate.host)?.name.clone(),
            score: candidate.score,
            terms: candidate.terms.named(&self.policy.weights).to_vec(),
        })
    }

    /// How many hosts will do, and why the others will not.
    fn misses(&self, request: &Request, demand: &Demand, gates: &Gates) -> (usize, Vec<Miss>) {
        let mut able = 0;
        let mut tallies: Vec<Tally> = Vec::new();
        for host in self.present.iter() {
            let Some(bar) = self.bar(host, request, demand, gates) else {
                able += 1;
                continue;
            };
            let known = tallies.iter().position(|tally| tally.bar.same(&bar));
            let at = known.unwrap_or_else(|| {
                tallies.push(Tally::of(bar, host));
                tallies.len() - 1
            });
            let tally = &mut tallies[at];
            tally.hosts += usize::from(known.is_some());
            if let (Bar::Lack(lack), Bar::Lack(nearest)) = (bar, tally.bar)
                && lack.free > nearest.free
            {
                (tally.bar, tally.host) = (bar, host);
            }
        }
        let misses = tallies.iter().map(|tally| self.miss(tally, request));
        let mut misses: Vec<Miss> = misses.collect();
        misses.sort_by_key(|miss| (std::cmp::Reverse(miss.hosts), miss.reason.clone()));
        (able, misses)
    }

    fn miss(&self, tally: &Tally, request: &Request) -> Miss {
        let nearest = match tally.bar {
            Bar::Lack(Lack { free, wanted, .. }) => {
                let host = self.slot(tally.host).map(|slot| slot.name.clone());
                host.map(|host| Nearest { host, free, wanted })
            }
            _ => None,
        };
        Miss {
            reason: tally.bar.reason(request),
            hosts: tally.hosts,
            nearest,
        }
    }

    /// The first that bars a host.
    fn bar<'a>(
        &'a self,
        host: HostIndex,
        request: &'a Request,
        demand: &Demand,
        gates: &Gates,
    ) -> Option<Bar<'a>> {
        let steps = [
            (!self.cordoned.contains(host), Bar::Cordoned),
            (!self.claimed.contains(host), Bar::Claimed),
            (gates.selected.contains(host), Bar::Labels),
        ];
        if let Some((_, bar)) = steps.into_iter().find(|(passed, _)| !passed) {
            return Some(bar);
        }
        if !gates.tolerated.contains(host) {
            let mut taints = self.index.taints_against(request, Effect::Refuse);
            return taints
                .find(|(_, hosts)| hosts.contains(host))
                .map(|(taint, _)| Bar::Taint(taint));
        }
        let steps = [
            (gates.near.contains(host), Bar::Affinity),
            (gates.apart.contains(host), Bar::AntiAffinity),
            (gates.welcome.contains(host), Bar::Repelled),
            (gates.eligible.contains(host), Bar::Spread),
            (!demand.whole || self.idle.contains(host), Bar::Busy),
        ];
        match steps.into_iter().find(|(passed, _)| !passed) {
            Some((_, bar)) => Some(bar),
            None => self.slot(host)?.ledger.lacks(demand).map(Bar::Lack),
        }
    }
}

/// Hosts that are barred alike.
struct Tally<'a> {
    bar: Bar<'a>,
    /// One of them; where something is lacking, the one that lacks least.
    host: HostIndex,
    hosts: usize,
}

impl<'a> Tally<'a> {
    fn of(bar: Bar<'a>, host: HostIndex) -> Tally<'a> {
        let hosts = 1;
        Tally { bar, host, hosts }
    }
}

/// What bars a host.
#[derive(Clone, Copy)]
enum Bar<'a> {
    Cordoned,
    Claimed,
    Labels,
    Taint(&'a Taint),
    Affinity,
    AntiAffinity,
    Repelled,
    Spread,
    Busy,
    Lack(Lack),
}

impl Bar<'_> {
    /// Whether it is the same reason.
    fn same(&self, other: &Bar) -> bool {
        match (self, other) {
            (Bar::Taint(one), Bar::Taint(other)) => one == other,
            (Bar::Lack(one), Bar::Lack(other)) => one.what == other.what,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    fn reason(&self, request: &Request) -> Reason {
        match self {
            Bar::Cordoned => Reason::Cordoned,
            Bar::Claimed => Reason::Claimed,
            Bar::Labels => Reason::Labels,
            Bar::Taint(taint) if taint.value.is_empty() => Reason::Taint(taint.key.clone()),
            Bar::Taint(taint) => Reason::Taint(format!("{}={}", taint.key, taint.value)),
            Bar::Affinity => Reason::Affinity,
            Bar::AntiAffinity => Reason::AntiAffinity,
            Bar::Repelled => Reason::Repelled,
            Bar::Spread => Reason::Spread,
            Bar::Busy => Reason::Busy,
            Bar::Lack(lack) => match lack.what {
                Lacking::Cpu => Reason::Cpu,
                Lacking::Memory => Reason::Memory,
                Lacking::Huge2m => Reason::Huge2m,
                Lacking::Huge1g => Reason::Huge1g,
                Lacking::Disk => Reason::Disk,
                Lacking::OneNode => Reason::OneNode,
                Lacking::Device(i) => {
                    let mut wanted = request.devices.iter().filter(|(_, count)| **count > 0);
                    let name = wanted.nth(i).map(|(name, _)| name.clone());
                    Reason::Device(name.unwrap_or_default())
                }
            },
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ranked.split_first() {
            Some((chosen, next)) => {
                writeln!(
                    f,
                    "{}: host {}, of {} that will do",
                    self.id, chosen.host, self.able
                )?;
                write!(f, "{chosen}")?;
                for ranked in next {
                    write!(f, "next best {ranked}")?;
                }
            }
            None => writeln!(f, "{}: no host", self.id)?,
        }
        for miss in &self.misses {
            writeln!(f, "  {miss}")?;
        }
        match (self.ranked.is_empty(), self.misses.first()) {
            (true, Some(miss)) => writeln!(f, "  {}", miss.reason.remedy()),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Ranked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: score {:.4}", self.host, self.score)?;
        for (name, value) in &self.terms {
            write!(f, ", {name} {value:.4}")?;
        }
        writeln!(f)
    }
}

impl Terms {
    fn named(&self, weights: &super::score::Weights) -> [(&'static str, f64); 6] {
        [
            ("tight", weights.tight * self.tight),
            ("balance", weights.balance * self.balance),
            ("room", weights.room * self.room),
            ("node", weights.node * self.node),
            ("fresh", weights.fresh * self.fresh),
            ("wish", weights.wish * self.wish),
        ]
    }
}
