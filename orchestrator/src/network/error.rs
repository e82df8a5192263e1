//! What goes wrong with networks.

use std::io;
use std::net::Ipv4Addr;

use super::Subnet;

/// Why something could not be done with a network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// It is no subnet that a network can have.
    #[error("`{text}` is no subnet for a network: {why}")]
    Subnet {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// This host has an address in the subnet.
    #[error(
        "the network cannot have the subnet {subnet}: this host has the address {address} in it; give the network another subnet"
    )]
    InUse {
        /// The network's.
        subnet: String,
        /// The host's, with its length.
        address: String,
    },
    /// Another network has some of its addresses.
    #[error(
        "the network cannot have {subnet}: {other} has addresses in it; give the network others"
    )]
    Overlap {
        /// The network's.
        subnet: String,
        /// Whose they are.
        other: String,
    },
    /// No subnet is left to choose.
    #[error("all subnets of {0} that a network could get are in use: give it one")]
    NoSubnet(String),
    /// Workloads have addresses that it would not have any more.
    #[error(
        "the network's addresses cannot be changed while workloads have some: {0} ports are there; end those first"
    )]
    Busy(usize),
    /// It cannot go yet.
    #[error(
        "the network cannot be removed while workloads are in it: {0} ports are there; end those first"
    )]
    Inhabited(usize),
    /// It is not here yet, or not any more.
    #[error("the network is not there yet")]
    Unknown,
    /// A tenant has no such network.
    #[error(
        "there is no network `{name}` in the namespace `{tenant}`: declare one, or take `default`"
    )]
    Missing {
        /// Its name.
        name: String,
        /// The tenant.
        tenant: String,
    },
    /// A workload has as many networks as it can have.
    #[error("a workload can have {0} networks, each of them once")]
    Networks(usize),
    /// The address is none for a workload of this network.
    #[error(
        "address {address} is none for a workload in {subnet}: give one of {} to {}, or none",
        subnet.first(),
        subnet.last()
    )]
    Outside {
        /// The address.
        address: Ipv4Addr,
        /// The network's.
        subnet: Subnet,
    },
    /// Another workload has it.
    #[error("address {address} is in use by the workload with uid {uid}: give another, or none")]
    Taken {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        uid: String,
    },
    /// There is no free address.
    #[error(
        "all {} addresses of {subnet} are in use: delete a workload, or give the network a larger subnet",
        subnet.count()
    )]
    Full {
        /// The network's.
        subnet: Subnet,
    },
    /// Nothing can be named after it.
    #[error("`{0}` is no uid: it must be 1 to 64 of a-z, A-Z, 0-9 and -")]
    Uid(String),
    /// An interface has our name and is something else.
    #[error(
        "network interface `{name}` is there and is {what}: remove it with `ip link delete {name}`"
    )]
    Foreign {
        /// The interface.
        name: String,
        /// What it is.
        what: String,
    },
    /// A bridge has as many ports as the kernel allows.
    #[error("bridge `{0}` has no port left: the kernel allows 1023; run this workload elsewhere")]
    Ports(String),
    /// A part of the kernel is missing.
    #[error("cannot {what}: the kernel lacks it; load the module `{module}`")]
    Kernel {
        /// What was tried, as a verb.
        what: String,
        /// What would do.
        module: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {what}")]
    System {
        /// What was tried, as a verb.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// A failure of the system.
pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::System { what, source }
}

/// A failure that may mean that a module is not there.
pub(super) fn lacking(
    what: impl Into<String>,
    module: &'static str,
) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| match source.raw_os_error() {
        Some(
            libc::EOPNOTSUPP
            | libc::EAFNOSUPPORT
            | libc::EPROTONOSUPPORT
            | libc::ENODEV
            | libc::ENXIO
            | libc::ENOENT,
        ) => NetworkError::Kernel {
            what,
            module,
            source,
        },
        _ => NetworkError::System { what, source },
    }
}
