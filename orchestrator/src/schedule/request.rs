//! What is asked of the scheduler.

use std::collections::BTreeMap;

use super::host::{Effect, Labels, Taint};
use super::select::Selector;

/// A workload that wants a place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Its name, of which there is one.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// How it runs.
    pub tier: Tier,
    /// CPUs in thousandths. In tier dedicated they are whole ones.
    pub milli_cpus: u64,
    /// Bytes of memory in small pages.
    pub memory: u64,
    /// Hugepages of 2 MiB.
    pub huge_2m: u64,
    /// Hugepages of 1 GiB.
    pub huge_1g: u64,
    /// Bytes of disk.
    pub disk: u64,
    /// Devices, by class.
    pub devices: BTreeMap<String, u32>,
    /// CPUs, memory and devices must be of one NUMA node. Without this they are, where possible.
    pub one_node: bool,
    /// Its labels, which other workloads' affinity and spread look at.
    pub labels: Labels,
    /// What a host's labels must say.
    pub hosts: Selector,
    /// What a host's labels should say.
    pub prefer_hosts: Vec<Preferred<Selector>>,
    /// Other workloads that it must be near to, or far from.
    pub near: Vec<Near>,
    /// Other workloads that it should be near to, or far from.
    pub prefer_near: Vec<Preferred<Near>>,
    /// How evenly it and its like are spread.
    pub spread: Vec<Spread>,
    /// Taints that do not keep it away.
    pub tolerations: Vec<Toleration>,
    /// Its importance: more is more important.
    pub priority: i32,
    /// Whether less important workloads may have to go for it.
    pub preemption: Preemption,
}

/// What a workload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A virtual machine.
    #[default]
    Vm,
    /// A container.
    Container,
    /// A whole host, as bare metal. CPUs, memory and the rest are what it must have at least.
    Host,
}

/// The exit-policy tier, which says how CPUs are shared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// CPUs of its own.
    Dedicated,
    /// Shared CPUs.
    #[default]
    Burst,
    /// Many on few CPUs.
    Dense,
}

/// Whether less important workloads may have to go for a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Preemption {
    /// They may.
    #[default]
    Lower,
    /// They stay.
    Never,
}

/// Something that is wished for, and how much.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Preferred<T> {
    /// 1 to 100.
    pub weight: u32,
    /// What.
    pub what: T,
}

/// Where hosts count as the same place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topology {
    /// Each host is a place of its own.
    Host,
    /// Hosts with the same value of this label, `site` say. A host without it is in no place.
    Label(String),
}

/// Near to other workloads, or far from them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Near {
    /// Those whose labels are so.
    pub workloads: Selector,
    /// What is one place.
    pub within: Topology,
    /// Not in the same place, rather than in the same.
    pub apart: bool,
}

/// The like of a request are spread over places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spread {
    /// Those whose labels are so are counted.
    pub workloads: Selector,
    /// What is one place.
    pub over: Topology,
    /// So many more than the place with the fewest may a place have; at least 1.
    pub max_skew: u32,
    /// A wish, rather than a rule.
    pub soft: bool,
}

/// A taint that does not keep a request away.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Toleration {
    /// The taint's key; none for every key.
    pub key: Option<String>,
    /// The taint's value; none for every value.
    pub value: Option<String>,
    /// The taint's effect; none for every effect.
    pub effect: Option<Effect>,
}

impl Toleration {
    fn covers(&self, taint: &Taint) -> bool {
        self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self
                .value
                .as_ref()
                .is_none_or(|value| *value == taint.value)
            && self.effect.is_none_or(|effect| effect == taint.effect)
    }
}

/// Why a request makes no sense on any host.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    /// It has no name.
    #[error("a request has no id: give it one")]
    Unnamed,
    /// A number is out of range.
    #[error("{what} is {found}: it may be {least} to {most}")]
    Range {
        /// Which.
        what: &'static str,
        /// So much.
        found: u64,
        /// At least.
        least: u64,
        /// At most.
        most: u64,
    },
    /// A fraction of a CPU cannot be pinned.
    #[error(
        "tier dedicated pins whole CPUs, and {0} thousandths are asked for: ask for a multiple of 1000, or for tier burst"
    )]
    Fraction(u64),
}

/// Thousandths of a CPU.
const MILLI_CPUS: u64 = 8192 * 1000;
/// Bytes or pages.
const AMOUNT: u64 = 1 << 56;
/// Labels, terms of selectors and what else is a list.
const WORDS: u64 = 256;
/// What looks at other workloads.
const RELATIONS: u64 = 32;

impl Request {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Malformed> {
        if self.id.is_empty() {
            return Err(Malformed::Unnamed);
        }
        let range = |what, found, least, most| match (least..=most).contains(&found) {
            true => Ok(()),
            false => Err(Malformed::Range {
                what,
                found,
                least,
                most,
            }),
        };
        range(
            "the number of CPUs in thousandths",
            self.milli_cpus,
            0,
            MILLI_CPUS,
        )?;
        range("memory in bytes", self.memory, 0, AMOUNT)?;
        range("the number of 2 MiB pages", self.huge_2m, 0, AMOUNT)?;
        range("the number of 1 GiB pages", self.huge_1g, 0, AMOUNT)?;
        range("disk space in bytes", self.disk, 0, AMOUNT)?;
        let pinned = self.tier == Tier::Dedicated && self.kind != Kind::Host;
        if pinned && !self.milli_cpus.is_multiple_of(1000) {
            return Err(Malformed::Fraction(self.milli_cpus));
        }
        let lists = [
            ("the number of device classes", self.devices.len()),
            ("the number of labels", self.labels.len()),
            (
                "the number of terms and values that select hosts",
                self.hosts.words(),
            ),
            ("the number of tolerations", self.tolerations.len()),
        ];
        for (what, found) in lists {
            range(what, found as u64, 0, WORDS)?;
        }
        // Each of these may have to look at all that runs.
        let relations = [
            (
                "the number of preferences",
                self.prefer_hosts.len() + self.prefer_near.len(),
            ),
            ("the number of affinities", self.near.len()),
            ("the number of spread constraints", self.spread.len()),
        ];
        for (what, found) in relations {
            range(what, found as u64, 0, RELATIONS)?;
        }
        for spread in &self.spread {
            range("max_skew", spread.max_skew.into(), 1, 1 << 20)?;
            range(
                "the number of terms and values of a spread",
                spread.workloads.words() as u64,
                0,
                WORDS,
            )?;
        }
        let near = self
            .near
            .iter()
            .chain(self.prefer_near.iter().map(|p| &p.what));
        for near in near {
            range(
                "the number of terms and values of an affinity",
                near.workloads.words() as u64,
                0,
                WORDS,
            )?;
        }
        for preferred in &self.prefer_hosts {
            range(
                "the number of terms and values of a preference",
                preferred.what.words() as u64,
                0,
                WORDS,
            )?;
        }
        let weights = self.prefer_hosts.iter().map(|p| p.weight);
        for weight in weights.chain(self.prefer_near.iter().map(|p| p.weight)) {
            range("a preference's weight", weight.into(), 1, 100)?;
        }
        Ok(())
    }

    /// Whether this taint does not keep it away.
    pub(super) fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations
            .iter()
            .any(|toleration| toleration.covers(taint))
    }
}
