//! Whether workloads can have networks: tried in a network namespace of its own, so that the host's is left alone.

use std::fs::File;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{Finding, good, limited};

/// Asks nf_tables for the number of its rules' generation (<linux/netfilter/nf_tables.h>): a header of 16 bytes,
/// and a family, a version and a resource.
const GENERATION: u16 = (10 << 8) | 16;

/// All that networks are made of.
pub fn look() -> Vec<Finding> {
    let tried = std::thread::spawn(|| {
        // SAFETY: descriptors stay shared, and the thread ends here.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        Ok([
            link("trial0", InfoKind::Bridge, None),
            link("trial1", InfoKind::Veth, Some("trial2")),
            nf_tables(),
        ])
    });
    let tried: io::Result<[io::Result<()>; 3]> = tried
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the trial ended")));
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    let tun = told(
        "tun",
        tun.map(drop),
        "VMs have no networks without it: load the module tun; in a container, pass /dev/net/tun in",
    );
    let [bridge, veth, nft] = match tried {
        Ok(tried) => tried,
        Err(e) => {
            let remedy = "be root: networks are made by who may make network namespaces";
            return vec![
                tun,
                limited("network", format!("cannot be tried: {e}"), remedy),
            ];
        }
    };
    vec![
        tun,
        told(
            "bridge",
            bridge,
            "there are no networks without it: load the module bridge",
        ),
        told(
            "veth",
            veth,
            "containers have no networks without it: load the module veth",
        ),
        told(
            "nf_tables",
            nft,
            "there is no NAT and no guard without it: load the module nf_tables",
        ),
    ]
}

fn told(name: &'static str, tried: io::Result<()>, remedy: &'static str) -> Finding {
    match tried {
        Ok(()) => good(name, "it can be used"),
        Err(e) => limited(name, format!("it cannot be used: {e}"), remedy),
    }
}

/// Makes a link.
fn link(name: &str, kind: InfoKind, peer: Option<&str>) -> io::Result<()> {
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(peer.map(|name| {
        let mut other = LinkMessage::default();
        other.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other)))
    }));
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(info),
    ];
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let inner = NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message));
    let mut message = NetlinkMessage::new(header, inner);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    ask(NETLINK_ROUTE, &bytes)
}

/// Asks nf_tables for something that it always knows.
fn nf_tables() -> io::Result<()> {
    let mut bytes = 20u32.to_ne_bytes().to_vec();
    bytes.extend(GENERATION.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend([0; 12]);
    ask(NETLINK_NETFILTER, &bytes)
}

/// Sends a question; an error is one.
fn ask(protocol: isize, bytes: &[u8]) -> io::Result<()> {
    const ERROR: u16 = 2;
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let word = |at: usize| answer.get(at..at + 4).and_then(|word| word.try_into().ok());
    let kind = answer.get(4..6).and_then(|word| word.try_into().ok());
    match (
        kind.map(u16::from_ne_bytes),
        word(16).map(i32::from_ne_bytes),
    ) {
        (Some(ERROR), Some(code)) if code != 0 => {
            Err(io::Error::from_raw_os_error(code.saturating_neg()))
        }
        _ => Ok(()),
    }
}
