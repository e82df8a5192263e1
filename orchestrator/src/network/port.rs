//! A workload's port on the bridge: the interface's name comes of the uid, and who it is for stands in its alias.
//! So an agent that knows nothing finds everything.

use std::net::Ipv4Addr;

use super::{Mac, NetworkError};

/// What all names of ports begin with.
const PREFIX: &str = "sk";
/// Digits of a hash behind that: a name has at most 15 bytes.
const DIGITS: usize = 13;
/// What all aliases begin with.
const ALIAS: &str = "skerry";
const MAX_UID: usize = 64;

/// A port, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The interface.
    pub name: String,
    /// The workload.
    pub uid: String,
    /// The workload's address: what comes from elsewhere is dropped.
    pub address: Ipv4Addr,
}

impl Port {
    /// That of a workload.
    pub fn new(uid: &str, address: Ipv4Addr) -> Result<Port, NetworkError> {
        Ok(Port {
            name: name(uid)?,
            uid: uid.to_owned(),
            address,
        })
    }

    /// That of an interface with this name and alias, if it is one.
    pub fn read(name: &str, alias: &str) -> Option<Port> {
        let mut words = alias.split(' ');
        let (ours, uid, address) = (words.next()?, words.next()?, words.next()?);
        let port = Port::new(uid, address.parse().ok()?).ok()?;
        let fits = ours == ALIAS && port.name == name && words.next().is_none();
        fits.then_some(port)
    }

    /// Its alias.
    pub fn alias(&self) -> String {
        format!("{ALIAS} {} {}", self.uid, self.address)
    }

    /// The workload's hardware address.
    pub fn mac(&self) -> Mac {
        Mac::of(self.address)
    }
}

/// The name of a workload's port.
pub fn name(uid: &str) -> Result<String, NetworkError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if uid.is_empty() || uid.len() > MAX_UID || !uid.chars().all(good) {
        return Err(NetworkError::Uid(uid.to_owned()));
    }
    let hash = hash(uid) & ((1 << (4 * DIGITS)) - 1);
    Ok(format!("{PREFIX}{hash:0DIGITS$x}"))
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
