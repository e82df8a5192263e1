//! Subnets for networks that ask for none.

use std::net::Ipv4Addr;

use super::{NetworkError, Subnet, port};

/// What they are taken of: 10.90.0.0/15, in subnets of 254 addresses each.
const BASE: u32 = 0x0a5a_0000;
const LEN: u8 = 15;
const EACH: u8 = 24;

/// One for a uid that is free: where its hash points to, or the next.
pub fn choose(uid: &str, mut is_free: impl FnMut(Subnet) -> bool) -> Result<Subnet, NetworkError> {
    let count = 1u32 << (EACH - LEN);
    // The remainder is less than a u32.
    let start = (port::hash(uid) % u64::from(count)) as u32;
    let nth = |n: u32| {
        let base = Ipv4Addr::from(BASE + ((n % count) << (32 - EACH)));
        format!("{base}/{EACH}").parse::<Subnet>()
    };
    for n in start..start + count {
        let subnet = nth(n)?;
        if is_free(subnet) {
            return Ok(subnet);
        }
    }
    Err(NetworkError::NoSubnet(format!(
        "{}/{LEN}",
        Ipv4Addr::from(BASE)
    )))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_of_the_pool_can_be_had_and_no_more() {
        let mut used = BTreeSet::new();
        let mut next = || choose("a", |subnet| used.insert(subnet.to_string()));
        for _ in 0..512 {
            let subnet = next().expect("one is free");
            assert_eq!(subnet.prefix(), 24);
        }
        let refusal = next().expect_err("none is left").to_string();
        assert!(refusal.contains("10.90.0.0/15"), "{refusal}");
        assert!(used.contains("10.90.0.0/24") && used.contains("10.91.255.0/24"));
    }

    #[test]
    fn the_same_network_gets_the_same_one() {
        let of = |uid| choose(uid, |_| true).expect("it is free");
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
    }
}
