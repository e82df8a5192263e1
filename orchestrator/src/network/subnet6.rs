//! An IPv6 subnet of a network: 64 bits that its addresses share, and 64 that a workload makes of its hardware
//! address itself.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::{Mac, NetworkError, port};

/// Bits that all its addresses share: what a guest can choose its own address in (RFC 4862 §5.5.3).
const LEN: u8 = 64;

/// An IPv6 subnet of 64 bits. Its first address is the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet6 {
    base: u128,
}

impl Subnet6 {
    /// How many bits all its addresses share.
    pub fn prefix(self) -> u8 {
        LEN
    }

    /// The mask of these bits.
    pub fn mask(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::MAX << (128 - LEN))
    }

    /// Its own address, which is no host's.
    pub fn base(self) -> Ipv6Addr {
        Ipv6Addr::from(self.base)
    }

    /// The address of this host's end, which is the workloads' gateway.
    pub fn gateway(self) -> Ipv6Addr {
        Ipv6Addr::from(self.base | 1)
    }

    /// The address that whoever has a hardware address makes of it (EUI-64, RFC 4291 appendix A).
    pub fn of(self, mac: Mac) -> Ipv6Addr {
        Ipv6Addr::from(self.base | u128::from(interface(mac)))
    }

    /// Whether an address is in it, whoever's.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        u128::from(address) & u128::from(self.mask()) == self.base
    }

    /// Whether some address is in both this and another network's, of any length.
    pub fn meets(self, address: Ipv6Addr, len: u8) -> bool {
        let bits = u128::MAX.checked_shl(128 - u32::from(len.min(LEN)));
        let bits = bits.unwrap_or(0);
        u128::from(address) & bits == self.base & bits
    }

    /// Whether its addresses mean something here only (RFC 4193), so that what leaves has to have others.
    pub fn is_local(self) -> bool {
        self.base().octets()[0] & 0xfe == 0xfc
    }

    /// A local one for a network, of which it is not likely that there is another (RFC 4193 §3.2).
    pub fn chosen(uid: &str) -> Subnet6 {
        let global = u128::from(port::hash(uid) & 0xff_ffff_ffff);
        Subnet6 {
            base: 0xfd << 120 | global << 80,
        }
    }
}

/// The address on its own link of whoever has a hardware address.
pub fn link_local(mac: Mac) -> Ipv6Addr {
    Ipv6Addr::from(0xfe80 << 112 | u128::from(interface(mac)))
}

fn interface(Mac([a, b, c, d, e, f]): Mac) -> u64 {
    u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{LEN}", self.base())
    }
}

impl FromStr for Subnet6 {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Subnet6, NetworkError> {
        let wrong = |why| NetworkError::Subnet {
            text: text.to_owned(),
            why,
        };
        let form = "it must look like fd00:1:2:3::/64";
        let (base, len) = text.split_once('/').ok_or_else(|| wrong(form))?;
        let base: Ipv6Addr = base.parse().map_err(|_| wrong(form))?;
        let len: u8 = len.parse().map_err(|_| wrong(form))?;
        if len != LEN {
            return Err(wrong("its length must be 64"));
        }
        let subnet = Subnet6 {
            base: u128::from(base),
        };
        if subnet.base & !u128::from(subnet.mask()) != 0 {
            return Err(wrong("bits behind its length are set"));
        }
        // Global unicast, and local unicast.
        let first = base.octets()[0];
        if first & 0xe0 != 0x20 && first & 0xfe != 0xfc {
            return Err(wrong(
                "these addresses are for other uses; take some of fd00::/8",
            ));
        }
        Ok(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_makes_its_address_of_its_hardware_address() {
        let subnet: Subnet6 = "fd00:1:2:3::/64".parse().expect("a subnet");
        let mac = Mac([0x02, 0x53, 10, 90, 0, 2]);
        let address = subnet.of(mac);
        assert_eq!(address.to_string(), "fd00:1:2:3:53:aff:fe5a:2");
        assert_eq!(link_local(mac).to_string(), "fe80::53:aff:fe5a:2");
        assert!(subnet.contains(address) && subnet.contains(subnet.gateway()));
        assert_eq!(subnet.to_string(), "fd00:1:2:3::/64");
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for wrong in [
            "",
            "fd00::",
            "fd00::/48",
            "fd00::1/64",
            "fe80::/64",
            "ff02::/64",
            "::/64",
            "10.0.0.0/8",
        ] {
            let refusal = wrong.parse::<Subnet6>().expect_err(wrong).to_string();
            assert!(refusal.contains(&format!("`{wrong}`")), "{refusal}");
        }
    }

    #[test]
    fn one_that_is_chosen_is_local_and_stays() {
        let one = Subnet6::chosen("one");
        assert_eq!(one, Subnet6::chosen("one"));
        assert_ne!(one, Subnet6::chosen("two"));
        assert!(one.is_local());
        assert_eq!(one.to_string().parse::<Subnet6>().expect("it can be"), one);
    }

    #[test]
    fn subnets_meet_where_one_is_within_the_other() {
        let subnet: Subnet6 = "fd00:1:2:3::/64".parse().expect("a subnet");
        let at = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
        assert!(subnet.meets(at("fd00:1::1"), 32));
        assert!(subnet.meets(at("fd00:1:2:3::9"), 128));
        assert!(!subnet.meets(at("fd00:1:2:4::9"), 64));
        assert!(subnet.meets(at("::"), 0));
    }
}
