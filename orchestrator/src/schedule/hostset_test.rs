//! Sets of hosts against the standard library's sets.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn set(hosts: &BTreeSet<u32>) -> HostSet {
    hosts.iter().copied().map(HostIndex).collect()
}

fn back(set: &HostSet) -> BTreeSet<u32> {
    set.iter().map(|host| host.0).collect()
}

proptest! {
    #[test]
    fn it_agrees_with_a_plain_set(
        a in prop::collection::btree_set(0u32..9000, 0..60),
        b in prop::collection::btree_set(0u32..9000, 0..60),
        gone in prop::collection::vec(0u32..9000, 0..30),
    ) {
        let both: BTreeSet<u32> = a.intersection(&b).copied().collect();
        let mut met = set(&a);
        met.intersect(&set(&b));
        prop_assert_eq!(back(&met), both.clone());
        prop_assert_eq!(set(&a).common(&set(&b)), both.len());
        let mut rest = set(&a);
        rest.subtract(&set(&b));
        prop_assert_eq!(back(&rest), a.difference(&b).copied().collect());
        let mut all = set(&a);
        all.unite(&set(&b));
        prop_assert_eq!(all.len(), a.union(&b).count());
        prop_assert_eq!(back(&all), a.union(&b).copied().collect());
        let mut plain = a.clone();
        let mut bits = set(&a);
        for host in gone {
            plain.remove(&host);
            bits.remove(HostIndex(host));
            prop_assert!(!bits.contains(HostIndex(host)));
        }
        prop_assert_eq!(bits.is_empty(), plain.is_empty());
        prop_assert_eq!(back(&bits), plain);
    }
}
