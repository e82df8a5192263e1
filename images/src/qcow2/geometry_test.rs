//! Tests of sizes and refcounts.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn refcounts_of_any_width_read_back_and_leave_their_neighbours(
        order in 0u32..=6, index in 0u64..63, value: u64, other: u64
    ) {
        let geometry = Geometry { cluster_bits: 9, refcount_order: order, extended: false };
        let mut bytes = vec![0; 512];
        let (value, other) = (value & geometry.refcount_max(), other & geometry.refcount_max());
        set_refcount(&mut bytes, order, index + 1, other);
        set_refcount(&mut bytes, order, index, value);
        prop_assert_eq!(refcount(&bytes, order, index), value);
        prop_assert_eq!(refcount(&bytes, order, index + 1), other);
    }
}

#[test]
fn narrow_refcounts_are_packed_from_the_low_bits() {
    let mut bytes = [0; 2];
    set_refcount(&mut bytes, 1, 1, 3);
    assert_eq!(bytes, [0b1100, 0]);
}

#[test]
fn sizes_follow_the_specification() {
    let default = Geometry {
        cluster_bits: 16,
        refcount_order: 4,
        extended: false,
    };
    assert_eq!(default.l2_coverage(), 512 << 20);
    assert_eq!(default.refblock_entries(), 32768);
    let extended = Geometry {
        cluster_bits: 17,
        refcount_order: 4,
        extended: true,
    };
    assert_eq!(extended.unit(), 4096);
    assert_eq!(extended.l2_entries(), 8192);
}
