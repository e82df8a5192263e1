//! Whether somebody else has changed rules: by a number of the kernel's that counts all changes, and by how many rules
//! there are in our table.

use std::io;

use crate::network::netlink::{HEADER, Netlink};

/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const NEW_GENERATION: u16 = SUBSYSTEM << 8 | 15;
const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// NFPROTO_IPV4.
const IPV4: u8 = 2;

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    // It is a header and a table's name.
    let len = u32::try_from(HEADER + 4 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    // A sequence number and a port.
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// The number of changes.
pub fn now() -> io::Result<u32> {
    let netlink = Netlink::netfilter()?;
    netlink.send(&message(GET_GENERATION, 0, 0, &[]))?;
    let mut found = None;
    netlink.receive(|part| match part.kind {
        NEW_GENERATION => {
            // NFTA_GEN_ID is the first.
            let number = part.bytes.get(HEADER + 8..HEADER + 12);
            found = number.and_then(|bytes| bytes.try_into().ok());
            Ok(true)
        }
        ERROR => part.error().map(|()| true),
        _ => Ok(false),
    })?;
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is torn");
    found.map(u32::from_be_bytes).ok_or_else(torn)
}

/// How many rules there are in a table of IPv4's; none if it is not there.
pub fn rules(table: &str) -> io::Result<usize> {
    // NFTA_RULE_TABLE, by which the kernel selects.
    let mut name = table.as_bytes().to_vec();
    name.push(0);
    let len = u16::try_from(name.len() + 4).unwrap_or(u16::MAX);
    let mut attribute = len.to_ne_bytes().to_vec();
    attribute.extend(1u16.to_ne_bytes());
    attribute.extend(name);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    let netlink = Netlink::netfilter()?;
    netlink.send(&message(GET_RULE, DUMP, IPV4, &attribute))?;
    let mut count = 0;
    let listed = netlink.receive(|part| match part.kind {
        NEW_RULE => {
            count += 1;
            Ok(false)
        }
        DONE => Ok(true),
        ERROR => part.error().map(|()| true),
        _ => Ok(false),
    });
    match listed {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(0),
        other => other.map(|()| count),
    }
}
