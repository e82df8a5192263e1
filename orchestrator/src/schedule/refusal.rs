//! Why a request has no place, in numbers and words.

use std::fmt;

use super::demand::MICRO;
use super::request::Malformed;

/// Why a host will not do. A host that will not do for several reasons counts for the first of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is cordoned.
    Cordoned,
    /// It is somebody's bare metal.
    Claimed,
    /// Its labels are not those that the request selects.
    Labels,
    /// It has this taint, which the request does not tolerate.
    Taint(String),
    /// What the request must be near to is not there.
    Affinity,
    /// What the request must be far from is there.
    AntiAffinity,
    /// What is there keeps the request away.
    Repelled,
    /// The request's like would be spread too unevenly.
    Spread,
    /// The whole host is asked for, and something runs on it.
    Busy,
    /// Too few CPUs are free; in millionths.
    Cpu,
    /// Too little memory is free; in bytes.
    Memory,
    /// Too few pages of 2 MiB are free.
    Huge2m,
    /// Too few pages of 1 GiB are free.
    Huge1g,
    /// Too little disk space is free; in bytes.
    Disk,
    /// Too few devices of this class are free.
    Device(String),
    /// No NUMA node has everything; the CPUs that one has free, in millionths.
    OneNode,
}

/// The hosts that will not do for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The reason.
    pub reason: Reason,
    /// How many hosts.
    pub hosts: usize,
    /// For reasons of amount: the host that lacks least.
    pub nearest: Option<Nearest>,
}

/// The host that lacks least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nearest {
    /// Its name.
    pub host: String,
    /// So much is free, in the reason's unit.
    pub free: u64,
    /// So much is wanted.
    pub wanted: u64,
}

/// Why a request has no place.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// It makes no sense.
    #[error("request {id} cannot be placed anywhere")]
    Malformed {
        /// Which.
        id: String,
        /// Why.
        source: Malformed,
    },
    /// It has a place.
    #[error("{0} has a place already: release it first, or give the other one another name")]
    Twice(String),
    /// There are too many workloads.
    #[error("{id} is one too many: a cluster runs at most {most} workloads")]
    Full {
        /// Which.
        id: String,
        /// How many there may be.
        most: usize,
    },
    /// No host will do.
    #[error("no host for {id}: {}", said(.misses))]
    NoHost {
        /// Which.
        id: String,
        /// Each reason with its hosts, most hosts first. Together they are all hosts.
        misses: Vec<Miss>,
    },
    /// Nor would one if less important workloads went.
    #[error("{id} may push nobody away: {why}")]
    NoVictims {
        /// Which.
        id: String,
        /// Why.
        why: &'static str,
    },
}

fn said(misses: &[Miss]) -> String {
    let Some(first) = misses.first() else {
        return "the inventory has no hosts: add one".into();
    };
    let each: Vec<String> = misses.iter().map(Miss::to_string).collect();
    format!("{}. {}", each.join("; "), first.reason.remedy())
}

impl Miss {
    /// The reason, and what is lacking where it lacks least.
    pub fn why(&self) -> String {
        match &self.nearest {
            Some(nearest) => {
                let amount = |amount| self.reason.amount(amount);
                let (free, wanted) = (amount(nearest.free), amount(nearest.wanted));
                format!("{free} {} free, {wanted} wanted", self.reason)
            }
            None => self.reason.to_string(),
        }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.hosts == 1 { "host" } else { "hosts" };
        write!(f, "{} {plural}: {}", self.hosts, self.why())?;
        match &self.nearest {
            Some(nearest) => write!(f, " (nearest: {})", nearest.host),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Cordoned => f.write_str("cordoned"),
            Reason::Claimed => f.write_str("claimed as bare metal"),
            Reason::Labels => f.write_str("other labels than those selected"),
            Reason::Taint(taint) => write!(f, "taint {taint} is not tolerated"),
            Reason::Affinity => f.write_str("not near to what it must be near to"),
            Reason::AntiAffinity => f.write_str("near to what it must be far from"),
            Reason::Repelled => f.write_str("what runs there keeps it away"),
            Reason::Spread => f.write_str("its like would be spread too unevenly"),
            Reason::Busy => f.write_str("something runs there, and the whole host is wanted"),
            Reason::Cpu => f.write_str("CPUs"),
            Reason::Memory => f.write_str("of memory"),
            Reason::Huge2m => f.write_str("pages of 2 MiB"),
            Reason::Huge1g => f.write_str("pages of 1 GiB"),
            Reason::Disk => f.write_str("of disk"),
            Reason::Device(class) => write!(f, "devices of class {class}"),
            Reason::OneNode => f.write_str("CPUs on one NUMA node with the memory and devices"),
        }
    }
}

impl Reason {
    /// An amount in the unit that people use for it.
    fn amount(&self, amount: u64) -> String {
        match self {
            Reason::Cpu | Reason::OneNode => {
                // Down to hundredths, so that what is lacking never looks as if it were there.
                let hundredths = amount / (MICRO / 100);
                let (whole, part) = (hundredths / 100, hundredths % 100);
                match part {
                    0 => whole.to_string(),
                    _ if part.is_multiple_of(10) => format!("{whole}.{}", part / 10),
                    _ => format!("{whole}.{part:02}"),
                }
            }
            Reason::Memory | Reason::Disk => format!("{} MiB", amount >> 20),
            _ => amount.to_string(),
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Reason::Cordoned => "Uncordon a host, or add one.",
            Reason::Claimed => "Release a claim of bare metal, or add a host.",
            Reason::Labels => "Label a host so, or select other labels.",
            Reason::Taint(_) => "Tolerate the taint, or take it off a host.",
            Reason::Affinity => "Start what it must be near to first, or make it a preference.",
            Reason::AntiAffinity | Reason::Repelled => {
                "Add a host, move what is in the way, or make it a preference."
            }
            Reason::Spread => {
                "Allow a larger skew, make it soft, or make room where there are fewest."
            }
            Reason::Busy => "Drain a host, or preempt.",
            Reason::Cpu => {
                "Ask for fewer CPUs or a tier that shares them, preempt, release something, or add a host."
            }
            Reason::Memory => "Ask for less memory, preempt, release something, or add a host.",
            Reason::Huge2m | Reason::Huge1g => {
                "Reserve more hugepages on a host, or ask for small pages."
            }
            Reason::Disk => "Ask for less disk, release something, or add a host.",
            Reason::Device(_) => "Release a device of this class, or add a host that has one.",
            Reason::OneNode => "Allow several NUMA nodes, or ask for less.",
        }
    }
}
