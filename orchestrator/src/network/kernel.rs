//! What the kernel has of our networks, and how it is asked for and made.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;

use netlink_packet_route::link::{InfoKind, LinkAttribute};

use super::error::{lacking, system};
use super::links::Link;
use super::net::BRIDGE;
use super::netlink::Netlink;
use super::port::{self, Port};
use super::{METADATA, Mac, Net, NetworkError};

pub fn open() -> Result<Netlink, NetworkError> {
    Netlink::route().map_err(system("open a netlink socket"))
}

pub fn look(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetworkError> {
    let link = netlink.link(name);
    link.map_err(system(format!("look for network interface `{name}`")))
}

pub fn links(netlink: &mut Netlink) -> Result<Vec<Link>, NetworkError> {
    netlink.links().map_err(system("list network interfaces"))
}

pub fn delete(netlink: &mut Netlink, link: &Link) -> Result<(), NetworkError> {
    let deleted = netlink.delete_link(link.index);
    deleted.map_err(system(format!("remove network interface `{}`", link.name)))
}

/// The ports that there are.
pub fn ports(netlink: &mut Netlink) -> Result<Vec<Port>, NetworkError> {
    let links = links(netlink)?;
    let ports = links.iter().map(|link| Port::read(&link.name, &link.alias));
    Ok(ports.flatten().collect())
}

/// The bridges of networks that there are.
pub fn bridges(netlink: &mut Netlink) -> Result<Vec<(Net, Link)>, NetworkError> {
    Ok(bridges_of(links(netlink)?))
}

/// Those among some links.
pub fn bridges_of(links: Vec<Link>) -> Vec<(Net, Link)> {
    let bridges = links.into_iter();
    let bridges = bridges.filter(|link| link.kind == Some(InfoKind::Bridge));
    let nets = bridges.filter_map(|link| Some((Net::read(&link.name, &link.alias)?, link)));
    nets.collect()
}

/// The port that an interface with the name of `uid`'s is; none if it is half made.
pub fn whose(link: &Link, uid: &str) -> Result<Option<Port>, NetworkError> {
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
pub fn is_ours(link: &Link) -> bool {
    matches!(link.kind, Some(InfoKind::Tun | InfoKind::Veth))
}

/// Whether it was made by an agent that ended before it said for whom.
pub fn is_half_made(link: &Link) -> bool {
    port::is_name(&link.name) && link.alias.is_empty() && is_ours(link)
}

/// Refuses what is no bridge of this network.
pub fn is_bridge(link: &Link, net: &Net) -> Result<(), NetworkError> {
    let foreign = |what: String| NetworkError::Foreign {
        name: link.name.clone(),
        what,
    };
    if link.kind != Some(InfoKind::Bridge) {
        return Err(foreign("no bridge".to_owned()));
    }
    match Net::read(&link.name, &link.alias) {
        Some(found) if found.id != net.id => Err(foreign(format!("network {}'s", found.id))),
        // An agent before gave it no alias.
        None if !link.alias.is_empty() => {
            Err(foreign(format!("another's (alias `{}`)", link.alias)))
        }
        _ => Ok(()),
    }
}

pub fn gone(name: &str) -> NetworkError {
    system(format!("use network interface `{name}`"))(ErrorKind::NotFound.into())
}

/// The bridge of a network, as it is to be.
pub fn set_bridge(netlink: &mut Netlink, net: &Net) -> Result<u32, NetworkError> {
    let (name, gateway) = (&net.bridge, net.subnet.gateway());
    // Otherwise it changes with its ports, and guests look for it where it was.
    let mac = Mac::of(gateway);
    let before = look(netlink, name)?;
    let is_new = before.is_none();
    let bridge = match before {
        Some(bridge) => bridge,
        None => {
            let made = netlink.add_bridge(name, mac);
            made.map_err(lacking(format!("make bridge `{name}`"), "bridge"))?;
            look(netlink, name)?.ok_or_else(|| gone(name))?
        }
    };
    is_bridge(&bridge, net)?;
    match net.subnet6 {
        None => quiet(name).map_err(system(format!("turn off IPv6 on `{name}`")))?,
        Some(_) => speak(name).map_err(system(format!("turn on IPv6 on `{name}`")))?,
    }
    let mut attributes = Vec::new();
    if bridge.mac != mac.0 {
        attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    if bridge.alias != net.alias() {
        attributes.push(LinkAttribute::IfAlias(net.alias()));
    }
    let changed = netlink.change_link(bridge.index, attributes, true);
    changed.map_err(system(format!("set up bridge `{name}`")))?;
    for all in addresses(net) {
        let given = match is_new {
            true => netlink.add_addresses(bridge.index, &all),
            false => netlink.set_addresses(bridge.index, &all),
        };
        given.map_err(system(format!("give `{name}` the address {gateway}")))?;
    }
    Ok(bridge.index)
}

/// The addresses of a network's bridge, by family.
fn addresses(net: &Net) -> Vec<Vec<(IpAddr, u8)>> {
    let gateway = (net.subnet.gateway().into(), net.subnet.prefix());
    let mut all = vec![vec![gateway, (METADATA.into(), 32)]];
    if let Some(subnet6) = net.subnet6 {
        all.push(vec![(subnet6.gateway().into(), subnet6.prefix())]);
    }
    all
}

/// All links and addresses of this host, as they were at a moment.
pub struct Seen {
    /// The links.
    pub links: Vec<Link>,
    addresses: Vec<(u32, IpAddr, u8)>,
}

impl Seen {
    /// As they are now.
    pub fn now(netlink: &mut Netlink) -> Result<Seen, NetworkError> {
        let told = netlink.addresses();
        Ok(Seen {
            links: links(netlink)?,
            addresses: told.map_err(system("list this host's addresses"))?,
        })
    }

    /// The bridge of a network, if it is as it is to be.
    pub fn fitting(&self, net: &Net) -> Option<&Link> {
        let bridge = self.links.iter().find(|link| link.name == net.bridge)?;
        let mut wanted = addresses(net);
        wanted.iter_mut().for_each(|all| all.sort());
        // Of either family, these and no more.
        let of = |six: bool| {
            let all = self.addresses.iter().filter(|(index, address, _)| {
                let own = matches!(address, IpAddr::V6(own) if own.is_unicast_link_local());
                *index == bridge.index && address.is_ipv6() == six && !own
            });
            let mut all: Vec<_> = all.map(|(_, address, len)| (*address, *len)).collect();
            all.sort();
            all
        };
        let addressed =
            of(false) == wanted[0] && of(true) == wanted.get(1).cloned().unwrap_or_default();
        let mac = Mac::of(net.subnet.gateway()).0;
        let fits = bridge.up
            && bridge.kind == Some(InfoKind::Bridge)
            && bridge.alias == net.alias()
            && bridge.mac == mac;
        (fits && addressed).then_some(bridge)
    }
}

/// Whether a network's bridge and ports are as they are to be.
pub fn fits(netlink: &mut Netlink, nets: &[Net]) -> Result<bool, NetworkError> {
    let seen = Seen::now(netlink)?;
    let links = &seen.links;
    for net in nets {
        let Some(bridge) = seen.fitting(net) else {
            return Ok(false);
        };
        let mut ports = links.iter().filter(|link| {
            Port::read(&link.name, &link.alias).is_some_and(|port| port.net == net.id)
        });
        if ports.any(|port| port.bridge != Some(bridge.index) || !port.up) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a port one of a bridge's.
pub fn plug(
    netlink: &mut Netlink,
    port: &Port,
    index: u32,
    (bridge, named): (u32, &str),
) -> Result<(), NetworkError> {
    let name = &port.name;
    quiet(name).map_err(system(format!("turn off IPv6 on `{name}`")))?;
    let plugged = netlink.change_link(index, vec![LinkAttribute::Controller(bridge)], true);
    plugged.map_err(|e| match e.raw_os_error() {
        Some(libc::EXFULL) => NetworkError::Ports(named.to_owned()),
        _ => system(format!("put `{name}` on bridge `{named}`"))(e),
    })
}

/// Refuses a network whose addresses are others' on this host already.
pub fn is_free(netlink: &mut Netlink, net: &Net, others: &[Net]) -> Result<(), NetworkError> {
    let overlap = |subnet: String, other: String| NetworkError::Overlap { subnet, other };
    for other in others.iter().filter(|other| other.id != net.id) {
        let whose = match other.bridge.as_str() {
            BRIDGE => "the network `default`".to_owned(),
            _ => format!("another network ({})", other.subnet),
        };
        if net.subnet.meets(other.subnet.base(), other.subnet.prefix()) {
            return Err(overlap(net.subnet.to_string(), whose));
        }
        if let (Some(own), Some(its)) = (net.subnet6, other.subnet6)
            && own.meets(its.base(), its.prefix())
        {
            return Err(overlap(own.to_string(), whose));
        }
    }
    let told = netlink.addresses();
    let told = told.map_err(system("list this host's addresses"))?;
    for (index, address, len) in told {
        let subnet = match address {
            IpAddr::V4(address) => Some(net.subnet)
                .filter(|subnet| subnet.meets(address, len))
                .map(|subnet| subnet.to_string()),
            IpAddr::V6(address) => net
                .subnet6
                .filter(|subnet| subnet.meets(address, len))
                .map(|subnet| subnet.to_string()),
        };
        // Its own bridge may have it.
        if let Some(subnet) = subnet
            && !is_ours_by(netlink, index, net, others)?
        {
            return Err(NetworkError::InUse {
                subnet,
                address: format!("{address}/{len}"),
            });
        }
    }
    Ok(())
}

/// Whether a link is the bridge of one of these networks.
fn is_ours_by(
    netlink: &mut Netlink,
    index: u32,
    net: &Net,
    others: &[Net],
) -> Result<bool, NetworkError> {
    for net in others.iter().chain([net]) {
        if look(netlink, &net.bridge)?.is_some_and(|link| link.index == index) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lets this host pass packets on.
pub fn forward() -> io::Result<()> {
    set("/proc/sys/net/ipv4/ip_forward", "1")
}

/// The same for IPv6. A host that passes packets on listens to no routers, unless it is told to: those that it
/// listened to until now it goes on to listen to.
pub fn forward6() -> io::Result<()> {
    const ALL: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
    if fs::read_to_string(ALL)?.trim() == "1" {
        return Ok(());
    }
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf")? {
        let path = entry?.path().join("accept_ra");
        // An interface may be gone by now.
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            let _ = fs::write(&path, "2");
        }
    }
    fs::write(ALL, "1")
}

/// Keeps IPv6 from an interface, where nobody has an IPv6 address: neither this host nor a guest can be reached
/// by it unguarded.
pub fn quiet(name: &str) -> io::Result<()> {
    match set(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        // This host has no IPv6 at all.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Lets this host speak IPv6 on a bridge, where it is the router and listens to no other.
pub fn speak(name: &str) -> io::Result<()> {
    let at = format!("/proc/sys/net/ipv6/conf/{name}");
    set(&format!("{at}/accept_ra"), "0")?;
    set(&format!("{at}/disable_ipv6"), "0")
}

/// Sets a setting, unless it is so: it may be one that we may only read.
fn set(path: &str, value: &str) -> io::Result<()> {
    if fs::read_to_string(path)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value)
}
