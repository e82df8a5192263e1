//! Connections that the kernel knows, and how they are cut off: its entries are removed, so that what is sent next
//! is looked at anew, and refused or handed on to somebody else. Numbers are those of
//! <linux/netfilter/nfnetlink_conntrack.h>.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::Ipv4Addr;

use super::plan::{Datagrams, Tie};
use crate::network::NetworkError;
use crate::network::error::lacking;
use crate::network::netlink::{HEADER, Netlink};

/// NFNL_SUBSYS_CTNETLINK.
const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// AF_INET.
const INET: u8 = 2;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
/// Flags above an attribute's number.
const NUMBER: u16 = 0x3fff;

/// UDP's number.
const UDP: u8 = 17;
/// Attempts at a table that changes while it is read: what changed in it needs nothing more.
const ROUNDS: usize = 3;

/// One way of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    protocol: u8,
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
}

/// A connection.
#[derive(Debug, PartialEq, Eq)]
struct Connection {
    /// As its first packet was sent.
    asked: Way,
    /// As answers are sent.
    answered: Way,
    /// What removes it: two attributes.
    handle: Vec<u8>,
}

/// What is to be cut off.
pub struct Cut {
    ties: HashSet<Tied>,
    elastic: HashSet<(Ipv4Addr, Ipv4Addr)>,
    datagrams: BTreeSet<Datagrams>,
}

/// What was sent (an IP header's number), to which address (any if none) and port, and who answers.
type Tied = (u8, Option<Ipv4Addr>, u16, (Ipv4Addr, u16));

impl Cut {
    /// Connections that may not be any more, and those to ports that nobody took datagrams at before.
    pub fn of<'a>(
        ties: impl Iterator<Item = &'a Tie>,
        datagrams: impl Iterator<Item = &'a Datagrams>,
    ) -> Cut {
        let mut cut = Cut {
            ties: HashSet::new(),
            elastic: HashSet::new(),
            datagrams: datagrams.copied().collect(),
        };
        for tie in ties {
            match *tie {
                Tie::Port {
                    protocol,
                    address,
                    port,
                    backend,
                } => {
                    cut.ties.insert((protocol.number(), address, port, backend));
                }
                Tie::Elastic(address, target) => {
                    cut.elastic.insert((address, target));
                }
            }
        }
        cut
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ties.is_empty() && self.elastic.is_empty() && self.datagrams.is_empty()
    }

    fn is_due(&self, one: &Connection) -> bool {
        let (asked, answered) = (&one.asked, &one.answered);
        let (to, port) = asked.destination;
        if answered.source == asked.destination {
            let unheard = |address| self.datagrams.contains(&(address, port));
            let from_elastic = (answered.destination.0, asked.source.0);
            return (asked.protocol == UDP && (unheard(None) || unheard(Some(to))))
                || self.elastic.contains(&from_elastic);
        }
        let tied = |address| {
            let tied = (asked.protocol, address, port, answered.source);
            self.ties.contains(&tied)
        };
        tied(None) || tied(Some(to)) || self.elastic.contains(&(to, answered.source.0))
    }

    /// Does it; how many were cut off.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn make(&self) -> Result<usize, NetworkError> {
        if self.is_empty() {
            return Ok(0);
        }
        let cut = || -> io::Result<usize> {
            let due = list(|one| self.is_due(one))?;
            let mut netlink = Netlink::netfilter()?;
            for handle in &due {
                delete(&mut netlink, handle)?;
            }
            Ok(due.len())
        };
        cut().map_err(lacking("cut off connections", "nf_conntrack_netlink"))
    }
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    // An entry's attributes are some hundred bytes.
    let len = u32::try_from(HEADER + 4 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // A sequence number and a port: of no account, as there is one question at a time.
    bytes.extend([0; 8]);
    bytes.extend([INET, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// What removes those connections that are wanted.
fn list(wanted: impl Fn(&Connection) -> bool) -> io::Result<Vec<Vec<u8>>> {
    let mut last = Ok(Vec::new());
    for _ in 0..ROUNDS {
        let netlink = Netlink::netfilter()?;
        netlink.send(&message(GET, REQUEST | DUMP, &[]))?;
        let mut found = Vec::new();
        let read = netlink.receive(|part| match part.kind {
            DONE => Ok(true),
            ERROR => part.error().map(|()| true),
            _ => {
                let connection = part.bytes.get(HEADER + 4..).and_then(Connection::read);
                if let Some(one) = connection.filter(|one| wanted(one)) {
                    found.push(one.handle);
                }
                Ok(false)
            }
        });
        last = read.map(|()| found);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn delete(netlink: &mut Netlink, handle: &[u8]) -> io::Result<()> {
    netlink.send(&message(DELETE, REQUEST | ACK, handle))?;
    let done = netlink.receive(|part| match part.kind {
        ERROR => part.error().map(|()| true),
        _ => Ok(false),
    });
    match done {
        // It has ended meanwhile.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// An attribute: its number, its value, and it as a whole.
pub(super) struct Attribute<'a> {
    number: u16,
    value: &'a [u8],
    whole: &'a [u8],
}

/// The attributes of a list. A torn one ends it.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (len, number) = (usize::from(word(0)?), word(2)? & NUMBER);
        let value = bytes.get(4..len)?;
        let end = len.next_multiple_of(4).min(bytes.len());
        let (whole, rest) = bytes.split_at(end);
        bytes = rest;
        Some(Attribute {
            number,
            value,
            whole,
        })
    })
}

pub(super) fn find(bytes: &[u8], number: u16) -> Option<&[u8]> {
    let found = attributes(bytes).find(|one| one.number == number);
    found.map(|one| one.value)
}

fn address(bytes: &[u8], number: u16) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = find(bytes, number)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

/// A port; 0 where there is none.
fn port(bytes: &[u8], number: u16) -> u16 {
    let octets = find(bytes, number).and_then(|bytes| bytes.try_into().ok());
    octets.map_or(0, u16::from_be_bytes)
}

impl Way {
    fn read(bytes: &[u8]) -> Option<Way> {
        let (ip, protocol) = (find(bytes, 1)?, find(bytes, 2)?);
        Some(Way {
            protocol: *find(protocol, 1)?.first()?,
            source: (address(ip, 1)?, port(protocol, 2)),
            destination: (address(ip, 2)?, port(protocol, 3)),
        })
    }
}

impl Connection {
    fn read(bytes: &[u8]) -> Option<Connection> {
        let mut handle = Vec::new();
        for one in attributes(bytes) {
            if matches!(one.number, ORIGINAL | ID) {
                handle.extend(one.whole);
            }
        }
        Some(Connection {
            asked: Way::read(find(bytes, ORIGINAL)?)?,
            answered: Way::read(find(bytes, REPLY)?)?,
            handle,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Protocol;

    fn way(protocol: u8, source: [u8; 4], from: u16, destination: [u8; 4], to: u16) -> Way {
        Way {
            protocol,
            source: (source.into(), from),
            destination: (destination.into(), to),
        }
    }

    fn connection(asked: Way, answered: Way) -> Connection {
        Connection {
            asked,
            answered,
            handle: Vec::new(),
        }
    }

    const CLIENT: [u8; 4] = [192, 0, 2, 2];
    const HOST: [u8; 4] = [192, 0, 2, 1];
    const ONE: [u8; 4] = [10, 88, 0, 5];
    const OTHER: [u8; 4] = [10, 88, 0, 6];

    #[test]
    fn connections_are_cut_that_are_handed_on_to_who_is_gone_and_no_others() {
        let tie = Tie::Port {
            protocol: Protocol::Tcp,
            address: None,
            port: 8080,
            backend: (ONE.into(), 80),
        };
        let cut = Cut::of([tie].iter(), [].iter());
        let asked = way(6, CLIENT, 40_000, HOST, 8080);
        let gone = connection(asked, way(6, ONE, 80, CLIENT, 40_000));
        let stays = connection(asked, way(6, OTHER, 80, CLIENT, 40_000));
        let direct = connection(
            way(6, CLIENT, 40_000, ONE, 80),
            way(6, ONE, 80, CLIENT, 40_000),
        );
        assert!(cut.is_due(&gone));
        assert!(!cut.is_due(&stays) && !cut.is_due(&direct));
    }

    #[test]
    fn an_elastic_addresss_connections_are_cut_both_ways() {
        let (elastic, client) = ([203, 0, 113, 7], CLIENT);
        let tie = Tie::Elastic(elastic.into(), ONE.into());
        let cut = Cut::of([tie].iter(), [].iter());
        let inward = connection(way(6, client, 9, elastic, 22), way(6, ONE, 22, client, 9));
        let outward = connection(way(17, ONE, 9, client, 53), way(17, client, 53, elastic, 9));
        let masqueraded = connection(way(17, ONE, 9, client, 53), way(17, client, 53, HOST, 9));
        assert!(cut.is_due(&inward) && cut.is_due(&outward));
        assert!(!cut.is_due(&masqueraded));
    }

    #[test]
    fn datagrams_that_nobody_took_are_looked_at_anew() {
        let cut = Cut::of([].iter(), [(None, 53)].iter());
        let flow = |protocol, to| {
            let (asked, answered) = (
                way(protocol, CLIENT, 9, HOST, to),
                way(protocol, HOST, to, CLIENT, 9),
            );
            cut.is_due(&connection(asked, answered))
        };
        assert!(flow(17, 53));
        assert!(!flow(6, 53) && !flow(17, 54));
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_says_is_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Connection::read(&bytes);
        }
    }
}
