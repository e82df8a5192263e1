//! The host's own addresses and its way to the outside, and elastic addresses on it. Those that are ours have a
//! label, by which an agent that knows nothing finds them again.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::listeners::Listeners;
use crate::network::NetworkError;
use crate::network::error::system;
use crate::network::links::Link;
use crate::network::netlink::Netlink;

/// What `ip address` shows beside an elastic address.
const LABEL: &str = "skerry:eip";
/// An elastic address is alone.
const ALONE: u8 = 32;

/// An address of this host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// It.
    pub address: Ipv4Addr,
    /// How many bits its subnet's addresses share.
    pub prefix: u8,
    /// The interface.
    pub interface: String,
    /// Whether that is a bridge.
    pub bridge: bool,
    /// It is an elastic one that we put there.
    pub elastic: bool,
}

/// Addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first one.
    pub base: Ipv4Addr,
    /// These bits.
    pub mask: Ipv4Addr,
}

impl Range {
    /// That of an address, of which so many bits are shared.
    pub fn of(address: Ipv4Addr, prefix: u8) -> Range {
        let others = 32u32.saturating_sub(prefix.into());
        let mask = u32::MAX.checked_shl(others).unwrap_or(0);
        Range {
            base: (u32::from(address) & mask).into(),
            mask: mask.into(),
        }
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & u32::from(self.mask) == u32::from(self.base)
    }
}

/// What this host has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ground {
    /// Its addresses.
    pub held: Vec<Held>,
    /// All interfaces.
    pub interfaces: BTreeSet<String>,
    /// The interface of its default route.
    pub uplink: Option<String>,
    /// What its programs listen on, as far as somebody wants to know it.
    pub listeners: Listeners,
    /// Workloads' ports on bridges, by their interfaces' numbers, and addresses behind them.
    pub ports: Vec<(u32, Ipv4Addr)>,
}

impl Ground {
    /// Looks.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn look() -> Result<Ground, NetworkError> {
        look().map_err(system("list this host's addresses and routes"))
    }

    /// The bridge that an address is behind, if it is a workload's, and the range of its addresses.
    pub fn bridge_of(&self, address: Ipv4Addr) -> Option<(&str, Range)> {
        let bridges = self.held.iter().filter(|held| held.bridge);
        let ranges = bridges.map(|held| (held, Range::of(held.address, held.prefix)));
        let near = ranges.filter(|(held, range)| held.prefix < ALONE && range.contains(address));
        let nearest = near.max_by_key(|(held, _)| held.prefix);
        nearest.map(|(held, range)| (held.interface.as_str(), range))
    }

    /// The interface that has an address as the host's own.
    pub fn own(&self, address: Ipv4Addr) -> Option<&str> {
        let own = |held: &&Held| held.address == address && !held.elastic;
        self.held
            .iter()
            .find(own)
            .map(|held| held.interface.as_str())
    }
}

fn look() -> io::Result<Ground> {
    let mut netlink = Netlink::route()?;
    let links = netlink.links()?;
    let named = |index: u32| links.iter().find(|link| link.index == index);
    let mut ground = Ground {
        interfaces: links.iter().map(|link| link.name.clone()).collect(),
        ports: links.iter().flat_map(ports).collect(),
        ..Ground::default()
    };
    for message in addresses(&mut netlink)? {
        let Some((address, elastic)) = read(&message) else {
            continue;
        };
        if let Some(link) = named(message.header.index) {
            ground.held.push(Held {
                address,
                prefix: message.header.prefix_len,
                interface: link.name.clone(),
                bridge: link.kind == Some(InfoKind::Bridge),
                elastic,
            });
        }
    }
    let uplink = default_route(&mut netlink)?.and_then(named);
    ground.uplink = uplink.map(|link| link.name.clone());
    Ok(ground)
}

/// The addresses behind a workload's port, which are in its alias.
fn ports(link: &Link) -> Vec<(u32, Ipv4Addr)> {
    let mut words = link.alias.split(' ');
    if link.bridge.is_none() || words.next() != Some("skerry") {
        return Vec::new();
    }
    let addresses = words.filter_map(|word| word.parse().ok());
    addresses.map(|address| (link.index, address)).collect()
}

/// Whether this host's rules see what its bridges pass on, too (the module br_netfilter). A packet that is handed on
/// to a neighbour stays on the bridge then.
pub fn bridges_are_seen() -> bool {
    let seen = std::fs::read("/proc/sys/net/bridge/bridge-nf-call-iptables");
    seen.is_ok_and(|text| text.starts_with(b"1"))
}

/// Lets a port send out what came in by it, or not any more: so a workload reaches itself. The port may be gone.
///
/// # Errors
/// If the kernel refuses.
pub fn reflect(port: u32, on: bool) -> Result<(), NetworkError> {
    let mode = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(on)]);
    let info = vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(mode),
    ];
    let set = || {
        let mut netlink = Netlink::route()?;
        netlink.change_link(port, vec![LinkAttribute::LinkInfo(info)], false)
    };
    match set() {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other.map_err(system(format!("let port {port} reach itself"))),
    }
}

fn addresses(netlink: &mut Netlink) -> io::Result<Vec<AddressMessage>> {
    let mut all = AddressMessage::default();
    all.header.family = AddressFamily::Inet;
    let found = netlink.list(RouteNetlinkMessage::GetAddress(all))?;
    let addresses = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(found) => Some(found),
        _ => None,
    });
    Ok(addresses.collect())
}

/// An address, and whether it is an elastic one of ours.
fn read(message: &AddressMessage) -> Option<(Ipv4Addr, bool)> {
    let mut local = None;
    let mut elastic = false;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
            AddressAttribute::Label(label) => elastic = label == LABEL,
            _ => {}
        }
    }
    Some((local?, elastic && message.header.prefix_len == ALONE))
}

/// The interface of the default route with the smallest metric.
fn default_route(netlink: &mut Netlink) -> io::Result<Option<u32>> {
    let mut all = RouteMessage::default();
    all.header.address_family = AddressFamily::Inet;
    let mut best: Option<(u32, u32)> = None;
    for message in netlink.list(RouteNetlinkMessage::GetRoute(all))? {
        let RouteNetlinkMessage::NewRoute(route) = message else {
            continue;
        };
        let header = &route.header;
        if header.destination_prefix_length != 0
            || header.table != RouteHeader::RT_TABLE_MAIN
            || header.kind != RouteType::Unicast
        {
            continue;
        }
        let (mut metric, mut interface) = (0, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Priority(number) => metric = *number,
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::Destination(RouteAddress::Inet(to)) if !to.is_unspecified() => {
                    interface = None;
                    break;
                }
                _ => {}
            }
        }
        if let Some(index) = interface
            && best.is_none_or(|(least, _)| metric < least)
        {
            best = Some((metric, index));
        }
    }
    Ok(best.map(|(_, index)| index))
}

/// Puts these addresses on their interfaces, and takes all other elastic ones away.
///
/// # Errors
/// If the kernel refuses.
pub fn set<'a>(
    wanted: impl Iterator<Item = (&'a str, Ipv4Addr)>,
    ground: &Ground,
) -> Result<(), NetworkError> {
    let wanted: BTreeSet<_> = wanted.collect();
    let elastic = ground.held.iter().filter(|held| held.elastic);
    let found: BTreeSet<_> = elastic
        .map(|held| (held.interface.as_str(), held.address))
        .collect();
    if wanted == found {
        return Ok(());
    }
    let mut netlink = Netlink::route().map_err(system("open a netlink socket"))?;
    for (interface, address) in found.difference(&wanted) {
        let taken = take(&mut netlink, interface, *address);
        taken.map_err(system(format!("take {address} from `{interface}`")))?;
    }
    for (interface, address) in wanted.difference(&found) {
        let given = give(&mut netlink, interface, *address);
        given.map_err(system(format!("give `{interface}` the address {address}")))?;
    }
    Ok(())
}

fn index(netlink: &mut Netlink, interface: &str) -> io::Result<u32> {
    let link = netlink.link(interface)?;
    Ok(link.ok_or(io::ErrorKind::NotFound)?.index)
}

fn give(netlink: &mut Netlink, interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index(netlink, interface)?;
    message.header.prefix_len = ALONE;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
        AddressAttribute::Label(LABEL.to_owned()),
    ];
    netlink.tell(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn take(netlink: &mut Netlink, interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let index = index(netlink, interface)?;
    for message in addresses(netlink)? {
        if message.header.index == index && read(&message) == Some((address, true)) {
            match netlink.tell(RouteNetlinkMessage::DelAddress(message), 0) {
                Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                other => other?,
            }
        }
    }
    Ok(())
}
