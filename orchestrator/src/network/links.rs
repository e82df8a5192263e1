//! Links, their addresses and routes: the questions that we ask, as netlink messages.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Mac;
use super::netlink::Netlink;

/// What IFLA_INFO_DATA of a tun or tap has under this number: whether it has several queues
/// (IFLA_TUN_MULTI_QUEUE of <linux/if_link.h>).
const TUN_MULTI_QUEUE: u16 = 7;

/// A link.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What kind of link it is, unless it is a device.
    pub kind: Option<InfoKind>,
    /// Words that somebody left on it.
    pub alias: String,
    /// The bridge that it is a port of, if it is.
    pub bridge: Option<u32>,
    /// It is to be used.
    pub up: bool,
    /// It is a tap of several queues.
    pub multi_queue: bool,
    /// Its hardware address.
    pub mac: Vec<u8>,
}

impl Link {
    fn read(message: LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Link::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Controller(index) => link.bridge = Some(index),
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::LinkInfo(all) => all.into_iter().for_each(|info| match info {
                    LinkInfo::Kind(kind) => link.kind = Some(kind),
                    LinkInfo::Data(InfoData::Tun(data)) => {
                        link.multi_queue = data.iter().any(|nla| {
                            let mut value = vec![0; nla.value_len()];
                            nla.emit_value(&mut value);
                            nla.kind() == TUN_MULTI_QUEUE && value.first() == Some(&1)
                        });
                    }
                    _ => {}
                }),
                _ => {}
            }
        }
        link
    }
}

impl Netlink {
    /// The link of a name.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(all) => Ok(read_links(all).pop()),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All links.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let all = self.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(read_links(all))
    }

    /// Makes a bridge.
    pub fn add_bridge(&mut self, name: &str, mac: Mac) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.tell(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Makes a pair of links, of which one, `inner` with the address `mac`, is in another namespace.
    pub fn add_veth(
        &mut self,
        name: &str,
        alias: &str,
        (inner, mac): (&str, Mac),
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(inner.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::IfAlias(alias.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.tell(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Changes a link's attributes, and lets it be used if it is to be `up`.
    pub fn change_link(
        &mut self,
        index: u32,
        attributes: Vec<LinkAttribute>,
        up: bool,
    ) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes = attributes;
        self.tell(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Removes a link, which may be gone.
    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.tell(RouteNetlinkMessage::DelLink(message), 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Gives a link addresses of one family, and takes all others of it away but those of its own link. What has
    /// no more than one address in its subnet is this host's alone: nothing is sent from there unasked.
    pub fn set_addresses(&mut self, index: u32, all: &[(IpAddr, u8)]) -> io::Result<()> {
        let Some((first, _)) = all.first() else {
            return Ok(());
        };
        let family = family(*first);
        self.add_addresses(index, all)?;
        let mut every = AddressMessage::default();
        every.header.family = family;
        for found in self.list(RouteNetlinkMessage::GetAddress(every))? {
            let RouteNetlinkMessage::NewAddress(found) = found else {
                continue;
            };
            let is_wanted = match local(&found) {
                Some(IpAddr::V6(address)) if address.is_unicast_link_local() => true,
                Some(address) => all.contains(&(address, found.header.prefix_len)),
                None => true,
            };
            if found.header.index == index && found.header.family == family && !is_wanted {
                match self.tell(RouteNetlinkMessage::DelAddress(found), 0) {
                    Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Gives a link addresses beside those that it has.
    pub fn add_addresses(&mut self, index: u32, all: &[(IpAddr, u8)]) -> io::Result<()> {
        for (address, len) in all {
            self.tell(
                RouteNetlinkMessage::NewAddress(address_message(index, *address, *len)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )?;
        }
        Ok(())
    }

    /// All addresses of this host but the loopback's, with their links and lengths.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, IpAddr, u8)>> {
        let found = self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let found = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(found) => Some(found),
            _ => None,
        });
        let all = found.filter_map(|found| {
            let address = local(&found)?;
            Some((found.header.index, address, found.header.prefix_len))
        });
        Ok(all
            .filter(|(_, address, _)| !address.is_loopback())
            .collect())
    }

    /// Says who has an address on a link, so that nobody has to be asked.
    pub fn set_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: Mac) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Reachable;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        ];
        self.tell(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Sends what is for one address straight to a link.
    #[cfg(test)]
    pub fn set_link_route(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Link;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(address)),
            RouteAttribute::Oif(index),
        ];
        self.tell(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Sends what is for nobody near to a gateway.
    pub fn set_default_route(&mut self, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        let gateway = match gateway {
            IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
            IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
        };
        message.attributes = vec![RouteAttribute::Gateway(gateway)];
        self.tell(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn address_message(index: u32, address: IpAddr, len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.index = index;
    message.header.prefix_len = len;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    match address {
        IpAddr::V4(_) if len == 32 => message.header.scope = AddressScope::Host,
        IpAddr::V4(address) => {
            let last =
                Ipv4Addr::from(u32::from(address) | u32::MAX.checked_shr(len.into()).unwrap_or(0));
            message.attributes.push(AddressAttribute::Broadcast(last));
        }
        // Nobody else can have it: it can be used at once.
        IpAddr::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    message
}

/// The address that a message is about.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    // IPv6 addresses without a peer have no local one.
    of(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
    .or_else(|| {
        of(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn read_links(all: Vec<RouteNetlinkMessage>) -> Vec<Link> {
    let links = all.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::read(link)),
        _ => None,
    });
    links.collect()
}
