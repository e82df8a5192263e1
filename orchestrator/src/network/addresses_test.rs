//! Tests of addresses: nobody has that of another, and everybody keeps its own.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::network::Mac;

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

#[test]
fn the_same_workloads_get_the_same_addresses() {
    let all = || {
        let mut addresses = Addresses::new(Subnet::default());
        let of = |n: u32| addresses.take(&format!("workload-{n}"), None).unwrap();
        (0..500).map(of).collect::<Vec<_>>()
    };
    assert_eq!(all(), all());
    assert_eq!(all().into_iter().collect::<BTreeSet<_>>().len(), 500);
}

#[test]
fn a_workload_keeps_its_address_until_it_wants_another() {
    let mut addresses = Addresses::new(Subnet::default());
    let first = addresses.take("a", None).unwrap();
    assert_eq!(addresses.take("a", None).unwrap(), first);
    let other = Ipv4Addr::new(10, 88, 7, 7);
    assert_eq!(addresses.take("a", Some(other)).unwrap(), other);
    assert_eq!(addresses.take("b", Some(first)).unwrap(), first);
}

#[test]
fn an_address_of_another_is_refused_with_its_user() {
    let mut addresses = Addresses::new(Subnet::default());
    let wanted = Some(Ipv4Addr::new(10, 88, 0, 9));
    addresses.take("a", wanted).unwrap();
    let refusal = addresses.take("b", wanted).unwrap_err().to_string();
    assert!(refusal.contains("10.88.0.9"), "{refusal}");
    assert!(refusal.contains("uid a"), "{refusal}");
    assert_eq!(addresses.of("b"), None);
    addresses.free("a");
    addresses.take("b", wanted).unwrap();
}

#[test]
fn an_address_of_no_workload_is_refused_with_those_that_are() {
    let mut addresses = Addresses::new(Subnet::default());
    for wrong in ["10.88.0.0", "10.88.0.1", "10.88.255.255", "10.89.0.2"] {
        let refusal = addresses
            .take("a", Some(wrong.parse().unwrap()))
            .unwrap_err();
        let refusal = refusal.to_string();
        assert!(refusal.contains(wrong), "{refusal}");
        assert!(refusal.contains("10.88.0.2 to 10.88.255.254"), "{refusal}");
    }
}

#[test]
fn a_full_network_says_so() {
    let mut addresses = Addresses::new(subnet("10.1.0.0/29"));
    for n in 0..5 {
        addresses.take(&n.to_string(), None).unwrap();
    }
    let refusal = addresses.take("one more", None).unwrap_err().to_string();
    assert!(
        refusal.contains("all 5 addresses of 10.1.0.0/29"),
        "{refusal}"
    );
    addresses.free("3");
    addresses.take("one more", None).unwrap();
}

#[test]
fn what_is_no_subnet_is_refused() {
    for wrong in [
        "",
        "10.88.0.0",
        "10.88.0.0/",
        "10.88.0.0/33",
        "10.88.0.0/30",
        "10.88.0.1/16",
        "::/64",
        "127.0.0.0/8",
        "224.0.0.0/8",
        "0.0.0.0/8",
        "10.0.0.0/7",
    ] {
        let refusal = wrong.parse::<Subnet>().unwrap_err().to_string();
        assert!(refusal.contains(&format!("`{wrong}`")), "{refusal}");
    }
    assert_eq!(subnet("10.88.0.0/16"), Subnet::default());
}

#[test]
fn hardware_addresses_are_local_and_of_one_host() {
    let mac = Mac::of(Ipv4Addr::new(10, 88, 0, 255));
    assert_eq!(mac.to_string(), "02:53:0a:58:00:ff");
    assert_eq!(mac.0[0] & 3, 2);
}

proptest! {
    #[test]
    fn no_two_workloads_share_an_address(
        steps in prop::collection::vec((0u8..40, prop::option::of(0u8..32), any::<bool>()), 0..200)
    ) {
        let subnet = subnet("10.9.0.0/27");
        let mut addresses = Addresses::new(subnet);
        for (who, wanted, leaves) in steps {
            let uid = format!("w{who}");
            if leaves {
                addresses.free(&uid);
                prop_assert_eq!(addresses.of(&uid), None);
                continue;
            }
            let before = addresses.of(&uid);
            let wanted = wanted.map(|n| Ipv4Addr::new(10, 9, 0, n));
            match addresses.take(&uid, wanted) {
                Ok(address) => {
                    prop_assert!(subnet.check(address).is_ok());
                    prop_assert!(wanted.is_none_or(|wanted| wanted == address));
                    prop_assert_eq!(addresses.of(&uid), Some(address));
                }
                Err(_) => prop_assert_eq!(addresses.of(&uid), before),
            }
            let all: BTreeSet<_> = (0..40).filter_map(|n| addresses.of(&format!("w{n}"))).collect();
            let users = (0..40).filter(|n| addresses.of(&format!("w{n}")).is_some()).count();
            prop_assert_eq!(all.len(), users);
        }
    }
}
