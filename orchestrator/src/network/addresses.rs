//! Who has which address. No I/O: what is in use is told by whoever knows.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::{NetworkError, Subnet, port};

/// The addresses of a network that are in use, by uid. A workload has at most one.
#[derive(Debug)]
pub struct Addresses {
    subnet: Subnet,
    users: BTreeMap<Ipv4Addr, String>,
    addresses: HashMap<String, Ipv4Addr>,
}

impl Addresses {
    /// Those of a network in which nobody is yet.
    pub fn new(subnet: Subnet) -> Addresses {
        Addresses {
            subnet,
            users: BTreeMap::new(),
            addresses: HashMap::new(),
        }
    }

    /// Gives a workload an address: the one it wants, or, if it wants none, the one it has, or a free one. Which
    /// free one depends on its uid and on who else is there, and on nothing else.
    pub fn take(&mut self, uid: &str, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, NetworkError> {
        let address = match (wanted, self.of(uid)) {
            (None, Some(has)) => return Ok(has),
            (None, None) => self.choose(uid)?,
            (Some(wanted), _) => {
                self.subnet.check(wanted)?;
                if let Some(other) = self.users.get(&wanted).filter(|other| *other != uid) {
                    return Err(NetworkError::Taken {
                        address: wanted,
                        uid: other.clone(),
                    });
                }
                wanted
            }
        };
        self.free(uid);
        self.users.insert(address, uid.to_owned());
        self.addresses.insert(uid.to_owned(), address);
        Ok(address)
    }

    /// Their subnet.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// How many are in use.
    pub fn used(&self) -> usize {
        self.users.len()
    }

    /// Those who have one.
    pub fn uids(&self) -> impl Iterator<Item = &String> {
        self.users.values()
    }

    /// Who has an address.
    pub fn user(&self, address: Ipv4Addr) -> Option<&String> {
        self.users.get(&address)
    }

    /// The address that a workload has.
    pub fn of(&self, uid: &str) -> Option<Ipv4Addr> {
        self.addresses.get(uid).copied()
    }

    /// Lets others have what a workload had.
    pub fn free(&mut self, uid: &str) {
        if let Some(address) = self.addresses.remove(uid) {
            self.users.remove(&address);
        }
    }

    /// One that is free, for a uid: where its hash points to, or the next.
    fn choose(&self, uid: &str) -> Result<Ipv4Addr, NetworkError> {
        let start = port::hash(uid) % u64::from(self.subnet.count());
        // Of one more than are in use, one is free.
        let tries = (self.users.len() as u64 + 1).min(u64::from(self.subnet.count()));
        (start..start + tries)
            .map(|n| self.subnet.nth(n))
            .find(|address| !self.users.contains_key(address))
            .ok_or(NetworkError::Full {
                subnet: self.subnet,
            })
    }
}

#[cfg(test)]
#[path = "addresses_test.rs"]
mod tests;
