//! The books of one host: what it has, what is free, and from which NUMA nodes a demand is served.

use super::demand::{ClassIndex, Demand, MICRO};
use super::host::NumaNode;

/// What a demand is given, by NUMA node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Grant {
    /// From each node that gives something.
    pub nodes: Vec<NodeGrant>,
    /// Of the shared CPUs, in millionths.
    pub shared: u64,
    /// Bytes of disk.
    pub disk: u64,
}

/// What one NUMA node gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodeGrant {
    /// Which node.
    pub node: usize,
    /// CPUs by their numbers.
    pub cpus: Vec<u32>,
    /// Bytes.
    pub memory: u64,
    /// Pages of 2 MiB.
    pub huge_2m: u64,
    /// Pages of 1 GiB.
    pub huge_1g: u64,
    /// Devices.
    pub devices: Vec<(ClassIndex, u32)>,
}

/// What a host lacks for a demand, and how much of it there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lack {
    pub what: Lacking,
    pub free: u64,
    pub wanted: u64,
}

/// What may be lacking, in the order in which it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lacking {
    /// Millionths of CPUs.
    Cpu,
    /// Bytes.
    Memory,
    /// Pages.
    Huge2m,
    /// Pages.
    Huge1g,
    /// Bytes.
    Disk,
    /// Devices; the index is the demand's.
    Device(usize),
    /// A node that has everything; CPUs in millionths.
    OneNode,
}

/// Amounts of what a host has; of all nodes, or of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Millionths of CPUs.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Pages.
    pub huge_2m: u64,
    /// Pages.
    pub huge_1g: u64,
    /// Bytes.
    pub disk: u64,
}

/// The books of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ledger {
    nodes: Vec<Node>,
    capacity: Amounts,
    /// What is left, with shared CPUs counted in.
    free: Amounts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    /// CPUs, and whether each is free.
    cpus: Vec<(u32, bool)>,
    /// How many are not pinned.
    unpinned: u32,
    memory: u64,
    huge_2m: u64,
    huge_1g: u64,
    /// What is free of each class, in the order of their numbers.
    devices: Vec<(ClassIndex, u32)>,
}

impl Grant {
    /// All of it together.
    pub fn amounts(&self) -> Amounts {
        let mut all = Amounts {
            cpu: self.shared,
            disk: self.disk,
            ..Amounts::default()
        };
        for given in &self.nodes {
            all.cpu += given.cpus.len() as u64 * MICRO;
            all.memory += given.memory;
            all.huge_2m += given.huge_2m;
            all.huge_1g += given.huge_1g;
        }
        all
    }
}

impl Amounts {
    /// Adds a host's.
    pub(super) fn add(&mut self, other: &Amounts) {
        self.change(other, u64::saturating_add);
    }

    /// Takes a host's away.
    pub(super) fn subtract(&mut self, other: &Amounts) {
        self.change(other, u64::saturating_sub);
    }

    fn change(&mut self, other: &Amounts, how: impl Fn(u64, u64) -> u64) {
        self.cpu = how(self.cpu, other.cpu);
        self.memory = how(self.memory, other.memory);
        self.huge_2m = how(self.huge_2m, other.huge_2m);
        self.huge_1g = how(self.huge_1g, other.huge_1g);
        self.disk = how(self.disk, other.disk);
    }
}

impl Ledger {
    /// The books of a host on which nothing runs.
    pub fn new(nodes: &[NumaNode], disk: u64, mut class: impl FnMut(&str) -> ClassIndex) -> Self {
        let mut free = Amounts {
            disk,
            ..Amounts::default()
        };
        let nodes = nodes.iter().map(|node| {
            free.cpu += node.cpus.len() as u64 * MICRO;
            free.memory += node.memory;
            free.huge_2m += node.huge_2m;
            free.huge_1g += node.huge_1g;
            let mut devices: Vec<_> = node.devices.iter().map(|(n, c)| (class(n), *c)).collect();
            devices.sort_unstable();
            Node {
                cpus: node.cpus.iter().map(|&cpu| (cpu, true)).collect(),
                unpinned: node.cpus.len() as u32,
                memory: node.memory,
                huge_2m: node.huge_2m,
                huge_1g: node.huge_1g,
                devices,
            }
        });
        let nodes = nodes.collect();
        Ledger {
            nodes,
            capacity: free,
            free,
        }
    }

    /// What the host has.
    pub fn capacity(&self) -> &Amounts {
        &self.capacity
    }

    /// What is left.
    pub fn free(&self) -> &Amounts {
        &self.free
    }

    /// How many devices of a class are free.
    pub fn free_devices(&self, class: ClassIndex) -> u64 {
        let of = |node: &Node| u64::from(node.devices_of(class));
        self.nodes.iter().map(of).sum()
    }

    /// The first that is lacking; none if the demand can be served.
    pub fn lacks(&self, demand: &Demand) -> Option<Lack> {
        let free = &self.free;
        let amounts = [
            (Lacking::Cpu, free.cpu, demand.cpu()),
            (Lacking::Memory, free.memory, demand.memory),
            (Lacking::Huge2m, free.huge_2m, demand.huge_2m),
            (Lacking::Huge1g, free.huge_1g, demand.huge_1g),
            (Lacking::Disk, free.disk, demand.disk),
        ];
        let lack = |(what, free, wanted): (_, u64, u64)| {
            (free < wanted).then_some(Lack { what, free, wanted })
        };
        if let Some(lack) = amounts.into_iter().find_map(lack) {
            return Some(lack);
        }
        for (i, &(class, count)) in demand.devices.iter().enumerate() {
            let (free, wanted) = (self.free_devices(class), u64::from(count));
            if let Some(lack) = lack((Lacking::Device(i), free, wanted)) {
                return Some(lack);
            }
        }
        if demand.one_node && self.node_for(demand, true).is_none() {
            let most = self.nodes.iter().map(|node| node.unpinned).max();
            return Some(Lack {
                what: Lacking::OneNode,
                free: u64::from(most.unwrap_or(0)) * MICRO,
                wanted: demand.cpu(),
            });
        }
        None
    }

    /// Whether one node can serve all of it, as far as it is of nodes at all.
    pub fn on_one_node(&self, demand: &Demand) -> bool {
        self.nodes.iter().any(|node| node.serves(demand, true))
    }

    /// The node that can serve all of it and has least left then.
    fn node_for(&self, demand: &Demand, devices: bool) -> Option<usize> {
        let able = self.nodes.iter().enumerate();
        let able = able.filter(|(_, node)| node.serves(demand, devices));
        able.min_by_key(|(i, node)| {
            // A demand that pins nothing leaves nodes alone whose CPUs may still be pinned.
            let left = (u64::from(node.unpinned), node.memory);
            (left, *i)
        })
        .map(|(i, _)| i)
    }

    /// Of which nodes a demand that lacks nothing is served.
    pub fn grant(&self, demand: &Demand) -> Grant {
        if demand.whole {
            return self.everything();
        }
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|&i| {
            let node = &self.nodes[i];
            let most = (u64::from(node.unpinned), node.memory);
            (std::cmp::Reverse(most), i)
        });
        let best = self
            .node_for(demand, true)
            .or_else(|| self.node_for(demand, false));
        if let Some(best) = best {
            order.retain(|&i| i != best);
            order.insert(0, best);
        }
        let mut rest = demand.clone();
        let mut nodes = Vec::new();
        for i in order {
            let given = self.nodes[i].part(i, &mut rest);
            if !given.is_empty() {
                nodes.push(given);
            }
        }
        nodes.sort_by_key(|given| given.node);
        Grant {
            nodes,
            shared: demand.shared,
            disk: demand.disk,
        }
    }

    fn everything(&self) -> Grant {
        let all = |(node, books): (usize, &Node)| NodeGrant {
            node,
            cpus: books.free_cpus().collect(),
            memory: books.memory,
            huge_2m: books.huge_2m,
            huge_1g: books.huge_1g,
            devices: books.devices.iter().copied().filter(|d| d.1 > 0).collect(),
        };
        Grant {
            nodes: self.nodes.iter().enumerate().map(all).collect(),
            shared: 0,
            disk: self.free.disk,
        }
    }

    /// Whether a grant that was made elsewhere or before can be taken now.
    pub fn allows(&self, grant: &Grant) -> bool {
        let cpus: usize = grant.nodes.iter().map(|given| given.cpus.len()).sum();
        let fits = |given: &NodeGrant| {
            let Some(node) = self.nodes.get(given.node) else {
                return false;
            };
            let once = |i: usize, cpu: &u32| !given.cpus[..i].contains(cpu);
            let devices = |&(class, count): &(ClassIndex, u32)| node.devices_of(class) >= count;
            given.memory <= node.memory
                && given.huge_2m <= node.huge_2m
                && given.huge_1g <= node.huge_1g
                && given.devices.iter().all(devices)
                && given
                    .cpus
                    .iter()
                    .enumerate()
                    .all(|(i, cpu)| node.has_free(*cpu) && once(i, cpu))
        };
        let mut seen: Vec<usize> = grant.nodes.iter().map(|given| given.node).collect();
        seen.sort_unstable();
        seen.dedup();
        let cpu = (cpus as u64)
            .saturating_mul(MICRO)
            .saturating_add(grant.shared);
        seen.len() == grant.nodes.len()
            && cpu <= self.free.cpu
            && grant.disk <= self.free.disk
            && grant.nodes.iter().all(fits)
    }

    /// Takes a grant that is allowed.
    pub fn take(&mut self, grant: &Grant) {
        self.book(grant, false);
    }

    /// Gives back a grant that was taken.
    pub fn give_back(&mut self, grant: &Grant) {
        self.book(grant, true);
    }

    fn book(&mut self, grant: &Grant, back: bool) {
        let change = |amount: &mut u64, by: u64| match back {
            true => *amount += by,
            false => *amount -= by,
        };
        change(&mut self.free.cpu, grant.shared);
        change(&mut self.free.disk, grant.disk);
        for given in &grant.nodes {
            let node = &mut self.nodes[given.node];
            change(&mut self.free.cpu, given.cpus.len() as u64 * MICRO);
            for (free, by) in [
                (&mut self.free.memory, given.memory),
                (&mut self.free.huge_2m, given.huge_2m),
                (&mut self.free.huge_1g, given.huge_1g),
                (&mut node.memory, given.memory),
                (&mut node.huge_2m, given.huge_2m),
                (&mut node.huge_1g, given.huge_1g),
            ] {
                change(free, by);
            }
            for (cpu, free) in &mut node.cpus {
                if given.cpus.contains(cpu) {
                    *free = back;
                }
            }
            let pinned = given.cpus.len() as u32;
            match back {
                true => node.unpinned += pinned,
                false => node.unpinned -= pinned,
            }
            for &(class, count) in &given.devices {
                if let Some((_, free)) = node.devices.iter_mut().find(|(c, _)| *c == class) {
                    match back {
                        true => *free += count,
                        false => *free -= count,
                    }
                }
            }
        }
    }
}

impl Node {
    fn devices_of(&self, class: ClassIndex) -> u32 {
        let found = self.devices.iter().find(|(c, _)| *c == class);
        found.map_or(0, |(_, free)| *free)
    }

    fn free_cpus(&self) -> impl Iterator<Item = u32> {
        self.cpus
            .iter()
            .filter(|(_, free)| *free)
            .map(|(cpu, _)| *cpu)
    }

    fn has_free(&self, wanted: u32) -> bool {
        self.cpus.iter().any(|&(cpu, free)| cpu == wanted && free)
    }

    fn serves(&self, demand: &Demand, devices: bool) -> bool {
        self.unpinned >= demand.pinned
            && self.memory >= demand.memory
            && self.huge_2m >= demand.huge_2m
            && self.huge_1g >= demand.huge_1g
            && (!devices || demand.devices.iter().all(|&(c, n)| self.devices_of(c) >= n))
    }

    /// What this node gives of what is still wanted.
    fn part(&self, node: usize, rest: &mut Demand) -> NodeGrant {
        let take = |free: u64, wanted: &mut u64| {
            let part = free.min(*wanted);
            *wanted -= part;
            part
        };
        let cpus: Vec<u32> = match rest.pinned {
            0 => Vec::new(),
            wanted => self.free_cpus().take(wanted as usize).collect(),
        };
        rest.pinned -= cpus.len() as u32;
        let mut devices = Vec::new();
        for (class, wanted) in &mut rest.devices {
            let part = self.devices_of(*class).min(*wanted);
            *wanted -= part;
            if part > 0 {
                devices.push((*class, part));
            }
        }
        NodeGrant {
            node,
            cpus,
            memory: take(self.memory, &mut rest.memory),
            huge_2m: take(self.huge_2m, &mut rest.huge_2m),
            huge_1g: take(self.huge_1g, &mut rest.huge_1g),
            devices,
        }
    }
}

impl NodeGrant {
    fn is_empty(&self) -> bool {
        *self
            == NodeGrant {
                node: self.node,
                ..NodeGrant::default()
            }
    }
}
