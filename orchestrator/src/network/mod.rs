//! The network `default` of a host: a bridge whose first address is this host's and the workloads' gateway, NAT
//! to all that is outside, and a port for each workload, which can send from its own address only.
//!
//! All there is of it is in the kernel and found there again: nothing is written down. Calls wait for the kernel,
//! a few milliseconds as a rule and five seconds a question at most, so async code makes them on a blocking
//! thread; none changes the namespace of its caller's thread.

mod addresses;
mod error;
mod links;
mod netlink;
mod netns;
mod nft;
mod port;
mod rules;
pub mod services;
mod subnet;
mod tap;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use netlink_packet_route::link::{InfoKind, LinkAttribute};
use parking_lot::Mutex;

pub use addresses::Addresses;
pub use error::NetworkError;
pub use subnet::{Mac, Subnet};

use self::error::{lacking, system};
use self::links::Link;
use self::netlink::Netlink;
use self::port::Port;

/// The bridge.
const BRIDGE: &str = "skerry0";
/// A container's end of its port.
const INNER: &str = "eth0";

/// The network `default`.
#[derive(Debug)]
pub struct DefaultNetwork {
    subnet: Subnet,
    folder: PathBuf,
    /// One change at a time: the whole guard is made of all ports there are.
    turn: Mutex<()>,
}

/// What a monitor is told of a VM's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The tap.
    pub name: String,
    /// The VM's hardware address; what comes from another is dropped.
    pub mac: Mac,
}

/// A workload that has something here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The workload.
    pub uid: String,
    /// Its address, if it has a port.
    pub address: Option<Ipv4Addr>,
}

impl DefaultNetwork {
    /// That of a subnet, with containers' namespaces in `folder`. Nothing is done yet.
    pub fn new(subnet: Subnet, folder: &Path) -> DefaultNetwork {
        DefaultNetwork {
            subnet,
            folder: folder.to_owned(),
            turn: Mutex::new(()),
        }
    }

    /// Its subnet.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Makes whatever is missing of it, and lets the rest be: ports that somebody took off the bridge are put
    /// back, rules are written anew, and what an agent left half made is removed.
    pub fn ensure(&self) -> Result<(), NetworkError> {
        let _turn = self.turn.lock();
        self.build(&mut open()?)
    }

    /// A VM's port: a tap that a monitor can open by its name, with `queues` queue pairs. What is there for
    /// this workload and fits is left as it is; what does not is made anew, so nothing of it may run.
    pub fn attach_tap(
        &self,
        uid: &str,
        address: Ipv4Addr,
        queues: u16,
    ) -> Result<Tap, NetworkError> {
        self.subnet.check(address)?;
        let port = Port::new(uid, address)?;
        let multi = queues > 1;
        let _turn = self.turn.lock();
        let mut netlink = open()?;
        let fits = |link: &Link| link.kind == Some(InfoKind::Tun) && link.multi_queue == multi;
        if !self.clear(&mut netlink, &port, fits)? {
            let made = tap::make(&port.name, multi);
            made.map_err(lacking(format!("make tap `{}`", port.name), "tun"))?;
        }
        self.connect(&mut netlink, &port)?;
        Ok(Tap {
            mac: port.mac(),
            name: port.name,
        })
    }

    /// A container's port: a network namespace in which `eth0` has the address. The path of the namespace is
    /// given back.
    pub fn attach_netns(&self, uid: &str, address: Ipv4Addr) -> Result<PathBuf, NetworkError> {
        self.subnet.check(address)?;
        let port = Port::new(uid, address)?;
        let path = self.folder.join(uid);
        let _turn = self.turn.lock();
        let mut netlink = open()?;
        let inside = netns::ensure(&path);
        let mut inside =
            inside.map_err(system(format!("make network namespace {}", path.display())))?;
        let told = inside.netlink.link(INNER);
        let is_inside = told
            .map_err(system("look into a network namespace"))?
            .is_some();
        let fits = |link: &Link| link.kind == Some(InfoKind::Veth) && is_inside;
        if !self.clear(&mut netlink, &port, fits)? {
            let inner = (INNER, port.mac());
            let (name, alias) = (&port.name, port.alias());
            let made = netlink.add_veth(name, &alias, inner, inside.handle.as_fd());
            made.map_err(lacking(format!("make veth `{name}`"), "veth"))?;
        }
        let configured = self.configure(&mut inside.netlink, address);
        configured.map_err(system(format!("configure {INNER} in {}", path.display())))?;
        self.connect(&mut netlink, &port)?;
        Ok(path)
    }

    /// Removes all there is of a workload, which may be nothing. Nothing of it may run.
    pub fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let name = port::name(uid)?;
        let _turn = self.turn.lock();
        let mut netlink = open()?;
        let port = match look(&mut netlink, &name)? {
            Some(link) => {
                let port = whose(&link, uid)?;
                delete(&mut netlink, &link)?;
                port
            }
            None => None,
        };
        forget(&mut netlink, port)?;
        let path = self.folder.join(uid);
        netns::remove(&path).map_err(system(format!("remove {}", path.display())))
    }

    /// All workloads that have something here, by uid. Who is declared by nobody is to be detached.
    pub fn found(&self) -> Result<Vec<Found>, NetworkError> {
        let _turn = self.turn.lock();
        let folder = &self.folder;
        let names = netns::names(folder);
        let names = names.map_err(system(format!("look into {}", folder.display())))?;
        let uids = names.into_iter().filter(|name| port::name(name).is_ok());
        let mut all: BTreeMap<String, Option<Ipv4Addr>> = uids.map(|uid| (uid, None)).collect();
        let ports = ports(&mut open()?)?.into_iter();
        all.extend(ports.map(|port| (port.uid, Some(port.address))));
        let all = all.into_iter();
        Ok(all.map(|(uid, address)| Found { uid, address }).collect())
    }

    /// Removes everything: all ports, the rules, the bridge. Forwarding stays on, as others may rely on it.
    pub fn remove(&self) -> Result<(), NetworkError> {
        for found in self.found()? {
            self.detach(&found.uid)?;
        }
        let _turn = self.turn.lock();
        let mut netlink = open()?;
        if let Some(bridge) = look(&mut netlink, BRIDGE)? {
            is_bridge(&bridge)?;
            delete(&mut netlink, &bridge)?;
        }
        rules::remove()
    }

    /// Makes whatever is missing.
    fn build(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        let bridge = self.bridge(netlink)?;
        forward().map_err(system("turn on IPv4 forwarding"))?;
        let mut ports = Vec::new();
        for link in netlink.links().map_err(system("list network interfaces"))? {
            match Port::read(&link.name, &link.alias) {
                Some(port) => ports.push((port, link)),
                // Made by an agent that ended before it said for whom.
                None if port::is_name(&link.name) && link.alias.is_empty() && is_ours(&link) => {
                    delete(netlink, &link)?;
                }
                None => {}
            }
        }
        rules::set_nat(self.subnet, BRIDGE)?;
        let guarded: Vec<_> = ports.iter().map(|(port, _)| port.clone()).collect();
        rules::set_guard(&guarded)?;
        for (port, link) in ports {
            if link.bridge != Some(bridge) || !link.up {
                plug(netlink, &port, link.index, bridge)?;
            }
        }
        Ok(())
    }

    /// The bridge, as it is to be.
    fn bridge(&self, netlink: &mut Netlink) -> Result<u32, NetworkError> {
        let gateway = self.subnet.gateway();
        // Otherwise it changes with its ports, and guests look for it where it was.
        let mac = Mac::of(gateway);
        let bridge = match look(netlink, BRIDGE)? {
            Some(bridge) => bridge,
            None => {
                self.is_free(netlink)?;
                let made = netlink.add_bridge(BRIDGE, mac);
                made.map_err(lacking(format!("make bridge `{BRIDGE}`"), "bridge"))?;
                look(netlink, BRIDGE)?.ok_or_else(|| gone(BRIDGE))?
            }
        };
        is_bridge(&bridge)?;
        quiet(BRIDGE).map_err(system(format!("turn off IPv6 on `{BRIDGE}`")))?;
        let attributes = match bridge.mac == mac.0 {
            true => vec![],
            false => vec![LinkAttribute::Address(mac.0.to_vec())],
        };
        let changed = netlink.change_link(bridge.index, attributes, true);
        changed.map_err(system(format!("set up bridge `{BRIDGE}`")))?;
        let given = netlink.set_address(bridge.index, gateway, self.subnet.prefix());
        given.map_err(system(format!("give `{BRIDGE}` the address {gateway}")))?;
        Ok(bridge.index)
    }

    /// Refuses a subnet in which this host is already by another interface.
    fn is_free(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        let told = netlink.addresses();
        let all = told.map_err(system("list this host's addresses"))?;
        match all
            .into_iter()
            .find(|address| self.subnet.contains(*address))
        {
            None => Ok(()),
            Some(address) => Err(NetworkError::InUse {
                subnet: self.subnet,
                address,
            }),
        }
    }

    /// Removes what has a port's name unless it is this very port and `fits`. True if that is there.
    fn clear(
        &self,
        netlink: &mut Netlink,
        port: &Port,
        fits: impl Fn(&Link) -> bool,
    ) -> Result<bool, NetworkError> {
        let Some(link) = look(netlink, &port.name)? else {
            return Ok(false);
        };
        let before = whose(&link, &port.uid)?;
        if before.as_ref() == Some(port) && fits(&link) {
            return Ok(true);
        }
        delete(netlink, &link)?;
        forget(netlink, before)?;
        Ok(false)
    }

    /// Lets frames through a port, once it is guarded.
    fn connect(&self, netlink: &mut Netlink, port: &Port) -> Result<(), NetworkError> {
        let link = look(netlink, &port.name)?.ok_or_else(|| gone(&port.name))?;
        if link.alias.is_empty() {
            let alias = vec![LinkAttribute::IfAlias(port.alias())];
            let named = netlink.change_link(link.index, alias, false);
            named.map_err(system(format!("give `{}` an alias", port.name)))?;
        }
        let bridge = look(netlink, BRIDGE)?.filter(|bridge| bridge.up);
        match bridge {
            Some(bridge) if rules::admit(port)? => {
                is_bridge(&bridge)?;
                plug(netlink, port, link.index, bridge.index)
            }
            // Somebody took it down.
            _ => self.build(netlink),
        }
    }

    /// A container's end.
    fn configure(&self, inside: &mut Netlink, address: Ipv4Addr) -> io::Result<()> {
        for name in ["lo", INNER] {
            let link = inside.link(name)?.ok_or(ErrorKind::NotFound)?;
            inside.change_link(link.index, vec![], true)?;
            if name == INNER {
                inside.set_address(link.index, address, self.subnet.prefix())?;
            }
        }
        inside.set_default_route(self.subnet.gateway())
    }
}

fn open() -> Result<Netlink, NetworkError> {
    Netlink::route().map_err(system("open a netlink socket"))
}

fn look(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetworkError> {
    let link = netlink.link(name);
    link.map_err(system(format!("look for network interface `{name}`")))
}

fn delete(netlink: &mut Netlink, link: &Link) -> Result<(), NetworkError> {
    let deleted = netlink.delete_link(link.index);
    deleted.map_err(system(format!("remove network interface `{}`", link.name)))
}

/// Makes a port one of the bridge's.
fn plug(netlink: &mut Netlink, port: &Port, index: u32, bridge: u32) -> Result<(), NetworkError> {
    let name = &port.name;
    quiet(name).map_err(system(format!("turn off IPv6 on `{name}`")))?;
    let plugged = netlink.change_link(index, vec![LinkAttribute::Controller(bridge)], true);
    plugged.map_err(|e| match e.raw_os_error() {
        Some(libc::EXFULL) => NetworkError::Ports(BRIDGE.to_owned()),
        _ => system(format!("put `{name}` on bridge `{BRIDGE}`"))(e),
    })
}

/// Guards a port no more that is gone. If it is not known what was allowed, the guard is made anew of what
/// there is.
fn forget(netlink: &mut Netlink, port: Option<Port>) -> Result<(), NetworkError> {
    match port {
        Some(port) if rules::forget(&port)? => Ok(()),
        _ => rules::set_guard(&ports(netlink)?),
    }
}

/// The ports that there are.
fn ports(netlink: &mut Netlink) -> Result<Vec<Port>, NetworkError> {
    let links = netlink.links().map_err(system("list network interfaces"))?;
    let ports = links.iter().map(|link| Port::read(&link.name, &link.alias));
    Ok(ports.flatten().collect())
}

/// The port that an interface with the name of `uid`'s is; none if it is half made.
fn whose(link: &Link, uid: &str) -> Result<Option<Port>, NetworkError> {
    match Port::read(&link.name, &link.alias) {
        Some(port) if port.uid == uid => Ok(Some(port)),
        None if link.alias.is_empty() && is_ours(link) => Ok(None),
        _ => Err(NetworkError::Foreign {
            name: link.name.clone(),
            what: format!("another's (alias `{}`)", link.alias),
        }),
    }
}

/// Whether it is of a kind that we make ports of.
fn is_ours(link: &Link) -> bool {
    matches!(link.kind, Some(InfoKind::Tun | InfoKind::Veth))
}

fn is_bridge(link: &Link) -> Result<(), NetworkError> {
    if link.kind == Some(InfoKind::Bridge) {
        return Ok(());
    }
    Err(NetworkError::Foreign {
        name: link.name.clone(),
        what: "no bridge".to_owned(),
    })
}

fn gone(name: &str) -> NetworkError {
    system(format!("use network interface `{name}`"))(ErrorKind::NotFound.into())
}

/// Lets this host pass packets on.
fn forward() -> io::Result<()> {
    set("/proc/sys/net/ipv4/ip_forward", "1")
}

/// Keeps IPv6 from an interface, where nobody has an IPv6 address: neither this host nor a guest can be reached
/// by it unguarded.
fn quiet(name: &str) -> io::Result<()> {
    match set(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        // This host has no IPv6 at all.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Sets a setting, unless it is so: it may be one that we may only read.
fn set(path: &str, value: &str) -> io::Result<()> {
    if fs::read_to_string(path)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value)
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
