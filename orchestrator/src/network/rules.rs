//! The rules for packets: what leaves the subnet does so with this host's address, and what comes in by a port
//! has the addresses of its workload. They are two tables named `skerry`, and nobody else's are touched.

use std::io;

use super::error::lacking;
use super::nft::{Base, Batch, Family, Hook, Meta, Order, Register, Rule};
use super::port::Port;
use super::{Mac, NetworkError, Subnet};

const TABLE: &str = "skerry";
const BEHIND: &str = "postrouting";
const BEFORE: &str = "prerouting";
/// Our ports.
const PORTS: &str = "ports";
/// Who may send from where.
const SOURCES: &str = "sources";

/// Behind routing (NF_INET_POST_ROUTING), where sources are rewritten.
const SNAT: Hook = Hook {
    kind: "nat",
    number: 4,
    priority: 100,
};
/// Before a bridge looks at a frame (NF_BR_PRE_ROUTING), and before all that rewrites it.
const GUARD: Hook = Hook {
    kind: "filter",
    number: 0,
    priority: -310,
};

/// Bytes of an interface's name, filled up with zeros.
const NAME: usize = 16;
/// How `nft` shows keys: its types of an interface's name, an Ethernet address and an IPv4 address.
const SHOW_NAME: u32 = 41;
const SHOW_SOURCE: u32 = (SHOW_NAME << 6 | 9) << 6 | 7;
/// A name, an Ethernet address and two zeros, an IPv4 address.
const SOURCE: usize = NAME + 8 + 4;

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];

fn name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    bytes
}

fn source(port: &Port) -> Vec<u8> {
    let Mac(mac) = port.mac();
    let mut bytes = name(&port.name);
    bytes.extend(mac);
    bytes.extend([0; 2]);
    bytes.extend(port.address.octets());
    bytes
}

/// Sends what leaves the subnet, by another interface than the bridge, with that interface's address.
pub fn set_nat(subnet: Subnet, bridge: &str) -> Result<(), NetworkError> {
    let value = Register::of(0);
    let within = |rule: Rule, offset, equal| {
        rule.payload(Base::Network, offset, 4, value)
            .mask(value, &subnet.mask().octets())
            .compare(value, equal, &subnet.base().octets())
    };
    let rule = within(within(Rule::default(), 12, true), 16, false)
        .meta(Meta::Oifname, value)
        .compare(value, false, &name(bridge))
        .masquerade();
    let batch = anew(Family::Ip).chain(BEHIND, SNAT).rule(BEHIND, rule);
    let sent = batch.send();
    sent.map_err(lacking("set up NAT with nf_tables", "nft_masq"))
}

/// Lets these ports send from their workloads' addresses, and nothing else: IPv4 and ARP, since this network
/// knows no other addresses.
pub fn set_guard(ports: &[Port]) -> Result<(), NetworkError> {
    let (key, mac, address) = (Register::of(0), Register::of(4), Register::of(6));
    let of_kind = |kind: [u8; 2]| {
        Rule::default()
            .payload(Base::Link, 12, 2, key)
            .compare(key, true, &kind)
            .meta(Meta::Iifname, key)
            .payload(Base::Link, 6, 6, mac)
    };
    let foreign = Rule::default()
        .meta(Meta::Iifname, key)
        .lookup(PORTS, key, false)
        .accept();
    let ip = of_kind(IPV4)
        .payload(Base::Network, 12, 4, address)
        .lookup(SOURCES, key, true)
        .accept();
    // ARP has the sender's hardware address once more.
    let arp = of_kind(ARP)
        .payload(Base::Network, 14, 4, address)
        .lookup(SOURCES, key, true)
        .payload(Base::Network, 8, 6, mac)
        .lookup(SOURCES, key, true)
        .accept();
    let rest = Rule::default().count().drop();
    let batch = anew(Family::Bridge)
        .set(PORTS, SHOW_NAME, NAME as u32, Order::Host)
        .set(SOURCES, SHOW_SOURCE, SOURCE as u32, Order::Wire)
        .chain(BEFORE, GUARD)
        .rule(BEFORE, foreign)
        .rule(BEFORE, ip)
        .rule(BEFORE, arp)
        .rule(BEFORE, rest);
    let names: Vec<_> = ports.iter().map(|port| name(&port.name)).collect();
    let sources: Vec<_> = ports.iter().map(source).collect();
    let sent = batch.add(PORTS, &names).add(SOURCES, &sources).send();
    sent.map_err(lacking("guard ports with nf_tables", "nf_tables"))
}

/// Guards one more port. False if the guard is gone, and has to be set anew.
pub fn admit(port: &Port) -> Result<bool, NetworkError> {
    let batch = Batch::of(Family::Bridge, TABLE);
    let batch = batch.add(PORTS, &[name(&port.name)]);
    found(batch.add(SOURCES, &[source(port)]).send())
}

/// Forgets a port that is gone. False if the guard does not know it, and has to be set anew.
pub fn forget(port: &Port) -> Result<bool, NetworkError> {
    let batch = Batch::of(Family::Bridge, TABLE);
    let batch = batch.take(SOURCES, &[source(port)]);
    found(batch.take(PORTS, &[name(&port.name)]).send())
}

fn found(sent: io::Result<()>) -> Result<bool, NetworkError> {
    match sent {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(lacking("guard a port with nf_tables", "nf_tables")(e)),
    }
}

/// Removes all rules.
pub fn remove() -> Result<(), NetworkError> {
    for family in [Family::Ip, Family::Bridge] {
        let sent = Batch::of(family, TABLE).table().delete_table().send();
        sent.map_err(lacking("remove rules of nf_tables", "nf_tables"))?;
    }
    Ok(())
}

/// The table, with nothing in it, whatever there was.
fn anew(family: Family) -> Batch {
    Batch::of(family, TABLE).table().delete_table().table()
}
