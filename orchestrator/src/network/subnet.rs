//! A subnet: which addresses a network has, and what a guest is told of its own.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::NetworkError;

/// An IPv4 subnet. Its first address is the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    base: u32,
    len: u8,
}

impl Subnet {
    /// How many bits all its addresses share.
    pub fn prefix(self) -> u8 {
        self.len
    }

    /// The mask of these bits.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(self.bits())
    }

    fn bits(self) -> u32 {
        u32::MAX << (32 - self.len)
    }

    /// Its own address, which is no host's.
    pub fn base(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    /// The address of this host's end, which is the workloads' gateway.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// The first address that a workload can have.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 2)
    }

    /// The last one; the broadcast address is behind it.
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from((self.base | !self.bits()) - 1)
    }

    /// How many addresses there are for workloads.
    pub fn count(self) -> u32 {
        u32::from(self.last()) - u32::from(self.first()) + 1
    }

    /// The `n`th address for workloads, from 0; it begins again behind the last.
    pub fn nth(self, n: u64) -> Ipv4Addr {
        // The remainder is less than a u32.
        let n = (n % u64::from(self.count())) as u32;
        Ipv4Addr::from(u32::from(self.first()) + n)
    }

    /// Whether an address is in it, whoever's.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.bits() == self.base
    }

    /// Whether some address is in both this and another network's, of any length.
    pub fn meets(self, address: Ipv4Addr, len: u8) -> bool {
        let bits = u32::MAX.checked_shl(32 - u32::from(len.min(self.len)));
        let bits = bits.unwrap_or(0);
        u32::from(address) & bits == self.base & bits
    }

    /// Refuses an address that no workload here can have.
    pub fn check(self, address: Ipv4Addr) -> Result<(), NetworkError> {
        if (self.first()..=self.last()).contains(&address) {
            return Ok(());
        }
        Err(NetworkError::Outside {
            address,
            subnet: self,
        })
    }
}

impl Default for Subnet {
    /// 10.88.0.0/16.
    fn default() -> Subnet {
        Subnet {
            base: 0x0a58_0000,
            len: 16,
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.len)
    }
}

impl FromStr for Subnet {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Subnet, NetworkError> {
        let wrong = |why| NetworkError::Subnet {
            text: text.to_owned(),
            why,
        };
        let form = "it must look like 10.88.0.0/16";
        let (base, len) = text.split_once('/').ok_or_else(|| wrong(form))?;
        let base: Ipv4Addr = base.parse().map_err(|_| wrong(form))?;
        let len: u8 = len.parse().map_err(|_| wrong(form))?;
        if !(8..=29).contains(&len) {
            return Err(wrong("its length must be 8 to 29"));
        }
        if base.is_loopback()
            || base.is_multicast()
            || base.octets()[0] == 0
            || base.octets()[0] >= 240
        {
            return Err(wrong(
                "these addresses are for other uses; take some of 10.0.0.0/8",
            ));
        }
        let subnet = Subnet {
            base: u32::from(base),
            len,
        };
        if subnet.base & !subnet.bits() != 0 {
            return Err(wrong("bits behind its length are set"));
        }
        Ok(subnet)
    }
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// That of whoever has `address`: a locally administered one.
    pub fn of(address: Ipv4Addr) -> Mac {
        let [a, b, c, d] = address.octets();
        Mac([0x02, 0x53, a, b, c, d])
    }

    /// The one that somebody has made an IPv6 address of, if it was made so.
    pub fn of_interface(address: Ipv6Addr) -> Option<Mac> {
        let bytes = address.octets();
        let [a, b, c, 0xff, 0xfe, d, e, f] = *bytes.last_chunk()? else {
            return None;
        };
        Some(Mac([a ^ 2, b, c, d, e, f]))
    }

    /// The address in a subnet of whoever has it, if it is one of ours.
    pub fn address(self, subnet: Subnet) -> Option<Ipv4Addr> {
        let [0x02, 0x53, a, b, c, d] = self.0 else {
            return None;
        };
        let address = Ipv4Addr::new(a, b, c, d);
        subnet.contains(address).then_some(address)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
