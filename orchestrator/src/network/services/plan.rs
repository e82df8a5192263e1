//! What is to be in the kernel: ports, services and elastic addresses, and who is behind each. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::uplink::Range;
use crate::model::Protocol;
use crate::network::Subnet;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The services' subnet: what is sent there and to no service is refused.
    pub pool: Subnet,
    /// Ports of the host, and of services' addresses.
    pub fronts: Vec<Front>,
    /// Who may use services: workloads' addresses, by tenant and bridge (`team/skerry0`).
    pub users: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Elastic addresses.
    pub elastic: Vec<Elastic>,
    /// Networks with somebody behind a port, who may be asked by a neighbour.
    pub networks: BTreeSet<Range>,
}

/// Where somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// At any address of the host, or at one.
    Host(Option<Ipv4Addr>),
    /// At a service's address.
    Virtual(Ipv4Addr),
}

/// Who answers: an address and a port.
pub type Backend = (Ipv4Addr, u16);

/// A port, and who answers there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// Whose it is: `service default/web`.
    pub whose: String,
    /// Where it is.
    pub at: At,
    /// What is sent to it.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// Who answers; nobody if it is empty, and those who ask are refused.
    pub backends: Vec<Backend>,
    /// Who answers those who asked before, and nobody else.
    pub leaving: Vec<Backend>,
    /// Who answers workloads of a network, by the name of their set: of a service's address alone.
    pub near: Vec<(String, Vec<Backend>)>,
}

/// An elastic address that is on an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elastic {
    /// Whose it is: `elasticaddress default/web`.
    pub whose: String,
    /// The address.
    pub address: Ipv4Addr,
    /// The interface.
    pub interface: String,
    /// The workload's address, if it has one.
    pub target: Option<Ipv4Addr>,
}

/// Connections that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tie {
    /// To a port, and handed on.
    Port {
        /// What was sent.
        protocol: Protocol,
        /// Where to; any address of the host if none.
        address: Option<Ipv4Addr>,
        /// Its port.
        port: u16,
        /// Who answers.
        backend: Backend,
    },
    /// Of an elastic address and its workload.
    Elastic(Ipv4Addr, Ipv4Addr),
}

/// Where datagrams are taken: the address, if it is one alone, and the port.
pub type Datagrams = (Option<Ipv4Addr>, u16);

impl At {
    /// The address, if it is one alone.
    pub fn address(self) -> Option<Ipv4Addr> {
        match self {
            At::Host(address) => address,
            At::Virtual(address) => Some(address),
        }
    }
}

impl Plan {
    /// Nothing.
    pub fn new(pool: Subnet) -> Plan {
        Plan {
            pool,
            fronts: Vec::new(),
            users: BTreeMap::new(),
            elastic: Vec::new(),
            networks: BTreeSet::new(),
        }
    }

    /// Whether nothing is to be there.
    pub fn is_empty(&self) -> bool {
        self.fronts.is_empty() && self.elastic.is_empty()
    }

    /// The addresses of those who answer.
    pub fn served(&self) -> BTreeSet<Ipv4Addr> {
        let fronts = self.fronts.iter().flat_map(|front| {
            let near = front.near.iter().flat_map(|(_, backends)| backends);
            front.backends.iter().chain(near)
        });
        let elastic = self.elastic.iter().filter_map(|one| one.target);
        fronts.map(|backend| backend.0).chain(elastic).collect()
    }

    /// Connections that may be. What was one before and is none now is cut off.
    pub fn ties(&self) -> BTreeSet<Tie> {
        let mut ties = BTreeSet::new();
        for front in &self.fronts {
            let near = front.near.iter().flat_map(|(_, backends)| backends);
            let all = front.backends.iter().chain(&front.leaving).chain(near);
            ties.extend(all.map(|backend| Tie::Port {
                protocol: front.protocol,
                address: front.at.address(),
                port: front.port,
                backend: *backend,
            }));
        }
        let elastic = self.elastic.iter();
        ties.extend(elastic.filter_map(|one| Some(Tie::Elastic(one.address, one.target?))));
        ties
    }

    /// Where datagrams are taken. Those who sent some before nobody took them are to be heard from now on.
    pub fn datagrams(&self) -> BTreeSet<Datagrams> {
        let fronts = self.fronts.iter();
        let udp = fronts.filter(|front| front.protocol == Protocol::Udp && front.is_served());
        udp.map(|front| (front.at.address(), front.port)).collect()
    }
}

impl Front {
    /// Whether somebody answers.
    pub fn is_served(&self) -> bool {
        !self.backends.is_empty()
    }
}
