//! A DHCP server (RFC 2131) that knows everybody: an address is that of the hardware address that asks, which is the
//! one that was declared, and nobody else gets any. Nothing is kept.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use dhcproto::v4::{DhcpOption, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Encodable};
use hickory_proto::rr::Name;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::task::spawn_blocking;

use super::super::netlink::Netlink;
use super::super::{Mac, Net, Registry, Who, zone};

const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// Seconds until an address is asked for again.
const LEASE: u32 = 3600;
/// Bytes of a frame's contents: what bridges and their ports have.
const MTU: u16 = 1500;
/// No client sends more.
const MOST: usize = 1500;
/// Clients find the magic and the options of shorter ones strange (RFC 1542 §2.1).
const LEAST: usize = 300;

/// What is answered, and where to.
#[derive(Debug)]
struct Reply {
    message: Message,
    to: Ipv4Addr,
    /// Who has that address: it cannot say so itself yet.
    mac: Option<Mac>,
}

/// Serves a network on its bridge, until something fails.
pub async fn serve(registry: Arc<Registry>, net: Net, index: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(net.bridge.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER);
    socket.bind(&SocketAddr::V4(any).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let mut bytes = [0; MOST];
    loop {
        let (n, _) = socket.recv_from(&mut bytes).await?;
        let asked = bytes
            .get(..n)
            .and_then(|bytes| Message::from_bytes(bytes).ok());
        let Some(reply) = asked.and_then(|asked| answer(&registry, &net, &asked)) else {
            continue;
        };
        let Ok(mut bytes) = reply.message.to_vec() else {
            continue;
        };
        bytes.resize(bytes.len().max(LEAST), 0);
        if let Some(mac) = reply.mac {
            let known = move || Netlink::route()?.set_neighbour(index, reply.to, mac);
            let known = spawn_blocking(known).await;
            known.unwrap_or_else(|e| Err(e.into()))?;
        }
        let to = SocketAddr::from((reply.to, CLIENT));
        if let Err(e) = socket.send_to(&bytes, to).await {
            log::debug!("{to} on `{}` gets no answer: {e}", net.bridge);
        }
    }
}

/// What is answered to a message that came by a network's bridge, if anything is.
fn answer(registry: &Registry, net: &Net, asked: &Message) -> Option<Reply> {
    let mac: [u8; 6] = asked.chaddr().try_into().ok()?;
    let mac = Mac(mac);
    let relayed = !asked.giaddr().is_unspecified() || asked.hops() > 0;
    if asked.opcode() != Opcode::BootRequest || asked.htype() != HType::Eth || relayed {
        return None;
    }
    let address = mac.address(net.subnet)?;
    let who = registry.whose(address.into())?;
    let gateway = net.subnet.gateway();
    let elsewhere = match asked.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server != gateway,
        _ => false,
    };
    if elsewhere {
        return None;
    }
    let wanted = match asked.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(wanted)) => *wanted,
        _ => asked.ciaddr(),
    };
    let kind = match asked.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if wanted == address => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        _ => return None,
    };
    let informs = asked.opts().has_msg_type(MessageType::Inform);
    let refused = kind == MessageType::Nak;
    let mut message = Message::new_with_id(
        asked.xid(),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &mac.0,
    );
    message
        .set_opcode(Opcode::BootReply)
        .set_flags(asked.flags());
    if !refused {
        message.set_ciaddr(asked.ciaddr());
        if !informs {
            message.set_yiaddr(address);
        }
    }
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(gateway));
    if !refused {
        for option in told(net, &who) {
            options.insert(option);
        }
        if !informs {
            options.insert(DhcpOption::AddressLeaseTime(LEASE));
        }
    }
    let (to, mac) = match () {
        () if refused => (Ipv4Addr::BROADCAST, None),
        // It has its address already, and no other is answered.
        () if !asked.ciaddr().is_unspecified() => (address, Some(mac)),
        () if asked.flags().broadcast() => (Ipv4Addr::BROADCAST, None),
        () => (address, Some(mac)),
    };
    Some(Reply { message, to, mac })
}

/// What a workload is told beside its address.
fn told(net: &Net, who: &Who) -> Vec<DhcpOption> {
    let (subnet, gateway) = (net.subnet, net.subnet.gateway());
    let last = Ipv4Addr::from(u32::from(subnet.last()) + 1);
    let domain = zone::search(&who.tenant);
    let mut all = vec![
        DhcpOption::SubnetMask(subnet.mask()),
        DhcpOption::BroadcastAddr(last),
        DhcpOption::Router(vec![gateway]),
        DhcpOption::DomainNameServer(vec![gateway]),
        DhcpOption::Hostname(who.name.clone()),
        DhcpOption::InterfaceMtu(MTU),
    ];
    if let Ok(name) = Name::from_ascii(format!("{domain}.")) {
        all.push(DhcpOption::DomainSearch(vec![name]));
    }
    all.push(DhcpOption::DomainName(domain));
    all
}

#[cfg(test)]
#[path = "dhcp_test.rs"]
mod tests;
