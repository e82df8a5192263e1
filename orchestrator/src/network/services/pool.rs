//! Which service has which address. No I/O.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::network::{Subnet, port};

/// Why a service has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// It is none for a service.
    #[error(
        "{address} is none of {pool}, the subnet for services: give one of {} to {}, or none",
        pool.first(),
        pool.last()
    )]
    Outside {
        /// What it wants.
        address: Ipv4Addr,
        /// The subnet.
        pool: Subnet,
    },
    /// Another one has it.
    #[error("{address} is the address of {by}: give another, or none")]
    Taken {
        /// What it wants.
        address: Ipv4Addr,
        /// Who has it.
        by: String,
    },
    /// All are in use.
    #[error(
        "all {} addresses of {pool} are in use: delete a service, or run the host with a larger --service-subnet",
        pool.count()
    )]
    Full {
        /// The subnet.
        pool: Subnet,
    },
}

/// Addresses in use, and by whom.
#[derive(Debug)]
pub struct Pool {
    pool: Subnet,
    users: BTreeMap<Ipv4Addr, String>,
}

impl Pool {
    /// That of a subnet, of which nothing is in use.
    pub fn new(pool: Subnet) -> Pool {
        Pool {
            pool,
            users: BTreeMap::new(),
        }
    }

    /// Gives a service the address that it asks for or, where it asks for none, had before.
    ///
    /// # Errors
    /// If it cannot have that.
    pub fn take(&mut self, address: Ipv4Addr, whose: &str) -> Result<Ipv4Addr, PoolError> {
        let pool = self.pool;
        if pool.check(address).is_err() {
            return Err(PoolError::Outside { address, pool });
        }
        if let Some(by) = self.users.get(&address).filter(|by| *by != whose) {
            let by = by.clone();
            return Err(PoolError::Taken { address, by });
        }
        self.users.insert(address, whose.to_owned());
        Ok(address)
    }

    /// Gives a service a free one: where its uid's hash points to, or the next.
    ///
    /// # Errors
    /// If there is none.
    pub fn choose(&mut self, uid: &str, whose: &str) -> Result<Ipv4Addr, PoolError> {
        let count = u64::from(self.pool.count());
        let start = port::hash(uid) % count;
        // Of one more than are in use, one is free.
        let tries = (self.users.len() as u64 + 1).min(count);
        let free = (start..start + tries)
            .map(|n| self.pool.nth(n))
            .find(|address| !self.users.contains_key(address))
            .ok_or(PoolError::Full { pool: self.pool })?;
        self.users.insert(free, whose.to_owned());
        Ok(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_all_of_them() {
        let mut pool = Pool::new("10.96.0.0/29".parse().expect("a subnet"));
        let one = Ipv4Addr::new(10, 96, 0, 4);
        assert_eq!(pool.take(one, "service a/one"), Ok(one));
        assert_eq!(pool.take(one, "service a/one"), Ok(one));
        let taken = pool.take(one, "service b/two").expect_err("it is taken");
        assert!(taken.to_string().contains("service a/one"), "{taken}");
        let outside = Ipv4Addr::new(10, 88, 0, 5);
        assert!(pool.take(outside, "service a/one").is_err());
        for n in 0..4 {
            let uid = format!("uid-{n}");
            let given = pool.choose(&uid, &uid).expect("one is free");
            assert_ne!(given, one);
        }
        let full = pool.choose("more", "more").expect_err("none is free");
        assert!(full.to_string().contains("--service-subnet"), "{full}");
    }
}
