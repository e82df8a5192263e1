use super::*;

#[test]
fn marks_whole_granules_and_no_others() {
    let map = DirtyMap::new(1 << 20, 16);
    map.mark(0xffff, 2);
    assert_eq!(map.dirty(), 2 << 16);
    assert!(map.intersects(0, 1) && map.intersects(0x1_0000, 1) && !map.intersects(0x2_0000, 1));
    assert_eq!(map.next(1), Some(0x1_0000));
    assert!(map.take(0x1_0000) && !map.take(0x1_0000));
    assert_eq!(map.next(1), None);
}

#[test]
fn what_is_behind_the_end_is_ignored() {
    let map = DirtyMap::new(100, 16);
    map.mark(50, u64::MAX);
    map.mark(u64::MAX, 10);
    assert_eq!(map.dirty(), 1 << 16);
    assert!(!map.take(u64::MAX));
}

#[test]
fn merging_maps_granules_of_other_sizes() {
    let (coarse, fine) = (DirtyMap::new(1 << 20, 16), DirtyMap::new(1 << 20, 12));
    fine.mark(0x1_f000, 1);
    coarse.merge(&fine);
    assert_eq!((coarse.next(0), coarse.dirty()), (Some(0x1_0000), 1 << 16));
}
