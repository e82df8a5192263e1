//! Links, their addresses and routes: the questions that we ask, as netlink messages.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;
use super::{METADATA, Mac};

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

    /// Gives a link an IPv4 address, and takes all others away.
    pub fn set_address(&mut self, index: u32, address: Ipv4Addr, len: u8) -> io::Result<()> {
        self.add_address(index, address, len)?;
        let mut all = AddressMessage::default();
        all.header.family = AddressFamily::Inet;
        for found in self.list(RouteNetlinkMessage::GetAddress(all))? {
            let RouteNetlinkMessage::NewAddress(found) = found else {
                continue;
            };
            let is = |address| {
                found
                    .attributes
                    .contains(&AddressAttribute::Local(IpAddr::V4(address)))
            };
            let is_wanted = found.header.prefix_len == len && is(address) || is(METADATA);
            if found.header.index == index && !is_wanted {
                match self.tell(RouteNetlinkMessage::DelAddress(found), 0) {
                    Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Gives an interface one more address.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, len: u8) -> io::Result<()> {
        let mut wanted = AddressMessage::default();
        wanted.header.family = AddressFamily::Inet;
        wanted.header.index = index;
        wanted.header.prefix_len = len;
        let last =
            Ipv4Addr::from(u32::from(address) | u32::MAX.checked_shr(len.into()).unwrap_or(0));
        wanted.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(address)),
            AddressAttribute::Address(IpAddr::V4(address)),
            AddressAttribute::Broadcast(last),
        ];
        self.tell(
            RouteNetlinkMessage::NewAddress(wanted),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// All IPv4 addresses of this host.
    pub fn addresses(&mut self) -> io::Result<Vec<Ipv4Addr>> {
        let mut all = AddressMessage::default();
        all.header.family = AddressFamily::Inet;
        let found = self.list(RouteNetlinkMessage::GetAddress(all))?;
        let attributes = found.into_iter().flat_map(|message| match message {
            RouteNetlinkMessage::NewAddress(found) => found.attributes,
            _ => Vec::new(),
        });
        let local = attributes.filter_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(address),
            _ => None,
        });
        Ok(local.collect())
    }

    /// Sends what is for nobody near to a gateway.
    pub fn set_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
        self.tell(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }
}

fn read_links(all: Vec<RouteNetlinkMessage>) -> Vec<Link> {
    let links = all.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::read(link)),
        _ => None,
    });
    links.collect()
}
