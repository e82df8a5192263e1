//! A workload's port on a bridge: the interface's name comes of the uid, and who it is for stands in its alias.
//! So an agent that knows nothing finds everything.

use std::net::Ipv4Addr;

use super::{Limits, Mac, NetworkError, net};

/// What all names of ports begin with.
const PREFIX: &str = "sk";
/// Digits of a hash behind that: a name has at most 15 bytes.
const DIGITS: usize = 13;
/// What all aliases begin with.
const ALIAS: &str = "skerry";
const MAX_UID: usize = 64;
/// Bytes of a tenant's name.
const MAX_TENANT: usize = 63;
/// Networks of one workload.
pub const MOST: usize = 8;

/// A port, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The interface.
    pub name: String,
    /// The workload.
    pub uid: String,
    /// Which of the workload's ports it is, from 0.
    pub place: usize,
    /// Its network.
    pub net: String,
    /// The tenant whose the workload is.
    pub tenant: String,
    /// The workload's address: what comes from elsewhere is dropped.
    pub address: Ipv4Addr,
    /// How much goes through it.
    pub limits: Limits,
}

impl Port {
    /// The first one of a workload in the network `default`, without limits.
    pub fn new(uid: &str, address: Ipv4Addr) -> Result<Port, NetworkError> {
        Ok(Port {
            name: name(uid, 0)?,
            uid: uid.to_owned(),
            place: 0,
            net: net::DEFAULT.to_owned(),
            tenant: String::new(),
            address,
            limits: Limits::default(),
        })
    }

    /// That of an interface with this name and alias, if it is one.
    pub fn read(name: &str, alias: &str) -> Option<Port> {
        let mut words = alias.split(' ');
        let (ours, uid, address) = (words.next()?, words.next()?, words.next()?);
        let mut port = Port::new(uid, address.parse().ok()?).ok()?;
        // Those of an agent before have no more words.
        if let Some(place) = words.next() {
            port.place = place.parse().ok().filter(|place| *place < MOST)?;
            words.next()?.clone_into(&mut port.net);
            words.next()?.clone_into(&mut port.tenant);
            for word in words {
                let (key, value) = word.split_once('=')?;
                let value = Some(value.parse().ok()?);
                match key {
                    "in" => port.limits.ingress = value,
                    "out" => port.limits.egress = value,
                    _ => return None,
                }
            }
            port.name = self::name(uid, port.place).ok()?;
        }
        (ours == ALIAS && port.name == name).then_some(port)
    }

    /// Its alias.
    pub fn alias(&self) -> String {
        let Port {
            uid,
            address,
            place,
            net,
            tenant,
            ..
        } = self;
        let mut alias = format!("{ALIAS} {uid} {address} {place} {net} {tenant}");
        for (key, value) in [("in", self.limits.ingress), ("out", self.limits.egress)] {
            if let Some(value) = value {
                alias += &format!(" {key}={value}");
            }
        }
        alias
    }

    /// The workload's hardware address.
    pub fn mac(&self) -> Mac {
        Mac::of(self.address)
    }
}

/// The name of a workload's port.
pub fn name(uid: &str, place: usize) -> Result<String, NetworkError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if uid.is_empty() || uid.len() > MAX_UID || !uid.chars().all(good) {
        return Err(NetworkError::Uid(uid.to_owned()));
    }
    let hash = match place {
        0 => hash(uid),
        place => hash(&format!("{uid}/{place}")),
    };
    let hash = hash & ((1 << (4 * DIGITS)) - 1);
    Ok(format!("{PREFIX}{hash:0DIGITS$x}"))
}

/// Whether it is one of a tenant: what an alias can say.
pub fn is_tenant(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    name.len() <= MAX_TENANT && name.chars().all(good)
}

/// Whether a port could have this name.
pub fn is_name(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|digits| {
        digits.len() == DIGITS
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// FNV-1a of 64 bits, with its bits mixed once more, since the last bytes of a text reach few of them. It is
/// part of names that outlive us, so it never changes.
pub fn hash(text: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
#[path = "port_test.rs"]
mod tests;
