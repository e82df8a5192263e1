//! Whether somebody else has changed rules: by a number of the kernel's that counts all changes, and by how much
//! there is in our table.

use std::io;

use super::conntrack::{attributes, find};
use crate::network::netlink::{HEADER, Netlink, Part};

/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
const NEW_GENERATION: u16 = SUBSYSTEM << 8 | 15;
const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// NFTA_SET_ELEM_LIST_ELEMENTS.
const LIST: u16 = 3;
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

/// A list of attributes, each a text.
fn texts(all: &[(u16, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, text) in all {
        // A name has at most 255 bytes.
        let len = u16::try_from(text.len() + 5).unwrap_or(u16::MAX);
        bytes.extend(len.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// How many rules there are in a table of IPv4's; none if it is not there.
pub fn rules(table: &str) -> io::Result<usize> {
    // NFTA_RULE_TABLE, by which the kernel selects.
    count(GET_RULE, &texts(&[(1, table)]), |part| {
        usize::from(part.kind == NEW_RULE)
    })
}

/// How many elements there are in a set of such a table; none if it is not there.
pub fn elements(table: &str, set: &str) -> io::Result<usize> {
    // NFTA_SET_ELEM_LIST_TABLE and NFTA_SET_ELEM_LIST_SET.
    count(GET_ELEMENTS, &texts(&[(1, table), (2, set)]), |part| {
        let list = part.bytes.get(HEADER + 4..).and_then(|all| find(all, LIST));
        list.map_or(0, |list| attributes(list).count())
    })
}

fn count(kind: u16, asked: &[u8], mut of: impl FnMut(&Part) -> usize) -> io::Result<usize> {
    let netlink = Netlink::netfilter()?;
    netlink.send(&message(kind, DUMP, IPV4, asked))?;
    let mut count = 0;
    let listed = netlink.receive(|part| match part.kind {
        DONE => Ok(true),
        ERROR => part.error().map(|()| true),
        _ => {
            count += of(part);
            Ok(false)
        }
    });
    match listed {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(0),
        other => other.map(|()| count),
    }
}
